"""Gzipped shards for transport. TFDS cannot read them (DataLossError), so they never stand in a dataset folder.

`<name>/<version>-archive/` holds one `<shard>.gz` a shard and `ARCHIVE.json`, which says what it is and how to
read it; the name is not a version, so TFDS overlooks it.
"""

import gzip
import hashlib
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

import msgspec

from brain_service.datasets.manifest import Manifest, ShardEntry
from brain_service.datasets.patience import results
from brain_service.datasets.shards import Base, link_or_copy
from brain_service.durable import publish_directory
from brain_service.structs import prepared

__all__ = ["archive_path", "write_archive"]

_LABEL_FILE = "ARCHIVE.json"
_BLOCK_BYTES = 1 << 20
# Floats hardly shrink: the highest level saves 1 % more, at twice the time and above.
_LEVEL = 1
_HOW_TO_READ = (
    "gunzip, or tf.data.TFRecordDataset(path, compression_type='GZIP'); tfds reads the dataset beside it"
)


class ArchivedShard(msgspec.Struct, frozen=True):
    """One gzipped shard and the hash of its bytes; `shard_sha256` is that of what it unpacks to."""

    file: str
    size_bytes: int
    sha256: str
    shard_sha256: str


def archive_path(dataset: Path) -> Path:
    """Return where the transport archive of a dataset version lies."""
    return dataset.with_name(f"{dataset.name}-archive")


@prepared
class _Label(msgspec.Struct, frozen=True):
    """`ARCHIVE.json`."""

    kind: str
    compression: str
    dataset: str
    how_to_read: str
    shards: list[ArchivedShard]


def write_archive(
    dataset: Path,
    manifest: Manifest,
    work: Path,
    jobs: int = 1,
    base: Base | None = None,
    tick: Callable[[], None] | None = None,
) -> Path:
    """Write the transport archive of a published dataset, building it in `work`; an existing one is kept.

    Shards that the archive of `base` holds are shared with it. `jobs` shards are zipped at a time. `tick` is
    called at least five times a second and may raise to stop: no archive appears then.

    Raises:
        OSError: the medium is full; no archive appears.
    """
    final = archive_path(dataset)
    if final.exists():
        return final
    temporary = work / final.name
    temporary.mkdir()
    known = {} if base is None else _zipped(archive_path(base.folder))
    stopped = threading.Event()

    def make(shard: ShardEntry) -> ArchivedShard:
        packed = temporary / f"{shard.file}.gz"
        earlier = known.get(shard.sha256)
        if earlier is None:
            return _zip(dataset / shard.file, packed, shard.sha256, stopped)
        link_or_copy(earlier[0], packed)
        return ArchivedShard(packed.name, earlier[1].size_bytes, earlier[1].sha256, shard.sha256)

    # zlib lets go of the interpreter: threads are enough.
    with ThreadPoolExecutor(jobs, thread_name_prefix="gzip") as pool:
        try:
            shards = list(results([pool.submit(make, shard) for shard in manifest.shards], tick))
        finally:
            stopped.set()
    label = _Label(
        kind="transport archive, not a TFDS dataset",
        compression="GZIP",
        dataset=f"{manifest.name}/{manifest.version}",
        how_to_read=_HOW_TO_READ,
        shards=shards,
    )
    (temporary / _LABEL_FILE).write_bytes(msgspec.json.format(msgspec.json.encode(label), indent=1))
    publish_directory(temporary, final)
    return final


def _zip(shard: Path, packed: Path, shard_sha256: str, stopped: threading.Event) -> ArchivedShard:
    # Neither name nor time in the header: equal shards give equal archives.
    with (
        shard.open("rb") as source,
        packed.open("wb") as target,
        gzip.GzipFile(filename="", mode="wb", fileobj=target, compresslevel=_LEVEL, mtime=0) as zipped,
    ):
        while not stopped.is_set() and (block := _read_block(source)):
            zipped.write(block)
    with packed.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return ArchivedShard(packed.name, packed.stat().st_size, digest, shard_sha256)


def _read_block(source: BinaryIO) -> bytes:
    return source.read(_BLOCK_BYTES)


def _zipped(archive: Path) -> dict[str, tuple[Path, ArchivedShard]]:
    """Return what an earlier archive holds by the hash of the shard; nothing where it is missing or not whole."""
    try:
        label = msgspec.json.decode((archive / _LABEL_FILE).read_bytes(), type=_Label)
        found = {shard.shard_sha256: (archive / shard.file, shard) for shard in label.shards}
        return {key: item for key, item in found.items() if item[0].stat().st_size == item[1].size_bytes}
    except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return {}
