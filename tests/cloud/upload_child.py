"""A process that uploads a folder, to be killed: `python -m tests.cloud.upload_child DATABASE FOLDER GS URL`."""

import sys
from pathlib import Path

from brain_service.cloud.patience import RetryPolicy
from brain_service.cloud.upload_queue import UploadQueue
from brain_service.settings import CloudSettings


def main(database: str, folder: str, destination: str, url: str) -> None:
    """Queue the folder and work on it."""
    settings = CloudSettings(storage_endpoint=url, chunk_bytes=256 * 1024)
    policy = RetryPolicy(tries=6, base_s=0.001, cap_s=0.01)
    with UploadQueue(Path(database), settings, policy=policy) as queue:
        queue.work(queue.add_folder(Path(folder), destination))


if __name__ == "__main__":
    main(*sys.argv[1:])
