"""Google's control planes over REST: JSON in, JSON out, and every refusal as an error that says what to do.

UnavailableError   no answer, 5xx, a rate limit, no capacity now, a clock that is off, a proxy's page: try again
UnauthorizedError  no token, or one that is refused
ForbiddenError     a right is missing, the API is off, the project is another one or has no billing
TooManyError       a quota is used up or was never given
NotFoundError      404: the name, the project or the location
ConflictError      409: the name is taken
InvalidError       any other 4xx: what was asked for is wrong
Source: https://cloud.google.com/apis/design/errors (google.rpc.Status, ErrorInfo, QuotaFailure, BadRequest).
"""

import json
import random
import re
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from brain_service.cloud.answers import reaching, retry_after_s
from brain_service.errors import (
    BrainError,
    ConflictError,
    ForbiddenError,
    InvalidError,
    NotFoundError,
    TooManyError,
    UnauthorizedError,
    UnavailableError,
)

if TYPE_CHECKING:
    import requests

__all__ = ["RestClient", "is_stockout"]

_SHOWN = 300
_MAX_ANSWER_BYTES = 16 * 1024**2
_MAX_PAGES = 100
# Beyond it Google refuses tokens, and times of the service are read by its own clock.
_SKEW_S = 300.0
_STOCKOUT = re.compile(
    r"no more capacity|stock.?out|insufficient (reserved )?capacity|resources? (are|is) insufficient|"
    r"resource_availability|resource_pool_exhausted|does not have enough resources|"
    r"resources are currently unavailable",
    re.IGNORECASE,
)
_RATE = re.compile(r"per minute|per 100 seconds|per second|rate limit", re.IGNORECASE)


def is_stockout(message: str) -> bool:
    """Tell whether a service's message says that machines are wanting, not rights or quota."""
    return _STOCKOUT.search(message) is not None


