"""A run's curves on a bucket: written on this machine, and copied there whenever they grew.

Event files are of one attempt each, by their names; the lines of all attempts are one object.
"""

import shutil
import tempfile
from pathlib import Path

from brain_service.datasets.places import LocalPlace, Place

__all__ = ["Curves"]

LOGS = "logs"
LINES = f"{LOGS}/metrics.jsonl"


class Curves:
    """The folder that the loop writes curves to, for checkpoints at `place`; `close` it.

    Raises:
        ForbiddenError: these credentials may not read there.
        UnavailableError: what earlier attempts wrote cannot be read.
    """

    def __init__(self, place: Place) -> None:
        self._place = place
        self._copied: dict[str, tuple[int, int]] = {}
        if isinstance(place, LocalPlace):
            self.folder = place.path
            return
        self.folder = Path(tempfile.mkdtemp(prefix="curves-"))
        earlier = place.read(LINES)
        if earlier is not None:
            (self.folder / LOGS).mkdir()
            (self.folder / LINES).write_bytes(earlier)

    def copy(self) -> None:
        """Bring the bucket up to date.

        Raises:
            UnavailableError: it cannot be written to now.
        """
        if isinstance(self._place, LocalPlace):
            return
        for path in sorted((self.folder / LOGS).glob("*")):
            status = path.stat()
            name, stamp = path.relative_to(self.folder).as_posix(), (status.st_size, status.st_mtime_ns)
            if not path.name.startswith(".") and self._copied.get(name) != stamp:
                self._place.write(name, path.read_bytes())
                self._copied[name] = stamp

    def close(self) -> None:
        """Forget the copy on this machine."""
        if not isinstance(self._place, LocalPlace):
            shutil.rmtree(self.folder, ignore_errors=True)
