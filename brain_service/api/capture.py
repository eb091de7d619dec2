"""The hot way of a step: `POST /episodes/{id}/steps` and `WS /episodes/{id}/stream`, taken before the router.

Raw ASGI, since routing, dependency solving and response objects cost more than the step itself. The router
only documents these paths.
"""

import logging

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from brain_service.api.multipart import parse_multipart
from brain_service.api.problems import encode_problem, problem_headers
from brain_service.api.stream import serve_stream
from brain_service.episodes.store import EpisodeStore
from brain_service.errors import BrainError, TooLargeError, UnavailableError, UnsupportedMediaError
from brain_service.settings import CaptureSettings

__all__ = ["CaptureTransport"]

log = logging.getLogger(__name__)

ROOT = "/episodes/"
JSON, NDJSON, MSGPACK, MULTIPART = (
    "application/json",
    "application/x-ndjson",
    "application/msgpack",
    "multipart/form-data",
)
MEDIA_TYPES = {
    b"": JSON,
    b"application/json": JSON,
    b"application/x-www-form-urlencoded": JSON,  # what `curl -d` calls any body
    b"application/x-ndjson": NDJSON,
    b"application/ndjson": NDJSON,
    b"application/jsonl": NDJSON,
    b"application/msgpack": MSGPACK,
    b"application/x-msgpack": MSGPACK,
    b"multipart/form-data": MULTIPART,
}
"""Every media type that a body of steps may have, and how it is read."""

Headers = list[tuple[bytes, bytes]]


class CaptureTransport:
    """ASGI middleware that answers the two hot paths itself and passes every other connection on."""

    def __init__(self, app: ASGIApp, store: EpisodeStore, settings: CaptureSettings) -> None:
        self.app = app
        self._store = store
        self._settings = settings
        self._arriving_bytes = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one ASGI connection."""
        kind, path = scope["type"], scope.get("path", "")
        if kind == "http" and scope["method"] == "POST" and (episode_id := _between(path, "/steps")):
            await self._take_steps(episode_id, scope, receive, send)
        elif kind == "websocket" and (episode_id := _between(path, "/stream")):
            await serve_stream(self._store, episode_id, scope, receive, send)
        else:
            await self.app(scope, receive, send)

    async def _take_steps(self, episode_id: str, scope: Scope, receive: Receive, send: Send) -> None:
        """Read the request and send its answer; a client that leaves before the end of its body gets none."""
        headers: dict[bytes, bytes] = dict(scope["headers"])
        try:
            body = await self._read(headers.get(b"content-length", b""), receive)
            if body is None:
                return
            _require_plain(headers.get(b"content-encoding", b""))
            answer = await self._append(episode_id, headers.get(b"content-type", b""), body)
        except BrainError as error:
            await _refuse(error, scope, send)
        except Exception:
            # The hot way stands before FastAPI and its error handling, so it has a boundary of its own.
            log.exception("unexpected error", extra={"path": scope["path"]})
            await _refuse(BrainError("unexpected error; the daemon's log has the details"), scope, send)
        else:
            await _send(send, 200, [(b"content-type", b"application/json")], answer)

    async def _read(self, declared: bytes, receive: Receive) -> bytes | None:
        """Return the whole body; None if the client left.

        Raises:
            TooLargeError: over `max_body_bytes`, by its header (nothing is read then) or as it arrives.
            UnavailableError: bodies that are still arriving hold more than `max_queued_bytes` together. One that
                comes in one piece, as a step does, is never refused for that.
        """
        limit_bytes = self._settings.max_body_bytes
        if declared.isdigit() and int(declared) > limit_bytes:
            raise TooLargeError(
                f"the body has {declared.decode()} bytes, the limit is {limit_bytes}; send smaller batches"
            )
        parts: list[bytes] = []
        size_bytes = 0
        try:
            while True:
                message: Message = await receive()
                if message["type"] != "http.request":
                    return None
                part: bytes = message.get("body", b"")
                more = message.get("more_body", False)
                if not more and not parts:
                    return part
                size_bytes += len(part)
                self._arriving_bytes += len(part)
                parts.append(part)
                self._require_room(size_bytes)
                if not more:
                    return b"".join(parts)
        finally:
            self._arriving_bytes -= size_bytes

    def _require_room(self, size_bytes: int) -> None:
        if size_bytes > self._settings.max_body_bytes:
            raise TooLargeError(
                f"the body is over the limit of {self._settings.max_body_bytes} bytes; send smaller batches"
            )
        if self._arriving_bytes > self._settings.max_queued_bytes:
            raise UnavailableError(
                f"bodies of {self._arriving_bytes} bytes are arriving at once, the limit is max_queued_bytes = "
                f"{self._settings.max_queued_bytes}; send smaller batches, or later",
                retry_after_s=1.0,
            )

    async def _append(self, episode_id: str, content_type: bytes, body: bytes) -> bytes:
        named = content_type.partition(b";")[0].strip().lower()
        kind = MEDIA_TYPES.get(named)
        if kind is None:
            raise UnsupportedMediaError(
                f"steps come as {', '.join((JSON, NDJSON, MSGPACK, MULTIPART))}, not as "
                f"{named.decode('latin-1')[:100]!r}"
            )
        if kind == MULTIPART:
            body, kind = await self._parse_form(content_type, body), MSGPACK
        done = await self._store.ingest(episode_id, (body,), kind)
        if done.error is not None:
            raise done.error
        assert done.appended is not None, "a body without an error is accepted"
        return b'{"step_index":%d,"durable_through":%d}' % (
            done.appended.step_index,
            done.appended.durable_through,
        )

    async def _parse_form(self, content_type: bytes, body: bytes) -> bytes:
        """Return the msgpack body of a form, whose bytes count as arriving while it is read: it is copied.

        Raises:
            UnavailableError: too many of them are read already.
            BrainError: as `parse_multipart`.
        """
        self._arriving_bytes += len(body)
        try:
            self._require_room(len(body))
            return await parse_multipart(content_type.decode("latin-1"), body)
        finally:
            self._arriving_bytes -= len(body)


def _require_plain(coding: bytes) -> None:
    if coding.strip().lower() not in (b"", b"identity"):
        raise UnsupportedMediaError(
            f"bodies are taken uncompressed, not with Content-Encoding {coding.decode('latin-1')[:100]!r}; "
            "leave the header out"
        )


def _between(path: str, ending: str) -> str:
    """Return the episode id of a path, or nothing if the path is another."""
    if not path.startswith(ROOT) or not path.endswith(ending):
        return ""
    found = path[len(ROOT) : -len(ending)]
    return "" if "/" in found else found


async def _refuse(error: BrainError, scope: Scope, send: Send) -> None:
    document = error.problem()
    if error.status >= 500:
        log.warning("request failed", extra={"path": scope["path"], **document})
    headers = [(name.lower().encode(), value.encode()) for name, value in problem_headers(document).items()]
    await _send(send, error.status, headers, encode_problem(document))


async def _send(send: Send, status: int, headers: Headers, body: bytes) -> None:
    headers.append((b"content-length", b"%d" % len(body)))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
