"""The files of a run's checkpoints, beside what Orbax does with them: seals, and what is to be deleted when.

A step counts once it is sealed: a file with a stamp of every other file, written last. On this machine a stamp is
the SHA-256 of the bytes, and a step that does not verify is deleted. On a bucket it is CRC-32C and size as the
service keeps them: to hold a step against its seal takes one listing and reads nothing back. There nothing is
deleted until a newer step, or the same one written anew, has taken its place.
"""

import json
from pathlib import Path
from typing import Protocol, runtime_checkable

from brain_service.datasets.places import GcsPlace, LocalPlace, Place, open_place
from brain_service.errors import CorruptDataError, UnavailableError

__all__ = ["CheckpointStore", "GcsStore", "LocalStore", "open_store"]

UNFINISHED = "*.orbax-checkpoint-tmp*"


@runtime_checkable
class CheckpointStore(Protocol):
    """The steps below one folder. What fails raises the errors of `Place`."""

    @property
    def location(self) -> str:
        """Where the folder is, as a user would type it."""
        ...

    def prepare(self) -> None:
        """Make the folder ready for a run that writes to it."""
        ...

    def exists(self) -> bool:
        """Whether there is such a folder."""
        ...

    def steps(self) -> list[int]:
        """Return the sealed steps, in order."""
        ...

    def leftovers(self) -> set[int]:
        """Return the steps that a kill left without a seal, and that stay until they are written anew."""
        ...

    def seal(self, step: int) -> None:
        """Make a step count."""
        ...

    def verify(self, step: int) -> None:
        """Hold every file of one step against its stamp.

        Raises:
            CorruptDataError: a file is missing, was added or differs; names it.
        """
        ...

    def delete(self, step: int) -> None:
        """Delete a step, its seal first: half deleted it must not count."""
        ...

    def pass_over(self, step: int) -> bool:
        """Deal with a step that does not verify; true if it is gone, false if it stays."""
        ...


def _seal(place: Place, file: str) -> None:
    sums = {name: stamp for name, stamp in place.stamps().items() if Path(name).name != file}
    place.write(file, json.dumps(sums).encode())


def _verify(place: Place, file: str, kind: str) -> None:
    try:
        expected = json.loads(place.read(file) or b"")
    except ValueError as error:
        raise CorruptDataError(f"checkpoint {place.location}: {file}: {error}; use another step") from error
    found = {name: stamp for name, stamp in place.stamps().items() if Path(name).name != file}
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) != found.get(name):
            what = "is missing" if name not in found else f"is not what was written ({kind})"
            raise CorruptDataError(f"checkpoint {place.location}: {name} {what}; use another step")


class LocalStore:
    """Steps on this machine."""

    seal_file = "sha256.json"

    def __init__(self, place: LocalPlace) -> None:
        self._place = place

    @property
    def location(self) -> str:
        """The folder's path."""
        return self._place.location

    def exists(self) -> bool:
        """Whether there is such a folder."""
        return self._place.path.is_dir()

    def prepare(self) -> None:
        """Make the folder where it is missing, and delete what a kill left unfinished.

        Raises:
            UnavailableError: it cannot be made or read.
        """
        folder = self._place.path
        try:
            folder.mkdir(parents=True, exist_ok=True)
            unsealed = [
                path for path in folder.iterdir() if _is_step(path) and not (path / self.seal_file).is_file()
            ]
            unfinished = [*unsealed, *folder.glob(UNFINISHED)]
        except OSError as error:
            raise UnavailableError(f"checkpoint directory {folder}: {error}; choose another one") from error
        for path in unfinished:
            self._place.delete(path.name)

    def steps(self) -> list[int]:
        """Return the sealed steps, in order."""
        seals = self._place.path.glob(f"*/{self.seal_file}")
        return sorted(int(seal.parent.name) for seal in seals if _is_step(seal.parent))

    def leftovers(self) -> set[int]:
        """Return nothing: `prepare` deleted them."""
        return set()

    def seal(self, step: int) -> None:
        """Write the SHA-256 of every file."""
        _seal(self._place.child(str(step)), self.seal_file)

    def verify(self, step: int) -> None:
        """Read every file of one step and hold it against its hash.

        Raises:
            CorruptDataError: a file is missing, was added, cannot be read or differs; names it.
        """
        try:
            _verify(self._place.child(str(step)), self.seal_file, "SHA-256")
        except UnavailableError as error:
            raise CorruptDataError(
                f"checkpoint {self.location}/{step}: {error.detail}; use another step"
            ) from error

    def delete(self, step: int) -> None:
        """Delete a step, its seal first."""
        self._place.delete(f"{step}/{self.seal_file}")
        self._place.delete(str(step))

    def pass_over(self, step: int) -> bool:
        """Delete the step: the medium's room is small."""
        self.delete(step)
        return True


class GcsStore:
    """Steps on a bucket."""

    seal_file = "crc32c.json"

    def __init__(self, place: GcsPlace) -> None:
        self._place = place

    @property
    def location(self) -> str:
        """The folder's `gs://` place."""
        return self._place.location

    def exists(self) -> bool:
        """Whether anything lies there."""
        return bool(self._place.stamps())

    def prepare(self) -> None:
        """Do nothing: folders need not be made, and what is unfinished stays until it is written anew."""

    def steps(self) -> list[int]:
        """Return the sealed steps, in order."""
        return sorted(self._found(sealed=True))

    def leftovers(self) -> set[int]:
        """Return the steps that a kill left without a seal."""
        return self._found(sealed=False) - self._found(sealed=True)

    def _found(self, *, sealed: bool) -> set[int]:
        parts = [name.split("/") for name in self._place.stamps()]
        return {
            int(part[0]) for part in parts if part[0].isdigit() and (not sealed or part[1:] == [self.seal_file])
        }

    def seal(self, step: int) -> None:
        """Write CRC-32C and size of every object."""
        _seal(self._place.child(str(step)), self.seal_file)

    def verify(self, step: int) -> None:
        """Hold what the service says of every object against the seal; nothing is read back.

        Raises:
            CorruptDataError: an object is missing, was added or replaced; names it.
        """
        _verify(self._place.child(str(step)), self.seal_file, "CRC-32C and size")

    def delete(self, step: int) -> None:
        """Delete a step, its seal first."""
        self._place.delete(f"{step}/{self.seal_file}")
        self._place.delete(str(step))

    def pass_over(self, step: int) -> bool:  # noqa: ARG002 - the other store deletes it
        """Leave the step where it is: somebody may want to look at it."""
        return False


def open_store(folder: str | Path) -> CheckpointStore:
    """Return the store of a run's checkpoints at a local path or at `gs://bucket/path`.

    Raises:
        InvalidError: the place has another scheme, or names no bucket.
    """
    place = open_place(folder)
    return GcsStore(place) if isinstance(place, GcsPlace) else LocalStore(place)


def _is_step(path: Path) -> bool:
    return path.name.isdigit() and path.is_dir()
