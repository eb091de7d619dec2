"""Gzipped shards for transport. TFDS cannot read them (DataLossError), so they never stand in a dataset folder.

`<name>/<version>-archive/` holds one `<shard>.gz` a shard and `ARCHIVE.json`, which says what it is and how to
read it; the name is not a version, so TFDS overlooks it.
"""

import gzip
import hashlib
import shutil
from pathlib import Path

import msgspec

from brain_service.datasets.manifest import Manifest
from brain_service.durable import publish_directory

__all__ = ["archive_path", "write_archive"]

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


def write_archive(dataset: Path, manifest: Manifest, work: Path) -> Path:
    """Write the transport archive of a published dataset, building it in `work`; an existing one is kept.

    Raises:
        OSError: the medium is full; no archive appears.
    """
    final = archive_path(dataset)
    if final.exists():
        return final
    temporary = work / final.name
    temporary.mkdir()
    shards = []
    for shard in manifest.shards:
        packed = temporary / f"{shard.file}.gz"
        # Neither name nor time in the header: equal shards give equal archives.
        with (
            (dataset / shard.file).open("rb") as source,
            packed.open("wb") as target,
            gzip.GzipFile(filename="", mode="wb", fileobj=target, compresslevel=6, mtime=0) as zipped,
        ):
            shutil.copyfileobj(source, zipped, 1 << 20)
        with packed.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        shards.append(ArchivedShard(packed.name, packed.stat().st_size, digest, shard.sha256))
    label = {
        "kind": "transport archive, not a TFDS dataset",
        "compression": "GZIP",
        "dataset": f"{manifest.name}/{manifest.version}",
        "how_to_read": _HOW_TO_READ,
        "shards": shards,
    }
    (temporary / "ARCHIVE.json").write_bytes(msgspec.json.format(msgspec.json.encode(label), indent=1))
    publish_directory(temporary, final)
    return final
