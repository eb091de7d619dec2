"""Is the dataset the one that was frozen? Every shard is held against the manifest's SHA-256 once a run.

The hosts share the reading. What the storage itself says of each file is then kept in `dataset.json`; a later
start compares that, and reads nothing unless it differs.
"""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

from brain_service.datasets.dataset import Dataset
from brain_service.datasets.manifest import MANIFEST_FILE, ShardEntry
from brain_service.datasets.places import Place, open_place
from brain_service.datasets.storage import LocalFolder, Range
from brain_service.errors import CorruptDataError
from cloud_trainer.distributed import Hosts

__all__ = ["FROZEN_FILE", "check_frozen"]

FROZEN_FILE = "dataset.json"
BLOCK_BYTES = 8 * 1024**2
BLOCKS_AT_ONCE = 4


def check_frozen(dataset: Dataset, output: Place, hosts: Hosts) -> None:
    """Check that no shard was changed, since the dataset was made and since the run began.

    Raises:
        CorruptDataError: one was; names it.
        UnavailableError: the bucket cannot be reached.
    """
    found = _stamps(dataset)
    before = json.loads(output.read(FROZEN_FILE) or b"{}")
    shards = dataset.manifest.shards
    suspect = [shard for shard in shards if before.get(shard.file) != found.get(shard.file)]
    for shard in suspect[hosts.index :: hosts.count]:
        _check(dataset, shard)
    hosts.wait_for_all("dataset-checked")
    if hosts.first and found != before:
        output.write(FROZEN_FILE, json.dumps(found, indent=1).encode() + b"\n")


def _stamps(dataset: Dataset) -> dict[str, str]:
    """Return for the manifest and each shard a text that changes with the file, reading none of them."""
    names = {MANIFEST_FILE, *(shard.file for shard in dataset.manifest.shards)}
    if isinstance(dataset.folder, LocalFolder):
        return {name: _local_stamp(dataset.folder.path / name) for name in sorted(names)}
    return {name: stamp for name, stamp in open_place(dataset.location).stamps().items() if name in names}


def _local_stamp(path: Path) -> str:
    status = path.stat()
    return f"{status.st_ino}:{status.st_mtime_ns}:{status.st_size}"


def _check(dataset: Dataset, shard: ShardEntry) -> None:
    digest = hashlib.sha256()
    for block in _blocks(dataset, shard):
        digest.update(block)
    if digest.hexdigest() != shard.sha256:
        raise CorruptDataError(
            f"{dataset.location}/{shard.file}: it was changed after the dataset was made (SHA-256); upload the "
            "shard again, or convert the episodes again",
            file=shard.file,
        )


def _blocks(dataset: Dataset, shard: ShardEntry) -> Iterator[bytes]:
    starts = range(0, shard.size_bytes, BLOCK_BYTES)
    for at in range(0, len(starts), BLOCKS_AT_ONCE):
        yield from dataset.folder.read_ranges(
            [
                Range(shard.file, start, min(BLOCK_BYTES, shard.size_bytes - start))
                for start in starts[at : at + BLOCKS_AT_ONCE]
            ]
        )