class RestClient:
    """One service at one address. Calls block; the client belongs to one thread at a time.

    A call that may be repeated is tried `tries` times within a few seconds; one that creates without a key of its
    own is tried once, so that a lost answer is found out about and not doubled.
    """

    def __init__(
        self,
        session: "requests.Session",
        endpoint: str,
        *,
        service: str,
        project: str,
        timeout_s: float = 30.0,
        tries: int = 3,
        pause_s: float = 0.5,
    ) -> None:
        """`service` is the API's name (`tpu.googleapis.com`), `project` goes into advice."""
        self._session = session
        self._endpoint = endpoint.rstrip("/")
        self._service = service
        self._project = project
        self._timeout_s = timeout_s
        self._tries = tries
        self._pause_s = pause_s
        self._ahead_s = 0.0

    def get(self, path: str, params: Mapping[str, str] | None = None) -> dict[str, Any]:
        """Return a resource.

        Raises:
            BrainError: one of those that the module lists.
        """
        return self._call("GET", path, params, None, again=True)

    def pages(self, path: str, field: str, params: Mapping[str, str] | None = None) -> Iterator[dict[str, Any]]:
        """Yield the items of a list, page after page.

        Raises:
            BrainError: one of those that the module lists.
        """
        asked = dict(params or {})
        for _ in range(_MAX_PAGES):
            page = self.get(path, asked)
            items = page.get(field, [])
            if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
                raise UnavailableError(f"{self._endpoint}{path}: {field!r} is no list of objects; trying again")
            yield from items
            if not page.get("nextPageToken"):
                return
            asked["pageToken"] = str(page["nextPageToken"])
        raise UnavailableError(f"{self._endpoint}{path}: more than {_MAX_PAGES} pages")

    def post(
        self, path: str, body: Mapping[str, Any], params: Mapping[str, str] | None = None, *, again: bool = False
    ) -> dict[str, Any]:
        """Create or act; `again` where the service knows a repetition from a second wish.

        Raises:
            BrainError: one of those that the module lists.
        """
        return self._call("POST", path, params, body, again=again)

    def delete(self, path: str, params: Mapping[str, str] | None = None) -> dict[str, Any]:
        """Delete a resource.

        Raises:
            BrainError: one of those that the module lists.
        """
        return self._call("DELETE", path, params, None, again=True)

    def local_ns(self, stamp: object) -> int | None:
        """Return a service's RFC 3339 time as int64 ns of this machine's clock, None where it is none.

        A machine whose clock is off by seconds or years counts running time rightly all the same.
        """
        try:
            then = datetime.fromisoformat(str(stamp))
        except ValueError:
            return None
        if then.tzinfo is None:
            then = then.replace(tzinfo=UTC)
        return int((then.timestamp() - self._ahead_s) * 1e9)

    def _call(
        self, method: str, path: str, params: Mapping[str, str] | None, body: object, *, again: bool
    ) -> dict[str, Any]:
        last = self._tries if again else 1
        for attempt in range(1, last + 1):
            try:
                return self._once(method, path, params, body)
            except UnavailableError as error:
                if attempt == last or is_stockout(error.detail):
                    raise
                # Full jitter: many robots that lost the network together do not come back together.
                wait_s = error.members.get("retry_after_s") or self._pause_s * 2**attempt * random.random()  # noqa: S311 - no secret
                time.sleep(min(float(wait_s), 5.0))
        raise AssertionError("the loop returns or raises")

    def _once(self, method: str, path: str, params: Mapping[str, str] | None, body: object) -> dict[str, Any]:
        place = f"{method} {self._endpoint}{path}"
        try:
            with reaching(place):
                answer = self._session.request(
                    method,
                    self._endpoint + path,
                    params=params,
                    json=body,
                    timeout=self._timeout_s,
                    # A redirect of a control plane is a portal that wants a login, and would be sent the token.
                    allow_redirects=False,
                    stream=True,
                )
                content = answer.raw.read(_MAX_ANSWER_BYTES + 1, decode_content=True)
                answer.close()
        except UnauthorizedError as error:
            self._ask_the_time()
            raise self._clock_error(place) or error from error
        self._note_time(answer)
        if len(content) > _MAX_ANSWER_BYTES:
            raise UnavailableError(f"{place}: more than {_MAX_ANSWER_BYTES} bytes")
        document = _document(content)
        if 200 <= answer.status_code < 300:
            if document is None:
                raise UnavailableError(
                    f"{place}: {answer.status_code} with a body that is no JSON object ({_shown(content)}); does "
                    "a proxy or a login page stand in between?"
                )
            return document
        if answer.status_code == 401 and (clock := self._clock_error(place)):
            raise clock
        raise self._refusal(place, answer, document, content)

    def _note_time(self, answer: "requests.Response") -> None:
        """Measure how far the service's clock is ahead of this machine's; its Date header has whole seconds."""
        from email.utils import parsedate_to_datetime

        try:
            ahead_s = parsedate_to_datetime(answer.headers["Date"]).timestamp() - time.time()
        except (KeyError, ValueError, TypeError):
            return
        self._ahead_s = ahead_s if abs(ahead_s) > 5 else 0.0

    def _ask_the_time(self) -> None:
        """Ask the service for nothing, without a token, for the sake of its Date header."""
        import requests

        try:
            self._note_time(requests.head(self._endpoint, timeout=5, allow_redirects=False))
        except requests.RequestException:
            return

    def _clock_error(self, place: str) -> UnavailableError | None:
        if abs(self._ahead_s) < _SKEW_S:
            return None
        side = "behind" if self._ahead_s > 0 else "ahead of"
        return UnavailableError(
            f"{place}: this machine's clock is {abs(self._ahead_s):.0f} s {side} Google's, which refuses its "
            "tokens; set it ('timedatectl set-ntp true')"
        )

    def _refusal(
        self, place: str, answer: "requests.Response", document: dict[str, Any] | None, content: bytes
    ) -> BrainError:
        code = int(answer.status_code)
        status = _Status(document)
        said = f"{place}: {code} {status.message or _shown(content)}".rstrip()
        if 300 <= code < 400 or code == 407:
            return UnavailableError(
                f"{said}; not the service but a proxy or a login page answered: open a web page from this machine"
            )
        if code in (408, 425) or code >= 500:
            wait_s = retry_after_s(answer)
            return UnavailableError(said) if wait_s is None else UnavailableError(said, retry_after_s=wait_s)
        if code == 429 or status.status == "RESOURCE_EXHAUSTED" or status.is_quota:
            return self._exhausted(said, answer, status)
        if document is None:
            return UnavailableError(f"{said}; this is no answer of {self._service}: a proxy's?")
        if code == 401:
            return UnauthorizedError(
                f"{said}; run 'gcloud auth application-default login', or renew the key in cloud.credentials_file"
            )
        if code == 403:
            return ForbiddenError(f"{said}; {self._permission_advice(status)}")
        if code == 404:
            return NotFoundError(
                f"{said}; check cloud.project, cloud.region and cloud.zone ('gcloud projects list')"
            )
        if code == 409:
            return ConflictError(said)
        fields = ", ".join(status.fields)
        return InvalidError(said, field=fields) if fields else InvalidError(said)

    def _exhausted(self, said: str, answer: "requests.Response", status: "_Status") -> BrainError:
        if is_stockout(f"{status.message} {status.reason}"):
            return UnavailableError(f"{said}; no machines are free there now")
        if status.reason == "RATE_LIMIT_EXCEEDED" or _RATE.search(status.message):
            return UnavailableError(said, retry_after_s=retry_after_s(answer) or 1.0)
        quota = status.quota or "one that the message names"
        return TooManyError(
            f"{said}; the quota is {quota}: ask for more ('gcloud alpha services quota list --service="
            f"{self._service} --consumer=projects/{self._project}', or IAM & Admin > Quotas in the console), or "
            "take a smaller cloud.topology",
            quota=quota,
        )

    def _permission_advice(self, status: "_Status") -> str:
        if status.reason == "SERVICE_DISABLED" or "has not been used in project" in status.message:
            return f"run 'gcloud services enable {self._service} --project={self._project}'"
        if status.reason == "BILLING_DISABLED":
            return f"run 'gcloud billing projects link {self._project} --billing-account=ACCOUNT'"
        if status.reason in ("CONSUMER_INVALID", "USER_PROJECT_DENIED"):
            return f"is {self._project!r} the project (cloud.project)? 'gcloud projects list' names yours"
        permission = status.metadata.get("permission", "the permission")
        return (
            f"the robot's account lacks {permission} in {self._project!r} (cloud.project): 'gcloud projects "
            f"add-iam-policy-binding {self._project} --member=serviceAccount:ACCOUNT --role=ROLE'; deploy/ lists "
            "the roles"
        )


