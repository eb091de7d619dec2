"""A version whose shards are staged becomes visible: its figures and index are written, the manifest last.

On disk the staged folder is renamed. On a bucket nothing can be: the version's number is claimed first, then the
shards are copied inside the service, and a reader takes a folder without a manifest for none.
"""

import tempfile
from pathlib import Path

import msgspec

from brain_service.datasets.build import encodings_of
from brain_service.datasets.layout import write_layout
from brain_service.datasets.manifest import MANIFEST_FILE, Manifest, write_manifest
from brain_service.datasets.places import LocalPlace, Place
from brain_service.datasets.statistics import Statistics, write_statistics
from brain_service.datasets.storage import LocalFolder
from brain_service.datasets.versions import next_version, sort_versions, version_after
from brain_service.durable import publish_directory
from brain_service.errors import ConflictError, NotFoundError, UnavailableError

__all__ = ["publish_version"]

CLAIM_FILE = ".claim"
"""Whose a version on a bucket is to be: the digest of its sources."""


def publish_version(staged: Place, dataset: Place, draft: Manifest, statistics: Statistics) -> Manifest:
    """Publish staged shards as the dataset's next version and return its manifest; `draft` has no version yet.

    The caller holds the lock of a dataset on disk. On a bucket two runs at once each get a version of their own,
    and one that is done again after a crash gets the one that it had begun.

    Raises:
        ConflictError: another manifest appeared where ours was to be.
        UnavailableError: the medium or the service refuses.
    """
    try:
        if isinstance(staged, LocalPlace) and isinstance(dataset, LocalPlace):
            manifest = msgspec.structs.replace(draft, version=next_version(dataset.path))
            _write_sidecars(staged.path, manifest, statistics)
            publish_directory(staged.path, dataset.path / manifest.version)
            return manifest
        with tempfile.TemporaryDirectory() as scratch:
            return _publish_remote(staged, dataset, draft, statistics, Path(scratch))
    except OSError as error:
        raise UnavailableError(
            f"cannot publish to {dataset.folder.location}: {error.strerror or error}; check permissions and free "
            "space, then start again"
        ) from error


def _write_sidecars(folder: Path, manifest: Manifest, statistics: Statistics) -> None:
    write_statistics(folder, statistics)
    spec, sizes = manifest.episode_spec(), manifest.split_sizes()
    write_layout(folder, manifest.name, manifest.version, spec, sizes, encodings_of(manifest))
    write_manifest(folder, manifest)


def _publish_remote(
    staged: Place, dataset: Place, draft: Manifest, statistics: Statistics, scratch: Path
) -> Manifest:
    version = _claim(dataset, draft.source_digest)
    manifest = msgspec.structs.replace(draft, version=version)
    target = dataset.child(version)
    for shard in manifest.shards:
        target.take(staged.folder, shard.file, shard.file)
    _write_sidecars(scratch, manifest, statistics)
    for path in sorted(scratch.iterdir()):
        if path.name != MANIFEST_FILE:
            target.take(LocalFolder(scratch), path.name, path.name)
    ours = (scratch / MANIFEST_FILE).read_bytes()
    if not target.create(MANIFEST_FILE, ours) and target.folder.read(MANIFEST_FILE) != ours:
        raise ConflictError(
            f"{target.folder.location} got another manifest meanwhile; start again for a version of its own"
        )
    return manifest


def _claim(dataset: Place, digest: str) -> str:
    """Return a version that is ours: one that an earlier attempt at the same left unfinished, or a new one."""
    versions = sort_versions(dataset.folder.subfolders())
    if versions and _is_ours(dataset.child(versions[-1]), digest):
        return versions[-1]
    version = version_after(versions)
    while not dataset.child(version).create(CLAIM_FILE, digest.encode()):
        if _is_ours(dataset.child(version), digest):
            return version
        version = version_after([version])
    return version


def _is_ours(version: Place, digest: str) -> bool:
    files = version.folder.sizes()
    if MANIFEST_FILE in files or CLAIM_FILE not in files:
        return False
    try:
        return version.folder.read(CLAIM_FILE) == digest.encode()
    except NotFoundError:
        return False
