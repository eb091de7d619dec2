"""A daemon on a medium that fails it: it starts, serves what it can, says why not the rest, and heals."""

import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import httpx
import pytest

from brain_service.durable import replace_symlink
from tests.api.wire import STEP
from tests.episodes.test_media import needs_mount
from tests.inference.toy import build_toy
from tests.jobs.running import wait_until
from tests.processes import running_daemon

NAMESPACE = ("unshare", "--user", "--map-root-user", "--mount")
FULL_SCRIPT = """
    import os, pathlib, shutil, subprocess, sys, httpx
    from tests.api.test_degraded import check, STEP
    from tests.jobs.running import wait_until
    from tests.processes import Daemon
    models, folder = map(pathlib.Path, sys.argv[1:])
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "none", str(folder)], check=True)
    (folder / "brain").mkdir()
    shutil.copytree(models, folder / "brain" / "models", symlinks=True)
    with (folder / "ballast").open("ab", buffering=0) as ballast:
        try:
            while True:
                ballast.write(bytes(4096))
        except OSError:
            pass
    assert os.statvfs(folder).f_bavail == 0
    daemon = Daemon(folder / "brain", env={"BRAIN_CAPTURE__MIN_FREE_BYTES": "65536"}).start()
    try:
        with httpx.Client(base_url=daemon.url, timeout=30) as http:
            wait_until(lambda: http.get("/readyz?for=inference").status_code == 200, "a warmed model")
            session = http.post("/sessions", json={}).json()["session_id"]
            body = {"session_id": session, "observation": {"arm": {"joints": [1.0, 2.0]}, "load": 0.0}}
            answer = http.post("/infer", json=body)
            assert answer.status_code == 200, answer.text
            assert "action" in answer.json()
            for path in ("/episodes", "/convert"):
                refused = http.post(path, json={})
                assert refused.status_code == 503, (path, refused.text)
                print(path, refused.json()["detail"])
            ready = http.get("/readyz")
            assert ready.status_code == 503
            print("ready", ready.json()["detail"])
            health = http.get("/health")
            assert health.status_code == 503
            print("disk", check(http, "disk")["output"])
            print("jobs", check(http, "jobs")["output"])
            (folder / "ballast").unlink()
            wait_until(lambda: http.get("/readyz").status_code == 200, "capture to heal")
            episode = http.post("/episodes", json={}).json()["episode_id"]
            assert http.post(f"/episodes/{episode}/steps", json={**STEP, "step_index": 0}).status_code == 200
            assert http.post(f"/episodes/{episode}/end", json={}).status_code == 200
            job = http.post("/convert", json={})
            assert job.status_code == 202, job.text
            wait_until(lambda: http.get(job.headers["location"]).json()["state"] == "succeeded", "a job to run")
            wait_until(lambda: check(http, "jobs")["status"] == "pass", "the job runner to settle")
    finally:
        assert daemon.stop() == 0
"""

NO_INODES_SCRIPT = """
    import pathlib, subprocess, sys, httpx
    from tests.api.test_degraded import STEP
    from tests.jobs.running import wait_until
    from tests.processes import Daemon
    folder = pathlib.Path(sys.argv[1])
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m,nr_inodes=40", "none", str(folder)], check=True)
    (folder / "brain").mkdir()
    (folder / "brain" / ".lock").touch()
    (folder / "brain.log").touch()
    ballast = []
    try:
        while True:
            ballast.append(folder / f"ballast{len(ballast)}")
            ballast[-1].touch()
    except OSError:
        pass
    daemon = Daemon(folder / "brain", env={"BRAIN_CAPTURE__MIN_FREE_BYTES": "65536"}).start()
    try:
        with httpx.Client(base_url=daemon.url, timeout=30) as http:
            assert not (folder / "brain" / "episodes").exists()
            for path in ("/episodes", "/convert"):
                assert http.post(path, json={}).status_code == 503, path
            assert http.get("/readyz").status_code == 503
            for file in ballast:
                file.unlink(missing_ok=True)
            wait_until(lambda: http.get("/readyz").status_code == 200, "capture to heal")
            episode = http.post("/episodes", json={}).json()["episode_id"]
            assert http.post(f"/episodes/{episode}/steps", json={**STEP, "step_index": 0}).status_code == 200
            assert http.post("/convert", json={}).status_code == 202
    finally:
        assert daemon.stop() == 0
"""


