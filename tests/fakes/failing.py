"""A medium whose flushes fail, below a kernel that forgets what they did not save once it is told to."""

import errno
import itertools
import os
from collections.abc import Callable, Container
from pathlib import Path
from typing import Any

from tests.fakes.disk import Call
from tests.fakes.medium import Medium
from tests.fakes.recording import End, Recording

__all__ = ["FailingRecording"]

# The real ones: what the kernel does by itself is no change that anybody made.
_open, _pwrite, _close = os.open, os.pwrite, os.close


class FailingRecording(Recording):
    """A recording of a medium that fails the flushes of files numbered in `fails`, fdatasync and fsync alike.

    Where pages are dropped, the file reads from then on as the medium holds it: what a failed flush should have
    saved is gone, or zeros. Sent to another process it fails no more: a new start finds a medium that works.
    """

    def __init__(
        self, root: Path, fails: Container[int], dying: Callable[[Recording], None] = lambda recording: None
    ) -> None:
        super().__init__(root, dying=dying)
        self._fails = fails
        self._flushes = itertools.count()

    def __setstate__(self, state: dict[str, Any]) -> None:
        FailingRecording.__init__(self, Path(state["root"]), ())
        self.__dict__.update(state)

    def before(self, call: Call) -> bool:
        """Keep the beginning of a change; a flush that fails also its end.

        Raises:
            OSError: the medium refuses.
        """
        seen = super().before(call)
        if call.kind == "sync" and not call.is_folder and next(self._flushes) in self._fails:
            self.after(call, None)
            raise OSError(errno.EIO, os.strerror(errno.EIO), call.path)
        if call.kind == "drop":
            self._forget(call)
        return seen

    def _forget(self, call: Call) -> None:
        """Have an open file read as the medium holds it; its dirty pages are taken to be flushed before."""
        if not any(isinstance(event, End) and event.change.failed for event in self.events):
            return
        medium = Medium(self)
        for event in self.events:
            medium.play(event)
        held = medium.holds(call.handle or 0)
        fd = _open(call.path, os.O_RDWR)
        size_bytes = os.fstat(fd).st_size
        stop = min(size_bytes, call.offset + (call.size_bytes or size_bytes))
        _pwrite(fd, held[call.offset : stop].ljust(stop - call.offset, b"\0"), call.offset)
        _close(fd)
