"""A medium that fails for a while: loud refusals, inference goes on, nothing durable is lost, and it heals."""

import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.episodes.test_media import needs_mount
from tests.faults.ailing import FAULTS, Fault, crawl, serving_a_toy, suffer
from tests.faults.faulty_daemon import FaultyDaemon


@pytest.fixture(scope="module")
def ailing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaultyDaemon]:
    with serving_a_toy(tmp_path_factory.mktemp("ailing")) as daemon:
        yield daemon


@pytest.mark.long
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name.replace(" ", "-"))
def test_capture_degrades_loudly_and_recovers_by_itself(ailing: FaultyDaemon, fault: Fault) -> None:
    course = suffer(ailing, fault, f"ailing-{FAULTS.index(fault)}", fault_s=0.7)
    assert course.problems == []
    assert course.durable_lost == 0
    assert course.accepted_lost == 0 or fault.lose, "only a kernel that drops pages may lose what was accepted"
    assert course.refused > 0
    assert course.acted > 10, "inference goes on"
    assert course.slowest_livez_s < 1.0


@pytest.mark.long
def test_a_crawling_medium_pushes_back_and_holds_up_nothing_else(ailing: FaultyDaemon) -> None:
    course, grown_bytes = crawl(ailing)
    assert course.problems == []
    assert course.accepted < 8 * 60, "the robots feel it"
    assert course.acted > 30, "inference goes on"
    assert course.slowest_livez_s < 0.5
    assert grown_bytes < 64 * 1024**2


FULL = """
    import pathlib, subprocess, sys, httpx
    from tests.processes import Daemon
    from tests.faults.robots import body, differs
    folder = pathlib.Path(sys.argv[1])
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "none", str(folder)], check=True)
    daemon = Daemon(folder / "brain", env={"BRAIN_CAPTURE__MIN_FREE_BYTES": "0"}).start()
    try:
        http = httpx.Client(base_url=daemon.url, timeout=30)
        for name in ("one", "two"):
            assert http.post("/episodes", json={"episode_id": name}).status_code == 201
        stored = {"one": 0, "two": 0}
        def record(name):
            answer = http.post(f"/episodes/{name}/steps", json=body(name, stored[name]))
            stored[name] += answer.status_code == 200
            return answer
        for _ in range(20):
            for name in stored:
                assert record(name).status_code == 200
        ballast = (folder / "ballast").open("ab", buffering=0)
        try:
            while True:
                ballast.write(bytes(4096))
        except OSError:
            pass
        for _ in range(400):
            if record("one").status_code != 200:
                break
        answer = record("one")
        print(answer.status_code, answer.headers.get("retry-after"), answer.json()["detail"])
        health = http.get("/health")
        print(health.status_code, health.json()["checks"]["capture"][0])
        print(http.post("/episodes", json={}).status_code, http.get("/livez").status_code)
        (folder / "ballast").unlink()
        ballast.close()
        for name in stored:
            assert record(name).status_code == 200
        assert http.post("/episodes", json={}).status_code == 201
        print(http.get("/health").json()["checks"]["capture"][0]["status"])
        for name in stored:
            assert http.post(f"/episodes/{name}/end", json={}).json()["steps"] == stored[name]
            steps = http.get(f"/episodes/{name}/steps", params={"limit": 1000}).json()["steps"]
            assert [differs(step, name, index) for index, step in enumerate(steps)] == [None] * stored[name]
    finally:
        daemon.stop()
"""


@pytest.mark.long
@needs_mount
def test_a_really_full_file_system_is_survived_by_the_daemon(tmp_path: Path) -> None:
    """A real tmpfs, full to the last page with the database and the logs on it."""
    done = subprocess.run(
        [
            "unshare",
            "--user",
            "--map-root-user",
            "--mount",
            sys.executable,
            "-c",
            textwrap.dedent(FULL),
            str(tmp_path),
        ],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    refused, health, others, healed = done.stdout.splitlines()
    assert refused.startswith("503 ")
    assert "disk is full" in refused
    assert "None" not in refused, "it says when to come back"
    assert health.startswith("503 ")
    assert "disk is full" in health
    assert others == "503 200"
    assert healed == "pass"
