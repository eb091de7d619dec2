"""One file from anywhere to the disk: resumed where a killed call stopped, seen only once it is whole."""

import contextlib
import hashlib
import os
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from brain_service.durable import fsync_directory, make_directory
from brain_service.errors import CorruptDataError, UnavailableError

__all__ = ["Fetch", "Opened", "is_whole"]

_READ_BYTES = 1 << 20

Opened = Callable[[int], Generator[bytes, None, None]]
"""Yields a file's bytes from the given one on; nothing where the file ends before it."""


@dataclass(frozen=True, slots=True)
class Fetch:
    """A file to be fetched: `place` stands for its source in errors, size and SHA-256 are promised or None.

    The bytes gather in `<to>.part`; `check` is called between pieces and may raise.
    """

    place: str
    to: Path
    size_bytes: int | None
    sha256: str | None
    progress: Callable[[int, int], None] | None
    check: Callable[[], None]

    def run(self, opened: Opened) -> None:
        """Bring the file here; at once where it is here already.

        Raises:
            CorruptDataError: the source has another size or digest; what was fetched is removed.
            UnavailableError: the medium is full or read-only.
        """
        known = self.size_bytes is not None and self.sha256 is not None
        if known and is_whole(self.to, self.size_bytes, self.sha256):
            return
        part = self.to.with_name(f"{self.to.name}.part")
        try:
            make_directory(self.to.parent)
            if not self._fill(part, opened):
                # The part was of an earlier content: once more, from the first byte.
                part.unlink()
                if not self._fill(part, opened):
                    part.unlink()
                    raise CorruptDataError(
                        f"{self.place}: its size or SHA-256 is not the one that was promised; upload it again"
                    )
            part.replace(self.to)
            fsync_directory(self.to.parent)
        except OSError as error:
            problem = error.strerror or error
            raise UnavailableError(f"cannot write {self.to}: {problem}; free space or fix the folder") from error

    def _fill(self, part: Path, opened: Opened) -> bool:
        """Bring the part to its full length and return whether it is what was promised."""
        with part.open("ab") as file:
            start_byte = file.tell()
            # Without a digest nothing tells whether an old part is of the same content.
            if self.sha256 is None or (self.size_bytes is not None and start_byte > self.size_bytes):
                file.truncate(0)
                start_byte = 0
            digest = _digest_of(part, start_byte)
            if start_byte != self.size_bytes:
                self._append(file, digest, start_byte, opened)
            file.flush()
            os.fsync(file.fileno())
        return self.size_bytes in (None, part.stat().st_size) and self.sha256 in (None, digest.hexdigest())

    def _append(self, file: IO[bytes], digest: Any, done_bytes: int, opened: Opened) -> None:
        with contextlib.closing(opened(done_bytes)) as pieces:
            for piece in pieces:
                self.check()
                file.write(piece)
                digest.update(piece)
                done_bytes += len(piece)
                if self.size_bytes is not None and done_bytes > self.size_bytes:
                    # A source that never ends must not fill the card.
                    return
                if self.progress is not None:
                    self.progress(done_bytes, self.size_bytes or done_bytes)


def is_whole(path: Path, size_bytes: int | None, sha256: str | None) -> bool:
    """Tell whether a file has this size and digest."""
    try:
        if path.stat().st_size != size_bytes:
            return False
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == sha256
    except OSError:
        return False


def _digest_of(path: Path, length: int) -> Any:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while length > 0 and (piece := file.read(min(length, _READ_BYTES))):
            digest.update(piece)
            length -= len(piece)
    return digest
