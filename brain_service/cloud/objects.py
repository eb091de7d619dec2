"""Cloud Storage's JSON API: the few calls that uploads and downloads need, each one attempt.

Not google-cloud-storage: its uploads hide the session that must outlive the process, and on a checksum that does
not hold it deletes the object, which may be somebody else's. Here nothing is ever deleted.
Source: https://cloud.google.com/storage/docs/json_api/v1, .../docs/performing-resumable-uploads.
"""

import base64
import json
import re
import secrets
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import IO, Any
from urllib.parse import quote

from brain_service.cloud.answers import answer_error, reaching
from brain_service.cloud.credentials import authorized_session, storage_endpoint
from brain_service.errors import BrainError, NotFoundError, UnavailableError
from brain_service.settings import CloudSettings

__all__ = ["BEYOND", "Bucket", "Stored", "crc32c_text"]

# Connecting, and the longest silence; a chunk that is being sent counts as no silence.
_TIMEOUT_S = (10.0, 60.0)
_RANGE = re.compile(r"bytes=0-(\d+)")
_KIND = "application/octet-stream"
BEYOND = 416
"""The status of an answer to a range that begins where the object ends, or behind it."""
_INCOMPLETE = 308
_READ_BYTES = 256 * 1024


@dataclass(frozen=True, slots=True)
class Stored:
    """An object as the service describes it; `crc32c` in base64, big-endian, as Google writes it."""

    name: str
    size_bytes: int
    crc32c: str
    generation: str = ""


def crc32c_text(value: int) -> str:
    """Return a CRC-32C as Google writes it."""
    return base64.b64encode(value.to_bytes(4, "big")).decode()


