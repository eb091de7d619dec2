"""Traces of a real daemon and a real job, received by a collector that speaks OTLP over HTTP."""

import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from brain_service.errors import ConfigError
from brain_service.settings import Settings
from brain_service.tracing import Tracing
from tests.jobs.running import wait_until
from tests.processes import Daemon

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


class Collector:
    """Keeps the spans that it is sent."""

    def __init__(self) -> None:
        self.spans: list[Any] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = ExportTraceServiceRequest.FromString(self.rfile.read(int(self.headers["Content-Length"])))
                if self.path == "/v1/traces":
                    for resource in body.resource_spans:
                        outer.spans += [span for scope in resource.scope_spans for span in scope.spans]
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def named(self, name: str) -> list[Any]:
        return [span for span in self.spans if span.name == name]


@pytest.fixture
def collector() -> Iterator[Collector]:
    found = Collector()
    thread = threading.Thread(target=found.server.serve_forever)
    thread.start()
    yield found
    found.server.shutdown()
    found.server.server_close()
    thread.join()


def attributes(span: Any) -> dict[str, Any]:
    return {item.key: item.value.string_value or item.value.int_value for item in span.attributes}


def test_requests_and_stages_are_traced(collector: Collector, tmp_path: Path) -> None:
    daemon = Daemon(tmp_path / "brain", env={"BRAIN_OTLP_ENDPOINT": collector.url}).start()
    try:
        httpx.get(f"{daemon.url}/jobs/none", headers={"traceparent": PARENT, "X-Request-ID": "mine"})
        httpx.post(f"{daemon.url}/convert", json={}).raise_for_status()
        wait_until(lambda: bool(collector.named("stage convert")), "the stage's span")
        wait_until(lambda: bool(collector.named("GET /jobs/{job_id}")), "the request's span")
    finally:
        daemon.stop()
    (span,) = collector.named("GET /jobs/{job_id}")
    assert span.trace_id.hex() == PARENT.split("-")[1] and span.parent_span_id.hex() == PARENT.split("-")[2]
    told = attributes(span)
    assert told["http.response.status_code"] == 404 and told["brain.request_id"] == "mine"
    assert 0 < span.end_time_unix_nano - span.start_time_unix_nano < 10**10
    # Nothing was recorded, so the conversion failed, and its span says so.
    (stage,) = collector.named("stage convert")
    assert stage.status.code == stage.status.STATUS_CODE_ERROR and attributes(stage)["brain.job_kind"] == "convert"


def test_a_collector_that_is_away_costs_no_answer(tmp_path: Path) -> None:
    daemon = Daemon(tmp_path / "brain", env={"BRAIN_OTLP_ENDPOINT": "http://127.0.0.1:9"}).start()
    try:
        for _ in range(50):
            assert httpx.get(f"{daemon.url}/livez").status_code == 200
    finally:
        assert daemon.stop() == 0


def test_without_the_setting_nothing_is_imported() -> None:
    program = (
        "import sys; from brain_service.settings import Settings; from brain_service.tracing import Tracing;"
        " assert Tracing.of(Settings(), 'brain') is None;"
        " sys.exit(any(name.startswith('opentelemetry') for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_without_the_sdk_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [*sys.modules]:
        if name.startswith("opentelemetry.sdk"):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(ConfigError, match=r"continuon-brain\[otel\]"):
        Tracing.of(Settings(otlp_endpoint="http://127.0.0.1:4318"), "brain")
