"""The episodes of a fleet: folders of capture logs, on disk or below a bucket, found by patterns."""

import fnmatch
import glob
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from brain_service.datasets.sources import SUFFIXES
from brain_service.datasets.storage import (
    Folder,
    GcsFolder,
    LocalFolder,
    gcs_file_system,
    open_folder,
    reaching_gcs,
)
from brain_service.episodes.images import FOLDER_SUFFIX
from brain_service.errors import InvalidError, NotFoundError, UnavailableError

__all__ = ["LogFolder", "Stem", "fetch", "find_folders", "list_stems"]


@dataclass(frozen=True)
class LogFolder:
    """A folder of capture logs. `label` stands before their names: "" for one folder, else the robot's path."""

    location: str
    label: str
    pattern: str = "*"


@dataclass(frozen=True)
class Stem:
    """The files of one episode: a log, its compressed form, its document, and whether images lie beside them."""

    folder: LogFolder
    name: str
    files: tuple[str, ...]
    images: bool


def find_folders(patterns: Iterable[str]) -> list[LogFolder]:
    """Return the folders that the patterns mean, each once, in the order of their names.

    A pattern names folders (`gs://fleet/robots/*/episodes`), or files in them (`robots/*/episodes/2026-*.jsonl`).
    Where there are several folders, the part of the path that tells them apart stands before a log's name.

    Raises:
        NotFoundError: a pattern means nothing.
        InvalidError: one folder is given with different patterns for its files.
        UnavailableError: the bucket cannot be listed.
    """
    found: dict[str, str] = {}
    for pattern in patterns:
        folder, files = _split(pattern)
        locations = _expand(folder)
        if not locations:
            raise NotFoundError(
                f"no folder {folder!r}; give folders of .json, .jsonl or .jsonl.zst episodes, as in "
                "'gs://bucket/robots/*/episodes'"
            )
        for location in locations:
            if found.setdefault(location, files) != files:
                raise InvalidError(
                    f"{location} is given twice, for {found[location]} and for {files}; once is enough"
                )
    labels = _labels(sorted(found))
    return [LogFolder(location, label, found[location]) for location, label in labels.items()]


def _split(pattern: str) -> tuple[str, str]:
    """Return the folder's pattern, and that of the files in it."""
    head, _, last = pattern.rstrip("/").rpartition("/")
    return (head or ".", last) if last.endswith(SUFFIXES) else (pattern.rstrip("/") or "/", "*")


def _expand(pattern: str) -> list[str]:
    folder = open_folder(pattern)
    if isinstance(folder, LocalFolder):
        # Absolute: a worker may stand elsewhere.
        # Not Path.glob: it takes no absolute pattern.
        return sorted(str(Path(name).resolve()) for name in glob.glob(pattern) if Path(name).is_dir())  # noqa: PTH207
    if not glob.has_magic(pattern):
        return [folder.location] if folder.sizes() or folder.subfolders() else []
    with reaching_gcs(pattern):
        system = gcs_file_system()
        return sorted(f"gs://{name.rstrip('/')}" for name in system.glob(pattern) if system.isdir(name))


def _labels(locations: list[str]) -> dict[str, str]:
    """Return what stands before the names of each folder's logs: its path below what all have in common."""
    if len(locations) == 1:
        return {locations[0]: ""}
    parts = {location: location.split("/") for location in locations}
    # The last folder is part of it even where one of them holds the others.
    most = min(len(path) for path in parts.values()) - 1
    first = parts[locations[0]]
    common = next((n for n in range(most) if any(path[n] != first[n] for path in parts.values())), most)
    return {location: "/".join(path[common:]) + "/" for location, path in parts.items()}


def list_stems(folder: LogFolder) -> Iterator[Stem]:
    """Yield the episodes of a folder, in the order of their names.

    Raises:
        UnavailableError: it cannot be listed.
    """
    place = open_folder(folder.location)
    stems: dict[str, list[str]] = {}
    for file in place.sizes():
        if file.endswith(SUFFIXES) and not file.startswith("."):
            stems.setdefault(_stem(file), []).append(file)
    images = {name for name in place.subfolders() if name.endswith(FOLDER_SUFFIX)}
    for name, files in sorted(stems.items()):
        if any(fnmatch.fnmatchcase(file, folder.pattern) for file in files):
            yield Stem(folder, name, tuple(sorted(files)), f"{name}{FOLDER_SUFFIX}" in images)


def _stem(file: str) -> str:
    # The longest one: `.jsonl.zst` is not `.zst`.
    return file.removesuffix(max((suffix for suffix in SUFFIXES if file.endswith(suffix)), key=len))


def fetch(stem: Stem, target: Path) -> None:
    """Bring an episode's files into an empty folder of this machine, by links where they are on it.

    Raises:
        UnavailableError: they cannot be read now.
        OSError: the medium is full.
    """
    folder = open_folder(stem.folder.location)
    beside = [f"{stem.name}{FOLDER_SUFFIX}"] * stem.images
    if isinstance(folder, LocalFolder):
        for name in [*stem.files, *beside]:
            (target / name).symlink_to(folder.path / name)
        return
    for name in stem.files:
        _download(folder, name, target)
    for name in beside:
        images = folder.child(name)
        (target / name).mkdir()
        for image in images.sizes():
            _download(images, image, target / name)


def _download(folder: Folder, file: str, target: Path) -> None:
    assert isinstance(folder, GcsFolder)
    place = f"{folder.location}/{file}"
    try:
        with reaching_gcs(place):
            gcs_file_system().get_file(place, str(target / file))
    except FileNotFoundError as error:
        raise UnavailableError(f"{place} went away while it was converted; start again") from error
