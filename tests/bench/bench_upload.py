"""Uploads through the queue, beside a plain chunked resumable copy of the same files to the same emulator.

    python -m tests.bench bench_upload

Simulated: fake-gcs-server on this machine, without a network between. The plain copy is what a first attempt does:
a session a file and chunks of the same size over one connection, no checksum, nothing persisted. Runs alternate;
the figure is the median. Memory is that of a process which queues and uploads 8 files of 64 MB, beside a daemon
that was just started. (The emulator copies an object for each chunk of it, so larger ones measure the emulator.)
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import requests

from brain_service.cloud.upload_queue import UploadQueue
from brain_service.settings import CloudSettings
from tests.bench.rows import Row
from tests.fakes.gcs import FakeGcs, fake_gcs
from tests.processes import Daemon

SHARDS = 4
SHARD_BYTES = 64 * 1024**2
LARGE_FILES = 8
ROUNDS = 3
_MEGA = 1e6


def measure() -> list[Row]:
    """Measure and return the rows."""
    with tempfile.TemporaryDirectory() as name, fake_gcs() as server:
        root = Path(name)
        server.make_bucket("bench")
        folder = root / "files"
        folder.mkdir()
        for shard in range(SHARDS):
            (folder / f"shard-{shard}").write_bytes(os.urandom(SHARD_BYTES))
        return [*_speed(server, folder, root), *_memory(server, root)]


def _speed(server: FakeGcs, folder: Path, root: Path) -> list[Row]:
    settings = CloudSettings(storage_endpoint=server.url)
    plain_s, work_s, whole_s, add_s = [], [], [], []
    for number in range(ROUNDS):
        begun_s = time.perf_counter()
        _copy(server.url, folder, f"plain-{number}", settings.chunk_bytes)
        plain_s.append(time.perf_counter() - begun_s)
        # A queue of its own: one that knows of the round before has the service copy what it sent then.
        with UploadQueue(root / f"round-{number}" / "brain.db", settings) as queue:
            begun_s = time.perf_counter()
            upload = queue.add_folder(folder, f"gs://bench/queue-{number}")
            added_s = time.perf_counter()
            queue.work(upload)
            done_s = time.perf_counter()
        add_s.append(added_s - begun_s)
        work_s.append(done_s - added_s)
        whole_s.append(done_s - begun_s)
    total_mb = SHARDS * SHARD_BYTES / _MEGA
    plain = total_mb / statistics.median(plain_s)
    rows = [("the queue's work", work_s), ("queueing and work (reads twice)", whole_s), ("queueing alone", add_s)]
    return [
        Row(
            f"{label}, {total_mb:.0f} MB", total_mb / statistics.median(found), "MB/s", "plain chunked copy", plain
        )
        for label, found in rows
    ]


def _copy(url: str, folder: Path, prefix: str, chunk_bytes: int) -> None:
    """Upload every file in chunks, as plainly as it can be done."""
    session = requests.Session()
    session.trust_env = False
    for path in sorted(folder.iterdir()):
        asked = {"uploadType": "resumable", "name": f"{prefix}/{path.name}"}
        begun = session.post(f"{url}/upload/storage/v1/b/bench/o", params=asked, json={})
        size, at = path.stat().st_size, 0
        with path.open("rb") as file:
            while data := file.read(chunk_bytes):
                span = f"bytes {at}-{at + len(data) - 1}/{size}"
                answer = session.put(begun.headers["Location"], data=data, headers={"Content-Range": span})
                assert answer.status_code in (200, 308), answer.status_code
                at += len(data)


def _memory(server: FakeGcs, root: Path) -> list[Row]:
    """Return the peak of a process that uploads large files, beside a daemon at rest."""
    large = root / "large"
    large.mkdir()
    for number in range(LARGE_FILES):
        (large / f"shard-{number}").write_bytes(os.urandom(SHARD_BYTES))
    command = [sys.executable, "-m", "tests.bench.bench_upload", server.url, str(large), str(root / "large.db")]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    before, peak = (int(word) / _MEGA for word in done.stdout.split())
    daemon = Daemon(root / "daemon").start()
    try:
        resting = psutil.Process(daemon.process.pid).memory_info().rss / _MEGA
    finally:
        daemon.process.terminate()
        daemon.process.wait(20)
    label = f"that uploads {LARGE_FILES * SHARD_BYTES / _MEGA:.0f} MB"
    return [
        Row(f"peak RSS of a process {label}", peak, "MB", "a daemon at rest", resting),
        Row(f"peak RSS of a process {label}", peak, "MB", "the same with its imports alone", before),
    ]


def _child(url: str, folder: str, database: str) -> None:
    """Upload, and print the resident bytes before and the peak."""
    import google.auth.transport.requests  # noqa: F401  the imports that any upload needs

    process = psutil.Process()
    before = process.memory_info().rss
    with UploadQueue(Path(database), CloudSettings(storage_endpoint=url)) as queue:
        queue.work(queue.add_folder(Path(folder), "gs://bench/large"))
    peak_kb = next(
        int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in line
    )
    sys.stdout.write(f"{before} {peak_kb * 1024}\n")


if __name__ == "__main__":
    _child(*sys.argv[1:])