def run_mounted(script: str, *arguments: Path) -> list[str]:
    """Run a script that mounts a tmpfs in a namespace of its own; return the lines it printed."""
    done = subprocess.run(
        [*NAMESPACE, sys.executable, "-c", textwrap.dedent(script), *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    return done.stdout.splitlines()


def check(http: httpx.Client, name: str) -> dict[str, Any]:
    """Return one check of `/health`."""
    found: dict[str, Any] = http.get("/health").json()["checks"][name][0]
    return found


@needs_mount
def test_a_disk_that_is_full_at_the_start_leaves_inference_alone(tmp_path: Path) -> None:
    models, folder = tmp_path / "models", tmp_path / "full"
    replace_symlink(models / "active", build_toy(models))
    folder.mkdir()
    said = dict(line.split(" ", 1) for line in run_mounted(FULL_SCRIPT, models, folder))
    assert "free" in said["/episodes"] or "full" in said["/episodes"]
    assert "brain.db" in said["/convert"]
    assert "reserve" in said["ready"]
    assert "refused" in said["disk"]
    assert "brain.db" in said["jobs"]


@needs_mount
def test_a_first_start_without_room_for_one_file_more_heals_too(tmp_path: Path) -> None:
    run_mounted(NO_INODES_SCRIPT, tmp_path)


def test_a_database_that_does_not_open_costs_the_jobs_only(tmp_path: Path) -> None:
    data_dir = tmp_path / "brain"
    (data_dir / "brain.db").mkdir(parents=True)
    with running_daemon(data_dir) as daemon, httpx.Client(base_url=daemon.url, timeout=10) as http:
        episode = http.post("/episodes", json={}).json()["episode_id"]
        assert http.post(f"/episodes/{episode}/steps", json={**STEP, "step_index": 0}).status_code == 200
        refused = http.post("/convert", json={})
        assert refused.status_code == 503
        assert str(data_dir / "brain.db") in refused.json()["detail"]
        assert http.get("/health").status_code == 200
        assert "brain.db" in check(http, "jobs")["output"]
        (data_dir / "brain.db").rmdir()
        assert http.post(f"/episodes/{episode}/end", json={}).status_code == 200
        job = http.post("/convert", json={})
        assert job.status_code == 202
        wait_until(lambda: http.get(job.headers["location"]).json()["state"] == "succeeded", "a job to run")
    assert "Traceback" not in daemon.log_path.read_text()


def test_a_database_that_was_moved_aside_is_told_until_the_next_start(tmp_path: Path) -> None:
    data_dir = tmp_path / "brain"
    data_dir.mkdir()
    (data_dir / "brain.db").write_bytes(b"this is not SQLite at all" * 100)
    for output in ("brain.db was damaged and is now brain.db.damaged-", ""):
        with running_daemon(data_dir) as daemon, httpx.Client(base_url=daemon.url, timeout=10) as http:
            assert http.post("/convert", json={}).status_code == 202
            found = check(http, "jobs")
            assert found["output"].startswith(output)
            assert found["status"] == ("warn" if output else "pass"), found
    text = daemon.log_path.read_text()
    assert "history of jobs" in text
    assert "move the file away" not in text


@pytest.mark.parametrize("name", ["jobs", "datasets", "models", "cache"])
def test_a_file_in_the_place_of_a_directory_is_named(tmp_path: Path, name: str) -> None:
    data_dir = tmp_path / "brain"
    data_dir.mkdir()
    (data_dir / name).write_text("in the way")
    own = {"BRAIN_CACHE_DIR": str(data_dir / "cache")}
    with running_daemon(data_dir, env=own) as daemon, httpx.Client(base_url=daemon.url, timeout=10) as http:
        assert http.post("/episodes", json={}).status_code == 201
        found = check(http, "jobs")
        assert (found["status"], str(data_dir / name) in found["output"]) == ("warn", True)
        if name == "jobs":
            wait_until(lambda: "died" in check(http, "jobs")["output"], "the runner to say why it ends")
            assert "is no directory; move it away" in check(http, "jobs")["output"]
            (data_dir / name).unlink()
            job = http.post("/convert", json={})
            wait_until(lambda: http.get(job.headers["location"]).json()["finished_ns"] is not None, "the job")
    assert "Traceback" not in daemon.log_path.read_text()


def test_a_data_directory_that_vanishes_is_told_and_the_connection_goes_on(tmp_path: Path) -> None:
    data_dir = tmp_path / "brain"
    with running_daemon(data_dir) as daemon, httpx.Client(base_url=daemon.url, timeout=10) as http:
        assert http.get("/readyz").status_code == 200
        shutil.move(data_dir, tmp_path / "elsewhere")
        for _ in range(2):
            health = http.get("/health")
            assert health.status_code == 503
            assert "No such file" in check(http, "disk")["output"]
            assert http.get("/readyz").status_code == 503
            refused = http.post("/convert", json={})
            assert refused.status_code == 503
            assert "is gone" in refused.json()["detail"]
        assert not data_dir.exists(), "a directory made anew would hide that the medium is missing"
