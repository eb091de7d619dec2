"""A finished run's bundle as a model in Vertex AI's registry: once, whoever asks how often.

    POST {endpoint}/v1/projects/{project}/locations/{location}/models:upload
Source: google.cloud.aiplatform.v1 `UploadModelRequest`, in proto3 JSON.
"""

import time
from dataclasses import dataclass
from typing import Any

from brain_service.cloud.run_status import STATUS_FILE, RunStatus
from brain_service.datasets.storage import open_folder
from brain_service.errors import ConfigError, ConflictError, ForbiddenError, InvalidError, UnavailableError

__all__ = ["Registration", "register", "upload_request"]

_LOOK_S = 2.0
_TIMEOUT_S = 600.0


@dataclass(frozen=True)
class Registration:
    """Which run's model goes where. `endpoint` replaces Google's, and then nobody is asked who we are."""

    run_dir: str
    project: str
    location: str
    display_name: str
    serving_image: str
    endpoint: str = ""


def upload_request(registration: Registration, status: RunStatus) -> dict[str, Any]:
    """Return the request's body.

    Raises:
        ConflictError: the run has no model yet, or no evaluation that let it pass.
        InvalidError: the bundle is not on a bucket.
    """
    if status.phase != "done" or not status.model_id:
        raise ConflictError(
            f"run {status.run_id} is {status.phase} and has no model; let it come to its end first"
        )
    if not registration.run_dir.startswith("gs://"):
        raise InvalidError(
            f"{registration.run_dir} is not on a bucket; Vertex AI reads gs:// only", field="run_dir"
        )
    return {
        "model": {
            "displayName": registration.display_name,
            "description": f"Run {status.run_id}, {status.steps} steps; bundle {status.model_id}.",
            "artifactUri": f"{registration.run_dir.rstrip('/')}/models/{status.model_id}",
            "containerSpec": {"imageUri": registration.serving_image},
            "labels": _labels(status),
        }
    }


def _labels(status: RunStatus) -> dict[str, str]:
    return {"continuon-brain": "model", "run-id": status.run_id.lower()[:63]}


def register(registration: Registration, look_s: float = _LOOK_S, timeout_s: float = _TIMEOUT_S) -> str:
    """Register a run's model and return its resource name; one that is registered already is only named.

    Raises:
        NotFoundError: the run has no status.
        ConflictError: it has no model yet.
        ConfigError: there are no credentials; says how to get some.
        ForbiddenError: they may not do it.
        InvalidError: the service refuses the request.
        UnavailableError: it does not answer, or not in time; the same again is safe.
    """
    place = open_folder(registration.run_dir)
    status = RunStatus.from_json(place.read(STATUS_FILE), f"{place.location}/{STATUS_FILE}")
    body = upload_request(registration, status)
    session = _session(registration)
    base = registration.endpoint or f"https://{registration.location}-aiplatform.googleapis.com"
    parent = f"{base}/v1/projects/{registration.project}/locations/{registration.location}/models"
    wanted = body["model"]["artifactUri"]
    query = f"labels.run-id={_labels(status)['run-id']}"
    for model in _call(session, "GET", parent, params={"filter": query}).get("models", []):
        if model.get("artifactUri") == wanted:
            return str(model["name"])
    operation = _call(session, "POST", f"{parent}:upload", json=body)
    give_up_s = time.monotonic() + timeout_s
    while not operation.get("done"):
        if time.monotonic() > give_up_s:
            raise UnavailableError(f"{operation['name']} is not done after {timeout_s:g} s; ask again later")
        time.sleep(look_s)
        operation = _call(session, "GET", f"{base}/v1/{operation['name']}")
    if "error" in operation:
        raise InvalidError(f"Vertex AI refuses the model: {operation['error'].get('message', operation['error'])}")
    return str(operation["response"]["model"])


def _session(registration: Registration) -> Any:
    import requests

    if registration.endpoint:
        return requests.Session()
    import google.auth
    from google.auth.exceptions import DefaultCredentialsError
    from google.auth.transport.requests import AuthorizedSession

    try:
        credentials, _ = google.auth.default(scopes=["https://www.googleapis.com/auth/cloud-platform"])
    except DefaultCredentialsError as error:
        raise ConfigError(
            "no credentials of Google Cloud; run 'gcloud auth application-default login', or give the job a "
            "service account"
        ) from error
    return AuthorizedSession(credentials)


def _call(session: Any, method: str, url: str, **what: Any) -> dict[str, Any]:
    """Send a request and return its JSON object.

    Raises:
        ForbiddenError, InvalidError, UnavailableError: as the service says.
    """
    import requests
    from google.auth.exceptions import GoogleAuthError

    try:
        answer = session.request(method, url, timeout=60, **what)
        document = answer.json()
    except (requests.RequestException, GoogleAuthError, ValueError) as error:
        raise UnavailableError(f"{url}: {error}; check the network and start again") from error
    if answer.status_code < 400 and isinstance(document, dict):
        return document
    said = document.get("error", {}).get("message", answer.reason) if isinstance(document, dict) else answer.reason
    detail = f"{url}: {answer.status_code}: {said}"
    if answer.status_code in (401, 403):
        raise ForbiddenError(f"{detail}; give the account roles/aiplatform.user")
    if answer.status_code == 429 or answer.status_code >= 500:
        raise UnavailableError(f"{detail}; start again later")
    raise InvalidError(detail)