class _Status:
    """What a google.rpc.Status says, whatever of it is there."""

    def __init__(self, document: dict[str, Any] | None) -> None:
        found = (document or {}).get("error")
        error: Mapping[str, Any] = found if isinstance(found, dict) else {}
        self.message = str(error.get("message", ""))[:_SHOWN]
        self.status = str(error.get("status", ""))
        self.reason = ""
        self.metadata: Mapping[str, Any] = {}
        self.fields: list[str] = []
        self.quota = ""
        for detail in _list(error.get("details")):
            if isinstance(detail, dict):
                self._read(str(detail.get("@type", "")), detail)
        if not self.quota:
            named = re.search(r"[Qq]uota limit '([^']+)'|quota limits?: ([\w./-]+)", self.message)
            self.quota = next((name for name in named.groups() if name), "") if named else ""

    def _read(self, kind: str, detail: Mapping[str, Any]) -> None:
        if kind.endswith("ErrorInfo"):
            self.reason = str(detail.get("reason", ""))
            metadata = detail.get("metadata")
            self.metadata = metadata if isinstance(metadata, dict) else {}
            self.quota = str(self.metadata.get("quota_limit") or self.metadata.get("quota_metric") or "")
            return
        violations = [
            item
            for name in ("violations", "fieldViolations")
            for item in _list(detail.get(name))
            if isinstance(item, dict)
        ]
        if kind.endswith("BadRequest"):
            self.fields = [str(item.get("field", "")) for item in violations]
        if kind.endswith("QuotaFailure") and violations and not self.quota:
            self.quota = str(violations[0].get("subject") or violations[0].get("description") or "")

    @property
    def is_quota(self) -> bool:
        """403 serves some services as 429."""
        return self.reason in ("QUOTA_EXCEEDED", "RATE_LIMIT_EXCEEDED") or "quota exceeded" in self.message.lower()


def _document(content: bytes) -> dict[str, Any] | None:
    try:
        found = json.loads(content or b"{}")
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _shown(content: bytes) -> str:
    return " ".join(content[:_SHOWN].decode("utf-8", "replace").split())
