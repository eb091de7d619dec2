"""The server's process; the package's docstring tells how to drive it."""

import argparse
import contextlib
import json
import re
import signal
import socket
import sys
import threading
import time
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from tests.fakes.control_plane.errors import ApiError, refusal
from tests.fakes.control_plane.plane import Plane
from tests.fakes.control_plane.tpu import handle_tpu
from tests.fakes.control_plane.vertex import handle_vertex

_SERVICES = {"/v1/": (handle_vertex, "aiplatform.googleapis.com"), "/v2/": (handle_tpu, "tpu.googleapis.com")}
_LOGIN = b"<html><head><title>Sign in to the network</title></head><body>Room number?</body></html>"


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    # Head and body go out apart; the client must not wait 40 ms for the second.
    disable_nagle_algorithm = True
    plane: Plane

    def _answer(self, code: int, body: bytes, kind: str = "application/json; charset=UTF-8", **more: str) -> None:
        self.send_response(code)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        for name, value in more.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def _serve(self) -> None:
        parts = urlsplit(self.path)
        query = dict(parse_qsl(parts.query))
        data = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if parts.path == "/token":
            self._token()
            return
        body = json.loads(data or b"{}")
        if parts.path.startswith("/_fake/"):
            self._fake(parts.path.removeprefix("/_fake/"), query, body)
            return
        scripted = self._fault(parts.path)
        fault = scripted and str(scripted["kind"])
        if fault == "slow":
            time.sleep(scripted.get("s", 5.0))
        if fault and not self._misbehave(fault, parts.path):
            return
        code, answer = self._do(parts.path, query, body)
        if fault == "drop_after":
            self._drop()
        else:
            self._answer(code, json.dumps(answer).encode())

    def _token(self) -> None:
        """Answer as Google's token service does."""
        reason = self.plane.script.get("token")
        if reason is None:
            granted = {"access_token": "token", "expires_in": 3600, "token_type": "Bearer"}
            self._answer(200, json.dumps(granted).encode())
        else:
            refused = {"error": "invalid_grant", "error_description": reason}
            self._answer(400, json.dumps(refused).encode())

    def _do(self, path: str, query: dict[str, str], body: Any) -> tuple[int, Any]:
        for prefix, (handle, _) in _SERVICES.items():
            if path.startswith(prefix):
                try:
                    with self.plane.lock:
                        self.plane.book["requests"] += 1
                        return 200, handle(self.plane, self.command, path, query, body)
                except ApiError as error:
                    return error.code, error.body
        return 404, {"error": {"code": 404, "message": f"no such path {path}", "status": "NOT_FOUND"}}

    def _fault(self, path: str) -> dict[str, Any]:
        """Return the first fault of the script that fits, and use it up."""
        with self.plane.lock:
            for fault in self.plane.script.get("faults", []):
                fits = fault.get("method", self.command) == self.command and fault.get("path", "") in path
                if fits and fault.get("times", 1) > 0:
                    fault["times"] = fault.get("times", 1) - 1
                    self.plane.save()
                    return dict(fault)
        return {}

    def _misbehave(self, kind: str, path: str) -> bool:
        """Answer as the fault wants it; True where the request is done all the same."""
        if kind in ("drop_after", "slow"):
            return True
        if kind == "drop_before":
            self._drop()
        elif kind == "garbage":
            self._answer(200, b'{"name": "projects/p/loc')
        elif kind == "html":
            self._answer(200, _LOGIN, "text/html")
        elif kind == "redirect":
            self._answer(302, b"", "text/html", Location="http://login.invalid/")
        else:
            project = (re.search(r"projects/([^/]+)", path) or ["", "p"])[1]
            service = next(name for prefix, (_, name) in _SERVICES.items() if path.startswith(prefix))
            self._skewed = kind == "skew"
            error = refusal(kind, service, project)
            self._answer(error.code, json.dumps(error.body).encode())
        return False

    _skewed = False

    def date_time_string(self, timestamp: float | None = None) -> str:
        """Return the Date header: a day ahead for a `skew` fault."""
        ahead_s = 86_400 if self._skewed else self.plane.ahead_s
        return formatdate((timestamp or time.time()) + ahead_s, usegmt=True)

    def _drop(self) -> None:
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)

    def _fake(self, what: str, query: dict[str, str], body: Any) -> None:
        with self.plane.lock:
            answer: dict[str, Any] = {}
            if what == "script":
                self.plane.book["script"] = body
                self.plane.save()
            elif what == "preempt":
                answer = {"preempted": self.plane.preempt(query.get("name"))}
            elif what == "report":
                answer = self.plane.report()
            elif what == "end":
                self.plane.end()
        self._answer(200, json.dumps(answer).encode())

    do_GET = do_POST = do_DELETE = do_PATCH = _serve  # noqa: N815 - the standard library's names

    def do_HEAD(self) -> None:
        """Answer 404, with a date."""
        self.send_response(404)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def handle(self) -> None:
        """Serve the connection; a client that breaks it is no news."""
        with contextlib.suppress(ConnectionError):
            super().handle()

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


def main() -> None:
    """Serve until SIGTERM."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--state-dir", type=Path, required=True)
    parser.add_argument("--run", action="store_true")
    parser.add_argument("--script", type=Path)
    options = parser.parse_args()
    Handler.plane = Plane(options.state_dir.absolute(), run=options.run)
    if options.script:
        Handler.plane.book["script"] = json.loads(options.script.read_bytes())
    server = ThreadingHTTPServer(("127.0.0.1", options.port), Handler)
    server.daemon_threads = True
    signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=server.shutdown).start())
    print(json.dumps({"url": f"http://127.0.0.1:{server.server_address[1]}"}), flush=True)
    server.serve_forever(0.05)
    sys.stdout.close()


if __name__ == "__main__":
    main()
