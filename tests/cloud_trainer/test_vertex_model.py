"""Registering a run's model: against the SDK's proto, and over the wire with a fake that speaks REST.

Simulated: the registry answers on this machine, as does the bucket.
"""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlparse

import pytest
from google.cloud.aiplatform_v1 import UploadModelRequest
from google.protobuf import json_format

from brain_service.cloud.run_status import RunPhase, RunStatus
from brain_service.errors import ConflictError, ForbiddenError, InvalidError, NotFoundError, UnavailableError
from cloud_trainer.cli import main
from cloud_trainer.vertex_model import Registration, register, upload_request
from tests.fakes.gcs import FakeGcs, fake_gcs


class _Registry:
    """Models by name, and operations that take two looks."""

    def __init__(self) -> None:
        self.models: list[dict[str, Any]] = []
        self.looks: dict[str, int] = {}
        self.fails: list[tuple[int, str]] = []
        self.problem: str | None = None
        registry = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._answer(*registry.get(urlparse(self.path).path, parse_qs(urlparse(self.path).query)))

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                self._answer(*registry.upload(self.path, json.loads(body)))

            def _answer(self, status: int, document: dict[str, Any]) -> None:
                data = json.dumps(document).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def get(self, path: str, query: dict[str, list[str]]) -> tuple[int, dict[str, Any]]:
        if self.fails:
            status, message = self.fails.pop()
            return status, {"error": {"code": status, "message": message}}
        if path == "/v1/projects/p/locations/l/models":
            (wanted,) = query["filter"]
            run = wanted.removeprefix("labels.run-id=")
            found = [model for model in self.models if model["labels"]["run-id"] == run]
            return 200, {"models": found} if found else {}
        name = path.removeprefix("/v1/")
        self.looks[name] += 1
        if self.looks[name] < 2:
            return 200, {"name": name}
        if self.problem:
            return 200, {"name": name, "done": True, "error": {"code": 3, "message": self.problem}}
        return 200, {"name": name, "done": True, "response": {"model": self.models[-1]["name"]}}

    def upload(self, path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        assert path == "/v1/projects/p/locations/l/models:upload"
        request = UploadModelRequest.pb(UploadModelRequest())
        json_format.ParseDict(body, request, ignore_unknown_fields=False)
        name = f"projects/p/locations/l/models/{len(self.models) + 1}"
        self.models.append(body["model"] | {"name": name})
        operation = f"{name}/operations/1"
        self.looks[operation] = 0
        return 200, {"name": operation}


@pytest.fixture
def registry() -> Iterator[_Registry]:
    """A registry that listens."""
    made = _Registry()
    thread = threading.Thread(target=made.server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield made
    made.server.shutdown()
    thread.join()
    made.server.server_close()


@pytest.fixture(scope="module")
def bucket() -> Iterator[FakeGcs]:
    """A bucket with a finished run, one that trains, and one that has none."""
    with fake_gcs() as server:
        server.make_bucket("runs")
        server.put("runs", "done/status.json", _status("done", "m1").to_json())
        server.put("runs", "going/status.json", _status("training", None).to_json())
        yield server


def _status(phase: RunPhase, model_id: str | None) -> RunStatus:
    return RunStatus(
        run_id="R-1",
        phase=phase,
        attempt=1,
        step=5,
        steps=5,
        started_ns=1,
        updated_ns=2,
        model_id=model_id,
    )


def _registration(run: str, endpoint: str) -> Registration:
    return Registration(run, "p", "l", "arm", "eu/image:1", endpoint)


def test_a_run_is_registered_once(
    bucket: FakeGcs, registry: _Registry, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [
        *("pipeline", "register", "--run-dir", "gs://runs/done/", "--project", "p", "--location", "l"),
        *("--display-name", "arm", "--serving-image", "eu/image:1", "--api-endpoint", registry.url),
    ]
    for _ in range(2):
        assert main(arguments) == 0
        assert capsys.readouterr().out == "projects/p/locations/l/models/1\n"
    (model,) = registry.models
    assert model["artifactUri"] == "gs://runs/done/models/m1"
    assert model["labels"] == {"continuon-brain": "model", "run-id": "r-1"}


def test_what_cannot_be_registered_is_told(bucket: FakeGcs, registry: _Registry) -> None:
    with pytest.raises(ConflictError, match="is training and has no model"):
        register(_registration("gs://runs/going", registry.url))
    with pytest.raises(NotFoundError, match=r"status\.json does not exist"):
        register(_registration("gs://runs/none", registry.url))
    with pytest.raises(InvalidError, match="not on a bucket"):
        upload_request(_registration("/tmp/run", ""), _status("done", "m1"))
    for status, kind in (
        (403, ForbiddenError),
        (429, UnavailableError),
        (503, UnavailableError),
        (400, InvalidError),
    ):
        registry.fails.append((status, "no such luck"))
        with pytest.raises(kind, match="no such luck"):
            register(_registration("gs://runs/done", registry.url))
    registry.problem = "the image cannot be pulled"
    with pytest.raises(InvalidError, match="the image cannot be pulled"):
        register(_registration("gs://runs/done", registry.url), look_s=0.01)
    registry.models.clear()
    with pytest.raises(UnavailableError, match="is not done after 0 s"):
        register(_registration("gs://runs/done", registry.url), look_s=0.01, timeout_s=0.0)
    with pytest.raises(UnavailableError, match="check the network"):
        register(_registration("gs://runs/done", "http://127.0.0.1:9"))
