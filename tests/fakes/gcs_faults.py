"""A proxy before fake-gcs-server that speaks real HTTP, has the network's bad days on request, and real sessions.

fake-gcs-server takes a question for a session's offset for the end of the upload, and ignores conditions on
sessions. So the proxy keeps the sessions itself, as Google documents them (offsets in steps of 256 KiB, 308,
`bytes */N`, 404 once expired, conditions and checksum at the end), and hands a whole object to the server. All
else passes through.
Source: https://cloud.google.com/storage/docs/performing-resumable-uploads. Results are simulated.
"""

import base64
import contextlib
import http.client
import json
import secrets
import socket
import struct
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import IO, Any, Literal
from urllib.parse import parse_qs, quote, unquote, urlsplit

import google_crc32c

from .gcs import FakeGcs, fake_gcs

STEP_BYTES = 256 * 1024
Kind = Literal["begin", "offset", "send", "insert", "stat", "list", "media", "other"]
Action = Literal["status", "drop", "lose", "tear", "garble", "expire"]


@dataclass(frozen=True)
class Fault:
    """What befalls the next request of a kind (None: of any), after `skip` of them passed.

    status  it is answered with `code`, `headers` and a Google error of `reason`, and nothing is done
    drop    the connection is reset before anything is done
    lose    it is done, and the connection is reset before the answer
    tear    the connection is reset once `bytes_in` bytes of the body came; a session keeps whole steps of them
    garble  it is done, and the answer names a wrong checksum
    expire  all sessions are forgotten first
    """

    action: Action
    kind: Kind | None = None
    code: int = 503
    headers: tuple[tuple[str, str], ...] = ()
    reason: str = "backendError"
    message: str = "injected"
    bytes_in: int = 0
    skip: int = 0


@dataclass
class Session:
    """An upload that has begun; `done` is the object's document once it ended."""

    bucket: str
    name: str
    if_absent: bool
    wanted: dict[str, Any]
    file: IO[bytes]
    have: int = 0
    done: dict[str, Any] | None = None


@dataclass
class GcsFaults:
    """The proxy's state: `log` has the kind of each request, `commits` the objects in the order they appeared."""

    server: FakeGcs
    url: str = ""
    plan: list[Fault] = field(default_factory=list)
    log: list[str] = field(default_factory=list)
    commits: list[str] = field(default_factory=list)
    sessions: dict[str, Session] = field(default_factory=dict)
    body_bytes: int = 0
    hold: "Hold | None" = None
    lock: threading.RLock = field(default_factory=threading.RLock)

    def environment(self) -> dict[str, str]:
        """Return the variables that lead a child process here."""
        return self.server.environment() | {"STORAGE_EMULATOR_HOST": self.url}

    def objects(self, bucket: str, prefix: str = "") -> dict[str, bytes]:
        """Return every object's bytes by name, asked of the server behind."""
        found: dict[str, bytes] = {}
        for item in self._listing(bucket, prefix):
            where = f"/storage/v1/b/{bucket}/o/{quote(item['name'], safe='')}?alt=media"
            found[item["name"]] = self._get(where)
        return found

    def metadata(self, bucket: str, name: str) -> dict[str, Any]:
        """Return an object's document, asked of the server behind."""
        return dict(json.loads(self._get(f"/storage/v1/b/{bucket}/o/{quote(name, safe='')}")))

    def reset(self) -> None:
        """Forget faults, logs and sessions."""
        with self.lock:
            self.plan.clear()
            self.log.clear()
            self.commits.clear()
            self.sessions.clear()
            self.body_bytes, self.hold = 0, None

    def take(self, kind: Kind) -> Fault | None:
        """Return what befalls a request, and note it."""
        with self.lock:
            self.log.append(kind)
            for index, fault in enumerate(self.plan):
                if fault.kind in (None, kind):
                    if fault.skip:
                        self.plan[index] = Fault(**{**fault.__dict__, "skip": fault.skip - 1})
                        return None
                    del self.plan[index]
                    return fault
            return None

    def _listing(self, bucket: str, prefix: str) -> list[dict[str, Any]]:
        document = json.loads(self._get(f"/storage/v1/b/{bucket}/o?prefix={quote(prefix, safe='')}"))
        return list(document.get("items", ()))

    def _get(self, where: str) -> bytes:
        with contextlib.closing(self.connect()) as link:
            link.request("GET", where)
            answer = link.getresponse()
            data = answer.read()
            assert answer.status == 200, (where, answer.status, data)
            return data

    def connect(self) -> http.client.HTTPConnection:
        """Return a connection to the server behind."""
        return http.client.HTTPConnection(urlsplit(self.server.url).netloc, timeout=30)


