"""The daemon as a process: how it starts, what it refuses, what it loads, how it stops."""

import os
import re
import signal
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path

import httpx
import psutil
import pytest

from tests.processes import Daemon, free_port, running_daemon

FRAMEWORKS = ("jax", "jaxlib", "flax", "optax", "orbax", "tensorflow", "torch", "onnxruntime")


def serve(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Run `brain serve` that is expected to refuse; return what it said."""
    return subprocess.run(
        [sys.executable, "-m", "brain_service", "serve", *arguments],
        capture_output=True,
        text=True,
        timeout=30,
        env={**os.environ, **env},
    )


def assert_refusal(done: subprocess.CompletedProcess[str], *words: str) -> None:
    """One line on standard error that names the value and the next step; exit code 2; no traceback."""
    lines = [line for line in done.stderr.splitlines() if line.startswith("brain serve: ")]
    assert done.returncode == 2, done.stderr
    assert len(lines) == 1, done.stderr
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in lines[0]


def test_a_port_in_use_is_told_with_the_next_step(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        assert_refusal(serve("--data-dir", str(tmp_path), "--port", port), port, "in use", "--port")


def test_a_data_directory_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    # Root may write anywhere; a path below a file, and one below /proc, refuse root too.
    (tmp_path / "file").write_text("")
    assert_refusal(serve("--data-dir", str(tmp_path / "file" / "brain")), "data_dir", "--data-dir")
    assert_refusal(serve("--data-dir", "/proc/brain"), "/proc/brain", "--data-dir")


def test_a_second_daemon_on_the_same_data_is_refused(daemon: Daemon) -> None:
    done = serve("--data-dir", str(daemon.data_dir), "--port", str(free_port()))
    assert_refusal(done, "another daemon", str(daemon.data_dir))


def test_a_public_address_needs_tokens(tmp_path: Path) -> None:
    done = serve("--data-dir", str(tmp_path), "--host", "0.0.0.0", "--port", str(free_port()))
    assert_refusal(done, "0.0.0.0", "tokens_file")


@pytest.mark.parametrize("host", ["no.such.host.invalid", "203.0.113.7"])
def test_an_address_that_is_not_ours_is_refused(tmp_path: Path, host: str) -> None:
    assert_refusal(serve("--data-dir", str(tmp_path), "--host", host), host)


def test_an_unknown_setting_is_fatal(tmp_path: Path) -> None:
    assert_refusal(serve("--data-dir", str(tmp_path), BRAIN_PROT="1"), "prot", "port")


def test_a_database_that_is_none_is_moved_aside_and_told(tmp_path: Path) -> None:
    data_dir = tmp_path / "brain"
    data_dir.mkdir()
    damaged = b"this is not SQLite at all" * 100
    (data_dir / "brain.db").write_bytes(damaged)
    with running_daemon(data_dir) as daemon:
        assert httpx.post(f"{daemon.url}/episodes", json={}).status_code == 201
    assert [path.read_bytes() for path in data_dir.glob("brain.db.damaged-*")] == [damaged]
    assert "brain.db" in daemon.log_path.read_text()


def test_it_loads_no_framework_even_after_work(tmp_path: Path) -> None:
    """`-X importtime` names every module that this process, and none of its children, imports."""
    daemon = Daemon(tmp_path / "brain", flags=("-X", "importtime")).start()
    with httpx.Client(base_url=daemon.url) as http:
        episode = http.post("/episodes", json={}).json()["episode_id"]
        body = {"observation": {"state": [1.0]}, "action": {"command": [0.5]}}
        http.post(f"/episodes/{episode}/steps", json=body)
        http.post(f"/episodes/{episode}/end", json={})
        assert http.post("/convert", json={}).status_code == 202
        assert http.get("/health").status_code in (200, 503)
        http.get("/models")
        http.post("/sessions", json={})
    libraries = Path(f"/proc/{daemon.process.pid}/maps").read_text()
    assert daemon.stop() == 0
    imported = set(re.findall(r"^import time:.*\| +(\S+)$", daemon.log_path.read_text(), re.MULTILINE))
    assert "brain_service.api.app" in imported, (
        "the log must hold the import report for this test to mean anything"
    )
    assert not [name for name in imported if name.split(".")[0] in FRAMEWORKS]
    assert not [name for name in FRAMEWORKS if f"/{name}/" in libraries]


def test_it_listens_on_a_unix_socket_that_others_cannot_open(daemon: Daemon) -> None:
    path = daemon.data_dir / "brain.sock"
    assert stat.S_IMODE(path.stat().st_mode) == 0o660
    with httpx.Client(transport=httpx.HTTPTransport(uds=str(path)), base_url="http://brain") as http:
        assert http.get("/livez").status_code == 200


def test_a_stop_is_clean_and_takes_every_process_along(tmp_path: Path) -> None:
    with running_daemon(tmp_path / "brain") as daemon:
        children = psutil.Process(daemon.process.pid).children(recursive=True)
        assert children, "the job runner is a child"
        assert daemon.stop() == 0
        assert not psutil.wait_procs(children, timeout=5)[1]


def test_a_kill_takes_every_process_along_and_the_next_start_works(tmp_path: Path) -> None:
    daemon = Daemon(tmp_path / "brain").start()
    children = psutil.Process(daemon.process.pid).children(recursive=True)
    daemon.kill()
    assert not psutil.wait_procs(children, timeout=10)[1]
    daemon.start()
    assert httpx.get(f"{daemon.url}/readyz").status_code == 200
    daemon.stop()


def test_an_open_event_stream_does_not_hold_the_stop(daemon: Daemon) -> None:
    with httpx.Client(base_url=daemon.url) as http:
        job = http.post("/convert", json={}).json()["job_id"]
        with http.stream("GET", f"/jobs/{job}/events"):
            begun = time.monotonic()
            daemon.process.send_signal(signal.SIGTERM)
            daemon.process.wait(15)
    assert time.monotonic() - begun < 15


def test_tokens_open_what_their_scope_says_and_no_more(tmp_path: Path) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text("# robots\ncontrol-token-0123456789 control\nread-token-0123456789ab read # eyes\n")
    with running_daemon(tmp_path / "brain", "--tokens-file", str(tokens)) as daemon:

        def status(method: str, path: str, token: str | None) -> int:
            headers = {"Authorization": f"Bearer {token}"} if token else {}
            return httpx.request(method, f"{daemon.url}{path}", headers=headers, json={}).status_code

        assert status("GET", "/livez", None) == 200
        assert status("GET", "/episodes", None) == 401
        assert status("GET", "/episodes", "wrong-token-0123456789") == 401
        assert status("GET", "/episodes", "read-token-0123456789ab") == 200
        assert status("POST", "/episodes", "read-token-0123456789ab") == 403
        assert status("POST", "/episodes", "control-token-0123456789") == 201
        assert status("POST", "/convert", "control-token-0123456789") == 403
        assert "0123456789" not in daemon.log_path.read_text()


@pytest.mark.parametrize(
    "line", ["short control", "long-enough-token-0123 boss", "long-enough-token-0123", "# none"]
)
def test_a_wrong_tokens_file_is_refused_without_showing_it(tmp_path: Path, line: str) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text(f"{line}\n")
    done = serve("--data-dir", str(tmp_path / "brain"), "--tokens-file", str(tokens))
    assert_refusal(done, "tokens")
    assert "0123" not in done.stderr
