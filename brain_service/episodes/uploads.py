"""What another process than the daemon tells the catalogue: which capture logs are stored elsewhere too.

Told by the SHA-256 of a log's text, as datasets do: another episode that later has the same id is not meant.
"""

import contextlib
import time
from collections.abc import Iterable
from pathlib import Path

from brain_service.episodes.index import EpisodeIndex

__all__ = ["note_uploaded"]


def note_uploaded(database: Path, digests: Iterable[str]) -> None:
    """Note, durably, that the logs of these digests are stored elsewhere; retention may then delete them.

    `database` is the daemon's `brain.db`, which may be running. Logs that are not here are noted too: nothing
    else follows from it.

    Raises:
        ConfigError: the file cannot be opened, or a newer version of this program wrote it.
        UnavailableError: the medium is full or read-only; they count as not uploaded.
        CorruptDataError: the file is damaged.
    """
    noted = list(digests)
    if noted:
        with contextlib.closing(EpisodeIndex(database)) as index:
            index.set_uploaded_logs(noted, time.time_ns())
