"""The real unit's ExecStart under a service manager of ours: ready, alive, stuck, stopping, activated."""

import itertools
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from brain_service.api.notify import Notifier
from tests.systemd.harness import Supervised, read_unit, seconds, supervised

WATCHDOG_S = 1.5


@pytest.fixture(scope="module")
def unit(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Supervised]:
    """The unit with a fast watchdog; tests leave it running."""
    with supervised(tmp_path_factory.mktemp("unit") / "brain", watchdog_s=WATCHDOG_S) as running:
        running.wait_ready()
        yield running


def test_ready_comes_only_when_every_socket_answers(tmp_path: Path) -> None:
    """At the moment of READY a request through either socket succeeds at once; a moment before, none did."""
    with supervised(tmp_path / "brain") as running:
        refused_s = 0.0
        while not any("READY=1" in message for _, message in list(running.heard)):
            try:
                with socket.create_connection(("127.0.0.1", running.port), timeout=0.2):
                    break
            except OSError:
                refused_s = time.monotonic()
        ready_s = running.wait_ready()
        assert httpx.get(f"{running.url}/livez").status_code == 200
        with httpx.Client(transport=httpx.HTTPTransport(uds=running.uds), base_url="http://brain") as http:
            assert http.get("/readyz").status_code == 200
        assert 0 < refused_s < ready_s
        running.process.send_signal(signal.SIGTERM)
        running.process.wait(60)


def test_the_status_is_in_words(unit: Supervised) -> None:
    status = [line for _, message in unit.heard for line in message.splitlines() if line.startswith("STATUS=")]
    assert status[0] == "STATUS=capture is up; no model yet"


def test_the_watchdog_is_fed_at_half_its_interval(unit: Supervised) -> None:
    before = len(unit.pings())
    time.sleep(WATCHDOG_S * 3)
    came = unit.pings()[before:]
    gaps = [later - earlier for earlier, later in itertools.pairwise(came)]
    assert 3 <= len(came) <= 8
    assert max(gaps) < WATCHDOG_S


def test_a_frozen_loop_feeds_no_watchdog(unit: Supervised) -> None:
    unit.process.send_signal(signal.SIGSTOP)
    time.sleep(0.1)
    before = len(unit.pings())
    time.sleep(WATCHDOG_S * 2)
    assert len(unit.pings()) == before
    unit.process.send_signal(signal.SIGCONT)
    time.sleep(WATCHDOG_S)
    assert len(unit.pings()) > before


def test_no_child_inherits_what_the_manager_said(unit: Supervised) -> None:
    with supervised(unit.data_dir.parent / "another", {"BRAIN_JOBS__RUNNER": "child"}) as other:
        other.wait_ready()
        children = psutil.Process(other.process.pid).children(recursive=True)
        assert children, "the job runner"
        for child in children:
            assert not {"NOTIFY_SOCKET", "WATCHDOG_USEC", "LISTEN_FDS", "LISTEN_PID"} & child.environ().keys()


def test_with_a_runner_of_its_own_the_daemon_starts_none_and_health_tells_whether_it_lives(
    unit: Supervised,
) -> None:
    assert not psutil.Process(unit.process.pid).children(recursive=True)

    def jobs() -> dict[str, str]:
        check: dict[str, str] = httpx.get(f"{unit.url}/health").json()["checks"]["jobs"][0]
        return check

    assert jobs()["status"] == "warn"
    assert "systemctl start continuon-brain-jobs" in jobs()["output"]
    (command,) = read_unit("continuon-brain-jobs.service")["ExecStart"]
    words = command.replace("/var/lib/continuon-brain", str(unit.data_dir)).split()[1:]
    runner = subprocess.Popen([sys.executable, *words], stderr=subprocess.DEVNULL)
    try:
        give_up_s = time.monotonic() + 60
        while jobs()["status"] != "pass" and time.monotonic() < give_up_s:
            time.sleep(0.1)
        assert jobs()["status"] == "pass"
        job = httpx.post(f"{unit.url}/convert", json={}).json()["job_id"]
        while (state := httpx.get(f"{unit.url}/jobs/{job}").json()["state"]) in ("queued", "running"):
            time.sleep(0.1)
        assert state == "failed", "there is nothing to convert, and the runner said so"
    finally:
        runner.terminate()
        assert runner.wait(60) == 0
    assert jobs()["status"] == "warn"


