"""Google's refusals, word for word as their services put them on the wire (google.rpc.Status in JSON)."""

from typing import Any

__all__ = ["ApiError", "refusal"]

_NAMES = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    409: "ALREADY_EXISTS",
    429: "RESOURCE_EXHAUSTED",
    503: "UNAVAILABLE",
}
_QUOTA = "Quota limit 'TPUV5sPreemptibleLitepodPerProjectPerZoneForTPUAPI' has been exceeded. Limit: 0 in zone z."


class ApiError(Exception):
    """An answer that is no success."""

    def __init__(self, code: int, message: str, *details: dict[str, Any], status: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.body = {
            "error": {
                "code": code,
                "message": message,
                "status": status or _NAMES[code],
                **({"details": list(details)} if details else {}),
            }
        }


def _info(reason: str, **metadata: str) -> dict[str, Any]:
    kind = "type.googleapis.com/google.rpc.ErrorInfo"
    return {"@type": kind, "reason": reason, "domain": "googleapis.com", "metadata": metadata}


def refusal(kind: str, service: str, project: str) -> ApiError:
    """Return the error of a scripted fault."""
    if kind in ("unauthorized", "expired", "skew"):
        message = (
            "Request had invalid authentication credentials. Expected OAuth 2 access token, login cookie or other "
            "valid authentication credential."
        )
        return ApiError(
            401, message, _info("ACCESS_TOKEN_EXPIRED" if kind == "expired" else "CREDENTIALS_MISSING")
        )
    if kind == "permission":
        return ApiError(
            403,
            f"Permission 'aiplatform.customJobs.create' denied on resource '//{service}/projects/{project}' (or "
            "it may not exist).",
            _info("IAM_PERMISSION_DENIED", permission="aiplatform.customJobs.create"),
        )
    if kind == "disabled":
        return ApiError(
            403,
            f"Vertex AI API has not been used in project {project} before or it is disabled.",
            _info("SERVICE_DISABLED", service=service, consumer=f"projects/{project}"),
        )
    if kind == "project":
        return ApiError(403, f"Permission denied on resource project {project}.", _info("CONSUMER_INVALID"))
    if kind == "billing":
        return ApiError(403, f"This API method requires billing on {project}.", _info("BILLING_DISABLED"))
    if kind == "quota":
        failure = {
            "@type": "type.googleapis.com/google.rpc.QuotaFailure",
            "violations": [{"subject": f"project:{project}", "description": _QUOTA}],
        }
        return ApiError(429, _QUOTA, failure)
    if kind == "rate":
        message = (
            f"Quota exceeded for quota metric 'Requests' and limit 'Requests per minute' of service '{service}'."
        )
        return ApiError(429, message, _info("RATE_LIMIT_EXCEEDED", quota_limit="RequestsPerMinutePerProject"))
    if kind == "stockout":
        return ApiError(429, 'There is no more capacity in the zone "us-central1-a"; you can try in another zone.')
    if kind == "invalid":
        violation = {"field": "custom_job.job_spec", "description": "wrong"}
        bad = {"@type": "type.googleapis.com/google.rpc.BadRequest", "fieldViolations": [violation]}
        return ApiError(400, "List of found errors: 1.Field: job_spec; Message: wrong.", bad)
    return ApiError(503, "The service is currently unavailable.")
