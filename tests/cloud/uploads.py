"""Files to upload, and how a test works on them until they are there."""

import contextlib
from pathlib import Path

from brain_service.cloud.patience import RetryPolicy
from brain_service.cloud.upload_queue import OfflineError, UploadQueue

CHUNK = 256 * 1024
QUICK = RetryPolicy(tries=6, base_s=0.001, cap_s=0.01)
LARGE = bytes(range(256)) * 3000  # 768,000 bytes: two chunks and a rest


def write(folder: Path, files: dict[str, bytes]) -> Path:
    """Write files by name and return their folder."""
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


FILES = {
    "manifest.json": b'{"shards": 2}',
    "a/shard-0": LARGE,
    "shard-1": LARGE[::-1],
    "small": b"x",
    "empty": b"",
}


def finish(queue: UploadQueue, upload_id: str) -> int:
    """Work until it is done and return how often it had to be taken up again."""
    for again in range(50):
        with contextlib.suppress(OfflineError):
            queue.work(upload_id)
            return again
    raise AssertionError("never done")