def test_a_stop_with_open_streams_ends_within_the_bound_of_the_unit(tmp_path: Path) -> None:
    with supervised(tmp_path / "brain") as running, httpx.Client(base_url=running.url) as http:
        running.wait_ready()
        job = http.post("/convert", json={}).json()["job_id"]
        episode = http.post("/episodes", json={}).json()["episode_id"]
        with (
            http.stream("GET", f"/jobs/{job}/events"),
            socket.create_connection(("127.0.0.1", running.port)) as websocket,
        ):
            websocket.sendall(
                f"GET /episodes/{episode}/stream HTTP/1.1\r\nHost: x\r\n"
                "Upgrade: websocket\r\nConnection: Upgrade\r\n"
                "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n".encode()
            )
            assert b" 101 " in websocket.recv(4096)
            begun_s = time.monotonic()
            running.process.send_signal(signal.SIGTERM)
            stopping_s = running.wait_for(lambda message: message.startswith("STOPPING=1"))
            assert running.process.wait(seconds(running.unit, "TimeoutStopSec")) == 0
        assert stopping_s - begun_s < 1
        # The manager waits for what was asked for last: no message comes later than it may.
        assert any(
            message.startswith("EXTEND_TIMEOUT_USEC=") for at_s, message in running.heard if at_s >= stopping_s
        )


def test_inherited_sockets_are_served_and_hold_who_comes_before_the_start(tmp_path: Path) -> None:
    running = Supervised(tmp_path / "brain", activated=True)
    try:
        with socket.create_connection(("127.0.0.1", running.port)) as early:
            early.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
            running.start()
            early.settimeout(30)
            assert b" 200 " in early.recv(4096)
        running.wait_ready()
        with httpx.Client(transport=httpx.HTTPTransport(uds=running.uds), base_url="http://brain") as http:
            assert http.get("/livez").status_code == 200
        assert not (tmp_path / "brain" / "brain.sock").exists()
        running.process.send_signal(signal.SIGTERM)
        assert running.process.wait(60) == 0
        # The manager's socket outlives the daemon: whoever connects now waits for the next one.
        socket.create_connection(("127.0.0.1", running.port)).close()
        assert Path(running.uds).exists()
    finally:
        running.close()


def test_a_setting_that_contradicts_the_socket_unit_is_fatal_and_told_to_the_manager(tmp_path: Path) -> None:
    with supervised(tmp_path / "brain", {"BRAIN_PORT": "9000"}, activated=True) as running:
        assert running.process.wait(60) == 2
        said = running.log_path.read_text()
        assert "port = 9000 is set, but continuon-brain.socket listens on" in said
        assert any(message.startswith("STATUS=refuses to start: port = 9000") for _, message in running.heard)
        assert not any("READY=1" in message for _, message in running.heard)


@pytest.mark.long
def test_a_crash_loop_ends_in_a_daemon_that_records(tmp_path: Path) -> None:
    """Five deaths within seconds of a start, whatever killed it; then safe mode, until a stop in order."""
    data_dir = tmp_path / "brain"
    for _ in range(5):
        with supervised(data_dir, {"BRAIN_JOBS__RUNNER": "child"}) as running:
            running.wait_ready()
            running.process.kill()
    with supervised(data_dir, {"BRAIN_JOBS__RUNNER": "child"}) as running, httpx.Client() as http:
        running.wait_ready()
        assert any("STATUS=safe mode: the daemon died 5 times in a row" in message for _, message in running.heard)
        episode = http.post(f"{running.url}/episodes", json={}).json()["episode_id"]
        step = {"observation": {"x": [1.0]}, "action": {"u": [0.5]}}
        assert http.post(f"{running.url}/episodes/{episode}/steps", json=step).status_code == 200
        assert http.get(f"{running.url}/readyz").status_code == 200
        checks = http.get(f"{running.url}/health").json()["checks"]
        assert checks["start"][0]["status"] == "warn"
        assert "systemctl restart" in checks["start"][0]["output"]
        assert "safe mode" in checks["jobs"][0]["output"]
        refused = http.post(f"{running.url}/sessions", json={})
        assert refused.status_code == 503
        assert "safe mode" in refused.json()["detail"]
        assert not psutil.Process(running.process.pid).children(recursive=True)
        running.process.kill()
    with supervised(data_dir) as running:
        running.wait_ready()
        assert "safe mode" in str(running.heard), "a kill ends no safe mode"
        running.process.terminate()
        assert running.process.wait(60) == 0
    with supervised(data_dir) as running:
        running.wait_ready()
        assert "safe mode" not in str(running.heard)


@pytest.mark.parametrize("abstract", [False, True])
def test_both_kinds_of_address_are_reached(tmp_path: Path, abstract: bool) -> None:
    address = f"@brain-test-{os.getpid()}" if abstract else str(tmp_path / "n")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(address.replace("@", "\0"))
        notifier = Notifier(address)
        notifier.ready("two\nlines")
        notifier.extend(2.5)
        assert manager.recv(100) == b"READY=1\nSTATUS=two lines"
        assert manager.recv(100) == b"EXTEND_TIMEOUT_USEC=2500000"
        notifier.close()


def test_a_manager_that_is_gone_or_deaf_holds_nothing_up(tmp_path: Path) -> None:
    Notifier(str(tmp_path / "nobody")).alive()
    Notifier(None).alive()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as deaf:
        deaf.bind(str(tmp_path / "deaf"))
        notifier = Notifier(str(tmp_path / "deaf"))
        begun_s = time.monotonic()
        for number in range(2000):
            notifier.status(f"status {number}")
        assert time.monotonic() - begun_s < 5
        notifier.close()