class Bucket:
    """A bucket by name. One thread at a time. Every method raises what `answers` describes; none tries again.

    Raises, in every method:
        UnavailableError: no answer, or "later".
        UnauthorizedError, ForbiddenError, TooManyError: the service refuses this robot; says what to change.
        NotFoundError: there is no such bucket (or, of a session, no such session).
        ConfigError: there are no credentials.
    """

    def __init__(self, settings: CloudSettings, name: str) -> None:
        self.name = name
        self._settings = settings
        self._endpoint = storage_endpoint(settings)
        self._session: Any = None

    def close(self) -> None:
        """Close the connection."""
        if self._session is not None:
            self._session.close()
            self._session = None

    def place(self, name: str) -> str:
        """Return an object's place as a user would type it."""
        return f"gs://{self.name}/{name}"

    def stat(self, name: str) -> Stored | None:
        """Describe an object, None where there is none."""
        try:
            return _stored(self._call("GET", self._object(name), self.place(name)), self.place(name))
        except NotFoundError:
            return None

    def open(self, name: str, start_byte: int = 0) -> Any:
        """Return the answer with an object's bytes from `start_byte` on, to be streamed and closed.

        Its status is 200, 206, or BEYOND.
        """
        headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={start_byte}-"} if start_byte else {})
        asked = {"alt": "media"}
        return self._call(
            "GET",
            self._object(name),
            self.place(name),
            (200, 206, BEYOND),
            params=asked,
            headers=headers,
            stream=True,
        )

    def pieces(self, answer: Any, place: str) -> Iterator[bytes]:
        """Yield the bytes of an opened answer in pieces of at most 256 KiB."""
        with reaching(place):
            yield from answer.iter_content(_READ_BYTES)

    def insert(
        self,
        name: str,
        data: bytes,
        *,
        crc32c: str,
        metadata: Mapping[str, str],
    ) -> Stored:
        """Write a small object that must not be there in one request; it is seen once its checksum holds.

        Raises:
            ConflictError: there is such an object.
        """
        boundary = secrets.token_hex(16)
        head = json.dumps({"name": name, "crc32c": crc32c, "metadata": dict(metadata)})
        body = (
            f"--{boundary}\r\nContent-Type: application/json; charset=UTF-8\r\n\r\n{head}\r\n"
            f"--{boundary}\r\nContent-Type: {_KIND}\r\n\r\n"
        ).encode()
        answer = self._call(
            "POST",
            self._uploads(),
            self.place(name),
            params=_upload_params("multipart", name),
            headers={"Content-Type": f"multipart/related; boundary={boundary}"},
            data=b"".join((body, data, f"\r\n--{boundary}--\r\n".encode())),
        )
        return _stored(answer, self.place(name))

    def begin(self, name: str, size_bytes: int, *, crc32c: str, metadata: Mapping[str, str]) -> str:
        """Begin a resumable upload of an object that must not be there, and return the session's address.

        Whoever knows the address may upload: it is as secret as a token, for a week.

        Raises:
            ConflictError: there is such an object.
        """
        answer = self._call(
            "POST",
            self._uploads(),
            self.place(name),
            params=_upload_params("resumable", name),
            headers={"X-Upload-Content-Type": _KIND, "X-Upload-Content-Length": str(size_bytes)},
            json={"crc32c": crc32c, "metadata": dict(metadata)},
        )
        session = str(answer.headers.get("Location", ""))
        if not session:
            raise UnavailableError(f"{self.place(name)}: the service began no upload session")
        return session

    def copy(self, source: str, target: str) -> Stored:
        """Have the service copy an object of this bucket to a name that must be free; no byte of it travels.

        Raises:
            NotFoundError: there is no such source.
            ConflictError: the name is taken.
        """
        asked = {"ifGenerationMatch": "0"}
        where = f"{self._object(source)}/rewriteTo/b/{quote(self.name, safe='')}/o/{quote(target, safe='')}"
        while True:
            document = _json(self._call("POST", where, self.place(target), params=asked), self.place(target))
            if document.get("done", True):
                return _parsed(document.get("resource"), self.place(target))
            asked["rewriteToken"] = str(document.get("rewriteToken", ""))

    def offset(self, session: str, name: str, size_bytes: int) -> int | Stored:
        """Return how many bytes a session has, or the object that it became.

        Raises:
            ConflictError: another object took the name.
        """
        return self._put(session, name, f"bytes */{size_bytes}", b"")

    def send(
        self, session: str, name: str, data: bytes | IO[bytes], start_byte: int, size_bytes: int
    ) -> int | Stored:
        """Send the bytes of `data` as those from `start_byte` on; return as `offset` does.

        Raises:
            ConflictError: another object took the name.
        """
        length: int = len(data)  # type: ignore[arg-type]  # a metered body has a length too
        return self._put(session, name, f"bytes {start_byte}-{start_byte + length - 1}/{size_bytes}", data)

    def _put(self, session: str, name: str, span: str, data: Any) -> int | Stored:
        place = self.place(name)
        answer = self._call(
            "PUT", session, place, (200, 201, _INCOMPLETE), headers={"Content-Range": span}, data=data
        )
        if answer.status_code != _INCOMPLETE:
            return _stored(answer, place)
        found = _RANGE.fullmatch(answer.headers.get("Range", ""))
        return int(found[1]) + 1 if found else 0

    def _uploads(self) -> str:
        return f"{self._endpoint}/upload/storage/v1/b/{quote(self.name, safe='')}/o"

    def _object(self, name: str) -> str:
        return f"{self._endpoint}/storage/v1/b/{quote(self.name, safe='')}/o/{quote(name, safe='')}"

    def _call(self, method: str, url: str, place: str, good: tuple[int, ...] = (200,), **options: Any) -> Any:
        if self._session is None:
            self._session = authorized_session(self._settings, self._endpoint)
        with reaching(place):
            # 308 is how a session says "go on", and no redirection.
            answer = self._session.request(method, url, allow_redirects=False, timeout=_TIMEOUT_S, **options)
        if answer.status_code in good:
            return answer
        try:
            raise answer_error(answer, place)
        finally:
            answer.close()


def _upload_params(kind: str, name: str) -> dict[str, str]:
    # Generation 0: there is no such object.
    return {"uploadType": kind, "name": name, "ifGenerationMatch": "0"}


def _stored(answer: Any, place: str) -> Stored:
    return _parsed(_json(answer, place), place)


def _json(answer: Any, place: str) -> dict[str, Any]:
    try:
        document = answer.json()
    except ValueError as error:
        raise _garbled(place) from error
    if not isinstance(document, dict):
        raise _garbled(place)
    return document


def _parsed(item: Any, place: str) -> Stored:
    try:
        return Stored(
            str(item["name"]), int(item["size"]), str(item.get("crc32c", "")), str(item.get("generation", ""))
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _garbled(place) from error


def _garbled(place: str) -> BrainError:
    return UnavailableError(f"{place}: what answers there is not Cloud Storage; check cloud.storage_endpoint")
