"""One capture log becomes records in a part file, and an index of what it held."""

import hashlib
import tempfile
from pathlib import Path

import msgspec

from brain_service.datasets.encoding import EncodedSource, encode_source
from brain_service.datasets.manifest import SourceEntry
from brain_service.datasets.places import LocalPlace, open_place
from brain_service.datasets.sources import take_inventory
from brain_service.datasets.storage import LocalFolder
from brain_service.errors import UnavailableError
from cloud_trainer.fleet.run import Run
from cloud_trainer.fleet.sources import Stem, fetch

__all__ = ["Found", "encode_stem"]


class Found(msgspec.Struct, frozen=True):
    """What the files of one episode are: sources that were read, or an episode that is still open."""

    sources: list[SourceEntry]
    encoded: list[EncodedSource]
    skipped_open: list[str]


def encode_stem(stem: Stem, run: Run) -> bytes:
    """Read an episode's files, leave its records in the run's parts, and return a `Found` as JSON.

    A worker that does the same again writes the same part.

    Raises:
        UnavailableError: a file cannot be read, or the part not be written.
    """
    work = open_place(run.work)
    try:
        if isinstance(work, LocalPlace):
            work.path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=work.path if isinstance(work, LocalPlace) else None) as scratch:
            return msgspec.json.encode(_encode(stem, run, Path(scratch)))
    except OSError as error:
        raise UnavailableError(
            f"cannot convert {stem.folder.location}/{stem.name}: {error.strerror or error}; check the free space "
            "of the worker"
        ) from error


def _encode(stem: Stem, run: Run, scratch: Path) -> Found:
    here = scratch / "in"
    here.mkdir()
    fetch(stem, here)
    inventory = take_inventory(here)
    label = stem.folder.label
    encoded = []
    for source in inventory.sources:
        name = f"{label}{source.file}"
        part = hashlib.sha256(f"{name}\0{source.sha256}\0{run.profile}".encode()).hexdigest()
        with (scratch / part).open("wb") as file:
            held = encode_source(here / source.file, run.profile, file)
        if held.episodes:
            run.parts.take(LocalFolder(scratch), part, part)
        encoded.append(
            EncodedSource(
                name,
                [msgspec.structs.replace(episode, part=part) for episode in held.episodes],
                # It names the file as the robot's operator knows it.
                held.problem and held.problem.replace(str(here), stem.folder.location),
            )
        )
    return Found(
        [SourceEntry(f"{label}{source.file}", source.sha256) for source in inventory.sources],
        encoded,
        [f"{label}{file}" for file in inventory.skipped_open],
    )
