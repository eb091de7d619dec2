"""Which episodes may go when the card fills: the oldest first, and only what is safe elsewhere.

An episode is held by a dataset when a manifest lists the digest of its log as a source that it took episodes
from. Manifests are read as plain JSON: this room knows nothing of datasets but that.
"""

import logging
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import msgspec

from brain_service.episodes.index import EpisodeRow
from brain_service.settings import RetentionSettings
from brain_service.structs import prepared

__all__ = ["Doomed", "HeldEpisodes", "RetentionPlan", "is_wanted", "plan_retention"]

_LOG = logging.getLogger(__name__)
_DAY_NS = 86_400 * 1_000_000_000
# 2024: no episode is older than the program that records it, so a clock that says so was not set.
_FIRST_NS = 1_704_067_200 * 1_000_000_000


@dataclass(frozen=True, slots=True)
class Doomed:
    """An episode that retention deletes, and by which bound."""

    episode_id: str
    size_bytes: int
    created_ns: int
    reason: str

    def to_json(self) -> dict[str, Any]:
        """Return it as a JSON-ready map."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class RetentionPlan:
    """What would go, oldest first; and how many a bound asks for that must stay, with the bytes they hold."""

    doomed: tuple[Doomed, ...]
    kept_unconverted: int = 0
    kept_not_uploaded: int = 0
    kept_bytes: int = 0

    @property
    def blocked(self) -> str | None:
        """Return why a bound is not met, or None."""
        if not self.kept_unconverted + self.kept_not_uploaded:
            return None
        return (
            f"{self.kept_unconverted} episodes that no dataset holds and {self.kept_not_uploaded} that were not "
            f"uploaded stay although a bound of retention asks for them ({self.kept_bytes / 1e6:.0f} MB): convert "
            "and upload them, delete some, or allow it with retention.delete_unconverted and "
            "retention.delete_not_uploaded"
        )


def plan_retention(
    ended: Sequence[EpisodeRow],
    total_bytes: int,
    free_bytes: int,
    settings: RetentionSettings,
    held: frozenset[str],
    now_ns: int | None = None,
) -> RetentionPlan:
    """Choose among ended episodes, oldest first, until every bound is met or none is left that may go.

    `total_bytes` is what all episodes take, `free_bytes` what the file system has left, `held` the digests of
    logs that some dataset holds. An episode that must stay counts for no bound: younger ones go in its place.
    """
    now_ns = time.time_ns() if now_ns is None else now_ns
    doomed: list[Doomed] = []
    unconverted = not_uploaded = kept_bytes = 0
    for row in ended:
        reason = _reason(row, total_bytes, free_bytes, settings, now_ns)
        if reason is None:
            continue
        if row.sha256 not in held and not settings.delete_unconverted:
            unconverted, kept_bytes = unconverted + 1, kept_bytes + row.size_bytes
        elif row.uploaded_ns is None and not settings.delete_not_uploaded:
            not_uploaded, kept_bytes = not_uploaded + 1, kept_bytes + row.size_bytes
        else:
            doomed.append(Doomed(row.episode_id, row.size_bytes, row.created_ns, reason))
            total_bytes -= row.size_bytes
            free_bytes += row.size_bytes
    return RetentionPlan(tuple(doomed), unconverted, not_uploaded, kept_bytes)


def is_wanted(
    total_bytes: int,
    oldest_ns: int | None,
    free_bytes: int,
    settings: RetentionSettings,
    now_ns: int | None = None,
) -> bool:
    """Tell whether any bound asks for anything, without looking at each episode.

    `oldest_ns` is when the first of the episodes ended, None if none has.
    """
    now_ns = time.time_ns() if now_ns is None else now_ns
    return oldest_ns is not None and (
        (settings.max_age_days is not None and now_ns - oldest_ns > settings.max_age_days * _DAY_NS)
        or (settings.max_total_bytes is not None and total_bytes > settings.max_total_bytes)
        or (settings.keep_free_bytes is not None and free_bytes < settings.keep_free_bytes)
    )


def _reason(
    row: EpisodeRow, total_bytes: int, free_bytes: int, settings: RetentionSettings, now_ns: int
) -> str | None:
    ended_ns = _ended_ns(row, now_ns)
    if settings.max_age_days is not None and ended_ns is not None:
        age_days = (now_ns - ended_ns) / _DAY_NS
        if age_days > settings.max_age_days:
            return f"max_age_days: it ended {age_days:.1f} days ago"
    if settings.max_total_bytes is not None and total_bytes > settings.max_total_bytes:
        return f"max_total_bytes: the episodes take {total_bytes} bytes"
    if settings.keep_free_bytes is not None and free_bytes < settings.keep_free_bytes:
        return f"keep_free_bytes: {free_bytes} bytes are free"
    return None


def _ended_ns(row: EpisodeRow, now_ns: int) -> int | None:
    """Return when an episode ended, as far as that can be believed; None where no clock that was set tells.

    A Raspberry Pi has no battery behind its clock: an episode that ends before the network is there may say 1970.
    Its file may tell better, for instance once it is compressed. The later time counts, since it deletes less.
    """
    told = [time_ns for time_ns in (row.ended_ns, row.mtime_ns) if _FIRST_NS <= time_ns <= now_ns]
    return max(told, default=None)


class _Source(msgspec.Struct):
    file: str
    sha256: str


class _Entry(msgspec.Struct):
    source: str


@prepared
class _Manifest(msgspec.Struct):
    sources: list[_Source]
    splits: dict[str, list[_Entry]]


class HeldEpisodes:
    """The logs that the datasets below a directory hold; manifests are read again when they change.

    Not thread-safe.
    """

    def __init__(self, datasets_dir: Path | None) -> None:
        self._datasets_dir = datasets_dir
        self._read: dict[Path, tuple[int, int, dict[str, set[str]]]] = {}
        self.digests: frozenset[str] = frozenset()
        self.names: frozenset[str] = frozenset()

    def refresh(self) -> bool:
        """Look for new, changed and deleted manifests; tell whether `digests` or `names` are others now.

        A manifest that cannot be read holds nothing: what it would have held stays where it is.
        """
        found: dict[Path, tuple[int, int, dict[str, set[str]]]] = {}
        paths = [] if self._datasets_dir is None else self._datasets_dir.glob("*/*/manifest.json")
        for path in paths:
            try:
                stat = path.stat()
                earlier = self._read.get(path)
                if earlier is not None and earlier[:2] == (stat.st_mtime_ns, stat.st_size):
                    found[path] = earlier
                else:
                    found[path] = (stat.st_mtime_ns, stat.st_size, _held_by(path))
            except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
                _LOG.warning("%s cannot be read, so it holds no episode: %s", path, error)
        if {path: entry[:2] for path, entry in found.items()} == {p: e[:2] for p, e in self._read.items()}:
            return False
        self._read = found
        held = [entry[2] for entry in found.values()]
        self.names = frozenset(name for names in held for name in names)
        self.digests = frozenset(digest for names in held for digests in names.values() for digest in digests)
        return True


def _held_by(path: Path) -> dict[str, set[str]]:
    """Return the digests by file name of the sources that a dataset took at least one episode from.

    Raises:
        OSError: the manifest cannot be read.
        msgspec.DecodeError, UnicodeDecodeError, RecursionError: it is no manifest.
    """
    manifest = msgspec.json.decode(path.read_bytes(), type=_Manifest)
    used = {entry.source for entries in manifest.splits.values() for entry in entries}
    held: dict[str, set[str]] = {}
    for source in manifest.sources:
        if source.file in used:
            held.setdefault(source.file, set()).add(source.sha256)
    return held