class Hold:
    """Stops the n-th request from now on, before or after it is done, until the test lets it go."""

    def __init__(self, after: int, *, done: bool) -> None:
        self.left = after
        self.done = done
        self.reached = threading.Event()
        self.release = threading.Event()

    def at(self, *, done: bool) -> None:
        """Wait here if this is the moment."""
        if not done:
            self.left -= 1
        if self.left == 0 and done == self.done and not self.reached.is_set():
            self.reached.set()
            self.release.wait(30)


class _ResetError(Exception):
    """The connection is to be reset."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    faults: GcsFaults

    def log_message(self, *_: Any) -> None:
        pass

    def handle_any(self) -> None:
        parts = urlsplit(self.path)
        query = {name: values[-1] for name, values in parse_qs(parts.query, keep_blank_values=True).items()}
        kind = self._kind(parts.path, query)
        hold, fault = self.faults.hold, self.faults.take(kind)
        try:
            if hold is not None:
                hold.at(done=False)
            self._serve(kind, parts.path, query, fault, hold)
        except (_ResetError, OSError):
            self._reset()

    do_GET = do_POST = do_PUT = do_DELETE = handle_any  # noqa: N815

    def _kind(self, path: str, query: dict[str, str]) -> Kind:
        if self.command == "PUT":
            return "offset" if self.headers.get("Content-Range", "").startswith("bytes */") else "send"
        if path.startswith("/upload/"):
            return "begin" if query.get("uploadType") == "resumable" else "insert"
        if self.command == "GET" and "/o/" in path:
            return "media" if query.get("alt") == "media" else "stat"
        return "list" if self.command == "GET" and path.endswith("/o") else "other"

    def _serve(self, kind: Kind, path: str, query: dict[str, str], fault: Fault | None, hold: Hold | None) -> None:
        action = fault.action if fault else None
        if action == "drop":
            raise _ResetError
        if action == "expire":
            self.faults.sessions.clear()
        if fault is not None and action == "status":
            self._body()
            self._refuse(fault.code, fault.message, fault.reason, dict(fault.headers))
            return
        limit = fault.bytes_in if fault is not None and action == "tear" else None
        if kind == "begin":
            status, headers, data = self._begin(path, query)
        elif kind in ("offset", "send") and "upload_id" in query:
            status, headers, data = self._put(query["upload_id"], limit)
        else:
            if limit is not None:
                self.rfile.read(min(limit, int(self.headers.get("Content-Length", 0))))
                raise _ResetError
            status, headers, data = self._pass_on(kind, query)
        if hold is not None:
            hold.at(done=True)
        if action == "lose":
            raise _ResetError
        if action == "garble" and status == 200:
            data = json.dumps(json.loads(data) | {"crc32c": "AAAAAA=="}).encode()
        self._answer(status, headers, data)

    def _begin(self, path: str, query: dict[str, str]) -> tuple[int, dict[str, str], bytes]:
        wanted = json.loads(self._body() or b"{}")
        bucket, name = path.split("/")[5], query.get("name") or wanted["name"]
        if self._forward("GET", f"/storage/v1/b/{bucket}", b"", {})[0] != 200:
            return 404, {}, _error(404, "The specified bucket does not exist.", "notFound")
        if_absent = query.get("ifGenerationMatch") == "0"
        if if_absent and self._exists(bucket, name):
            return 412, {}, _error(412, "At least one of the pre-conditions did not hold.", "conditionNotMet")
        upload_id = secrets.token_hex(8)
        spool = tempfile.TemporaryFile()  # noqa: SIM115  it lives as long as the session
        self.faults.sessions[upload_id] = Session(bucket, name, if_absent, wanted, spool)
        where = f"{self.faults.url}/upload/storage/v1/b/{bucket}/o?uploadType=resumable&upload_id={upload_id}"
        return 200, {"Location": where}, b""

    def _put(self, upload_id: str, limit: int | None) -> tuple[int, dict[str, str], bytes]:
        session = self.faults.sessions.get(upload_id)
        if session is None:
            self._body()
            return 404, {}, _error(404, "The upload session was not found.", "notFound")
        span, _, total = self.headers["Content-Range"].removeprefix("bytes ").partition("/")
        with self.faults.lock:
            if session.done is None and span != "*":
                first, last = (int(part) for part in span.split("-"))
                assert first + int(self.headers["Content-Length"]) == last + 1
                if not self._take(session, first, int(total), limit):
                    return (
                        503,
                        {},
                        _error(503, "The chunk does not begin where the last one ended.", "backendError"),
                    )
            else:
                self._body()
            if session.done is None and total != "*" and session.have == int(total):
                status, data = self._commit(session)
                return status, {}, data
            if session.done is not None:
                return 200, {}, json.dumps(session.done).encode()
            return 308, {"Range": f"bytes=0-{session.have - 1}"} if session.have else {}, b""

    def _take(self, session: Session, first: int, total: int, limit: int | None) -> bool:
        """Keep a chunk's bytes behind those that are there; of a torn one, whole steps."""
        length = int(self.headers["Content-Length"])
        if first > session.have:
            self._body()
            return False
        self.rfile.read(skipped := min(session.have - first, length))
        session.file.seek(session.have)
        left, torn = length - skipped, False
        if limit is not None and limit < left:
            left, torn = limit, True
        while left:
            try:
                piece = self.rfile.read(min(left, 65536))
            except OSError:
                piece = b""
            if not piece:
                torn = True
                break
            session.file.write(piece)
            session.have += len(piece)
            self.faults.body_bytes += len(piece)
            left -= len(piece)
        if session.have < total:
            session.have -= session.have % STEP_BYTES
        if torn:
            raise _ResetError
        return True

    def _commit(self, session: Session) -> tuple[int, bytes]:
        session.file.seek(0)
        content = session.file.read(session.have)
        crc32c = base64.b64encode(google_crc32c.value(content).to_bytes(4, "big")).decode()
        if session.wanted.get("crc32c") not in (None, "", crc32c):
            return 400, _error(400, f"Provided CRC32C does not match calculated CRC32C {crc32c}.", "invalid")
        condition = "&ifGenerationMatch=0" if session.if_absent else ""
        where = f"/upload/storage/v1/b/{session.bucket}/o?uploadType=multipart&name={quote(session.name, safe='')}"
        head = json.dumps({"name": session.name, "metadata": session.wanted.get("metadata", {})})
        body = (
            f"--X\r\nContent-Type: application/json\r\n\r\n{head}\r\n--X\r\n"
            "Content-Type: application/octet-stream\r\n\r\n"
        ).encode()
        status, _, data = self._forward(
            "POST",
            where + condition,
            body + content + b"\r\n--X--\r\n",
            {"Content-Type": "multipart/related; boundary=X"},
        )
        if status == 200:
            session.done = json.loads(data)
            self.faults.commits.append(session.name)
        return status, data

    def _pass_on(self, kind: Kind, query: dict[str, str]) -> tuple[int, dict[str, str], bytes]:
        body = self._body()
        self.faults.body_bytes += len(body)
        _, _, copied = urlsplit(self.path).path.partition("/rewriteTo/b/")
        if copied:
            bucket, _, name = unquote(copied).partition("/o/")
            # The server behind ignores the condition.
            if query.get("ifGenerationMatch") == "0" and self._exists(bucket, name):
                return 412, {}, _error(412, "At least one of the pre-conditions did not hold.", "conditionNotMet")
            self.faults.commits.append(name)
        kept = ("Content-Type", "Range")
        headers = {name: self.headers[name] for name in kept if name in self.headers}
        status, answered, data = self._forward(self.command, self.path, body, headers)
        if kind == "insert" and status == 200:
            self.faults.commits.append(query.get("name", ""))
        told = ("Content-Type", "Content-Range", "X-Goog-Hash", "X-Goog-Generation")
        return status, {name: value for name, value in answered.items() if name.title() in told}, data

    def _forward(
        self, method: str, where: str, body: bytes, headers: dict[str, str]
    ) -> tuple[int, dict[str, str], bytes]:
        with contextlib.closing(self.faults.connect()) as link:
            link.request(method, where, body or None, headers)
            answer = link.getresponse()
            return answer.status, dict(answer.getheaders()), answer.read()

    def _exists(self, bucket: str, name: str) -> bool:
        return self._forward("GET", f"/storage/v1/b/{bucket}/o/{quote(name, safe='')}", b"", {})[0] == 200

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _refuse(self, code: int, message: str, reason: str, headers: dict[str, str]) -> None:
        self._answer(code, headers, _error(code, message, reason))

    def _answer(self, status: int, headers: dict[str, str], data: bytes) -> None:
        self.send_response_only(status)
        for name, value in {
            "Date": self.date_time_string(),
            **headers,
            "Content-Length": str(len(data)),
        }.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _reset(self) -> None:
        """Close with a reset instead of an orderly end."""
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        with contextlib.suppress(OSError):
            self.connection.close()


def _error(code: int, message: str, reason: str) -> bytes:
    errors = [{"message": message, "domain": "global", "reason": reason}]
    return json.dumps({"error": {"code": code, "message": message, "errors": errors}}).encode()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, *_: Any) -> None:
        pass


@contextlib.contextmanager
def faulty_gcs() -> Iterator[GcsFaults]:
    """Run a server and the proxy before it; STORAGE_EMULATOR_HOST of this process leads to the server itself."""
    with fake_gcs() as server:
        faults = GcsFaults(server)
        listening = _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"faults": faults}))
        faults.url = f"http://127.0.0.1:{listening.server_address[1]}"
        thread = threading.Thread(target=listening.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield faults
        finally:
            listening.shutdown()
            listening.server_close()
            thread.join(5)
