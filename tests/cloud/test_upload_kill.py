"""SIGKILL to the process that uploads, at any request: the next one goes on, and every object is there once."""

import contextlib
import os
import random
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fakes.gcs_faults import GcsFaults, Hold

from .uploads import LARGE, write

ROOT = Path(__file__).parents[2]
FILES = {"manifest.json": b"{}", "shard-0": LARGE, "shard-1": LARGE[::-1], "small": b"x"}


def start(gcs: GcsFaults, database: Path, folder: Path, destination: str) -> "subprocess.Popen[bytes]":
    """Start a process that uploads."""
    command = [sys.executable, "-m", "tests.cloud.upload_child", database, folder, destination, gcs.url]
    return subprocess.Popen(list(map(str, command)), cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)})


@pytest.mark.long
@pytest.mark.parametrize("seed", [0, 1])
def test_killed_at_random_requests_it_ends_with_the_same_objects(
    gcs: GcsFaults, bucket: str, tmp_path: Path, seed: int
) -> None:
    rng, folder, kills = random.Random(seed), write(tmp_path / "files", FILES), 0
    for _ in range(40):
        # Before or after the service did what was asked: the answer is lost either way.
        gcs.hold = hold = Hold(rng.randint(1, 6), done=rng.random() < 0.5)
        process = start(gcs, tmp_path / "brain.db", folder, f"gs://{bucket}/p")
        while process.poll() is None and not hold.reached.wait(0.02):
            pass
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            kills += 1
        code = process.wait(30)
        gcs.hold = None
        hold.release.set()
        if code == 0:
            break
        assert code == -signal.SIGKILL
    assert code == 0
    assert kills >= 3
    assert gcs.objects(bucket) == {f"p/{name}": data for name, data in FILES.items()}
    assert sorted(gcs.commits) == sorted(f"p/{name}" for name in FILES), "each object was made once"
    assert gcs.commits[-1] == "p/manifest.json"
    sent_twice = gcs.body_bytes - sum(map(len, FILES.values()))
    assert sent_twice <= kills * 256 * 1024
    with contextlib.closing(sqlite3.connect(tmp_path / "brain.db")) as database:
        assert database.execute("SELECT count(*) FROM upload_files WHERE done AND session IS NULL").fetchone() == (
            4,
        )


@pytest.mark.parametrize("shared", [True, False], ids=["one-database", "two-databases"])
def test_two_processes_with_the_same_upload_do_each_other_no_harm(
    gcs: GcsFaults, bucket: str, tmp_path: Path, shared: bool
) -> None:
    folder = write(tmp_path / "files", FILES)
    names = ["q.db", "q.db"] if shared else ["q.db", "r.db"]
    processes = [start(gcs, tmp_path / name, folder, f"gs://{bucket}/p") for name in names]
    assert [process.wait(60) for process in processes] == [0, 0]
    assert gcs.objects(bucket) == {f"p/{name}": data for name, data in FILES.items()}
    assert sorted(gcs.commits) == sorted(f"p/{name}" for name in FILES)
    if shared:
        assert gcs.body_bytes < sum(map(len, FILES.values())) + 4096
