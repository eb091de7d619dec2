"""`brain health` against a real daemon: over TCP and the Unix socket, as a table and as JSON."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from brain_service.cli import main
from tests.processes import Daemon, free_port, running_daemon


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    with running_daemon(tmp_path_factory.mktemp("health") / "brain") as daemon:
        yield daemon


def test_a_table_with_the_fix_below_what_is_not_well(asked: Daemon, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["health", "--url", asked.url]) == 1, "a daemon without a model warns"
    lines = capsys.readouterr().out.splitlines()
    (at,) = [number for number, line in enumerate(lines) if line.startswith("warn  inference")]
    assert "POST /pipeline" in lines[at + 1]
    assert [line for line in lines if line.startswith("pass  disk ")]


def test_the_unix_socket_tells_the_same(asked: Daemon, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["health", "--uds", str(asked.data_dir / "brain.sock"), "--json"]) == 1
    document = json.loads(capsys.readouterr().out)
    assert document["status"] == "warn"
    names = {"disk", "write_latency", "memory", "cgroup", "cpu", "temperature", "power", "clock", "event_loop"}
    names |= {"capture", "inference", "latency", "backends", "hailo", "queue", "uploads", "model", "last_error"}
    assert names <= set(document["checks"])
    for (check,) in document["checks"].values():
        assert set(check) == {"status", "observed_value", "observed_unit", "limit", "reason", "fix", "output"}
        assert check["status"] == "pass" or check["reason"]
    assert document["checks"]["hailo"][0]["reason"] == "not present"


@pytest.mark.parametrize("where", ["url", "uds"])
def test_where_no_daemon_answers_it_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], where: str
) -> None:
    address = f"http://127.0.0.1:{free_port()}" if where == "url" else str(tmp_path / "brain.sock")
    assert main(["health", f"--{where}", address]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("brain health: no daemon answers at ")
    assert "brain serve" in said.err
