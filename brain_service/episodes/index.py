"""The catalogue's tables: an index over the log files, derived from them and never the truth about a step.

A row belongs to a file of a known name, size and modification time; `library` keeps rows and files together.
What no file tells, it alone knows: when an episode was uploaded, and how many bytes were written on which day.
"""

import base64
import binascii
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import orjson

from brain_service.database import Database
from brain_service.errors import InvalidError

__all__ = ["NO_FILTERS", "EpisodeIndex", "EpisodeRow", "Filters", "KnownFile", "decode_cursor", "encode_cursor"]

_VERSION = 1
_SCHEMA = """
CREATE TABLE IF NOT EXISTS episodes (
    episode_id TEXT PRIMARY KEY,
    file TEXT NOT NULL,
    file_bytes INTEGER NOT NULL,
    mtime_ns INTEGER NOT NULL,
    created_ns INTEGER NOT NULL,
    ended_ns INTEGER,
    state TEXT NOT NULL,
    environment_id TEXT,
    robot_id TEXT,
    control_role TEXT,
    xr_mode TEXT,
    idempotency_key TEXT,
    size_bytes INTEGER NOT NULL,
    sha256 TEXT,
    converted INTEGER NOT NULL DEFAULT 0,
    summary TEXT NOT NULL
);
CREATE INDEX IF NOT EXISTS episodes_by_time ON episodes (created_ns, episode_id);
CREATE INDEX IF NOT EXISTS episodes_by_state ON episodes (state);
CREATE INDEX IF NOT EXISTS episodes_by_key ON episodes (idempotency_key);
CREATE TABLE IF NOT EXISTS episode_tags (
    tag TEXT NOT NULL, episode_id TEXT NOT NULL, PRIMARY KEY (tag, episode_id)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS tags_by_episode ON episode_tags (episode_id);
CREATE TABLE IF NOT EXISTS uploaded (
    episode_id TEXT PRIMARY KEY, created_ns INTEGER NOT NULL, uploaded_ns INTEGER NOT NULL
);
CREATE TABLE IF NOT EXISTS uploaded_logs (
    sha256 TEXT PRIMARY KEY, uploaded_ns INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS wear (day TEXT PRIMARY KEY, size_bytes INTEGER NOT NULL)
"""

# After this long the files themselves are asked: whoever lists waits.
_BUSY_TIMEOUT_S = 2.0
_MOST_INTEGER = 2**63 - 1


class Filters(msgspec.Struct, frozen=True, kw_only=True):
    """What a list shows: every given member must hold; `tags` all of them. Times in ns, both bounds exclusive."""

    tags: tuple[str, ...] = ()
    robot_id: str | None = None
    environment_id: str | None = None
    control_role: str | None = None
    xr_mode: str | None = None
    state: str | None = None
    created_after: int | None = None
    created_before: int | None = None


NO_FILTERS = Filters()


class KnownFile(NamedTuple):
    """The file that a row was made of: its name, size in bytes and modification time in ns, and what it held."""

    file: str
    file_bytes: int
    mtime_ns: int
    is_open: bool
    created_ns: int


@dataclass(frozen=True, slots=True)
class EpisodeRow:
    """An episode as the index knows it. `summary` is its JSON-ready summary; sizes and times in bytes and ns.

    `size_bytes` counts what deleting it would free. `sha256` is that of the uncompressed log, None while unknown.
    """

    episode_id: str
    file: str
    file_bytes: int
    mtime_ns: int
    size_bytes: int
    summary: Mapping[str, Any]
    sha256: str | None = None
    idempotency_key: str | None = None
    converted: bool = False
    uploaded_ns: int | None = None

    @property
    def known(self) -> KnownFile:
        """The file that the row was made of."""
        return KnownFile(self.file, self.file_bytes, self.mtime_ns, self.is_open, self.created_ns)

    @property
    def is_open(self) -> bool:
        """Whether the log has no end."""
        return bool(self.summary["state"] == "open")

    @property
    def created_ns(self) -> int:
        """Time of creation, in nanoseconds of Unix time."""
        return int(self.summary["created_ns"])

    @property
    def ended_ns(self) -> int:
        """Time of the end in nanoseconds of Unix time, or of the creation where the log does not tell."""
        return int(self.summary.get("ended_ns") or self.created_ns)


class EpisodeIndex:
    """Rows by episode id in a SQLite file or in memory. Thread-safe; every call may block on the medium.

    Raises, in every method:
        UnavailableError: the medium is full, read-only or failing, or the file stays locked.
        CorruptDataError: the file is damaged.
    """

    def __init__(self, database: Path | None) -> None:
        """Open the tables, and check the file's structure.

        Raises:
            ConfigError: the file cannot be opened, or a newer version of this program wrote it.
            CorruptDataError: it is damaged.
        """
        self._database = Database(database, _SCHEMA, _VERSION, name="episodes", busy_timeout_s=_BUSY_TIMEOUT_S)
        try:
            if database is not None:
                self._database.check()
        except BaseException:
            # Raised again: whatever it is, the file must not stay open.
            self._database.close()
            raise

    def close(self) -> None:
        """Close the file."""
        self._database.close()

    def files(self) -> dict[str, KnownFile]:
        """Return by episode id what file each row was made of."""
        rows = self._database.read(
            "SELECT episode_id, file, file_bytes, mtime_ns, state = 'open', created_ns FROM episodes"
        )
        return {row[0]: KnownFile(row[1], row[2], row[3], bool(row[4]), row[5]) for row in rows}

    def put(self, rows: Sequence[EpisodeRow]) -> None:
        """Insert or replace rows; a digest that is known already stays."""
        with self._database.transaction() as connection:
            for row in rows:
                connection.execute("DELETE FROM episode_tags WHERE episode_id = ?", (row.episode_id,))
                connection.execute(_UPSERT, _values(row))
                tags = {(str(tag), row.episode_id) for tag in row.summary["metadata"].get("tags", ())}
                connection.executemany("INSERT INTO episode_tags VALUES (?, ?)", sorted(tags))

    def remove(self, episode_ids: Iterable[str]) -> None:
        """Forget episodes whose files are gone, and that they were uploaded."""
        gone = [(episode_id,) for episode_id in episode_ids]
        with self._database.transaction() as connection:
            for table in ("episodes", "episode_tags", "uploaded"):
                # The table's name is one of the three above.
                connection.executemany(f"DELETE FROM {table} WHERE episode_id = ?", gone)  # noqa: S608

    def get(self, episode_id: str) -> EpisodeRow | None:
        """Return one row."""
        rows = self._database.read(f"{_SELECT} WHERE episode_id = ?", (episode_id,))
        return _row(rows[0]) if rows else None

    def page(
        self, filters: Filters, limit: int, after: tuple[int, str] | None = None
    ) -> tuple[list[EpisodeRow], bool]:
        """Return up to `limit` rows behind (created_ns, id), newest first, and whether more follow."""
        where, values = _where(filters)
        if after is not None:
            where.append("(created_ns, episode_id) < (?, ?)")
            values += after
        clause = f"WHERE {' AND '.join(where)}" if where else ""
        rows = self._database.read(
            f"{_SELECT} {clause} ORDER BY created_ns DESC, episode_id DESC LIMIT ?", (*values, limit + 1)
        )
        return [_row(row) for row in rows[:limit]], len(rows) > limit

    def by_idempotency_key(self, key: str) -> str | None:
        """Return the id of the episode that a request with this key created."""
        rows = self._database.read("SELECT episode_id FROM episodes WHERE idempotency_key = ?", (key,))
        return str(rows[0][0]) if rows else None

    def ended_since(self, time_ns: int) -> int:
        """Return how many episodes ended after a time, in ns; one whose log does not tell did at its creation."""
        rows = self._database.read(
            "SELECT count(*) FROM episodes WHERE state != 'open' AND ifnull(ended_ns, created_ns) > ?", (time_ns,)
        )
        return int(rows[0][0])

    def ended(self) -> list[EpisodeRow]:
        """Return all ended episodes, oldest first."""
        return [_row(row) for row in self._database.read(f"{_SELECT} WHERE state != 'open' ORDER BY created_ns")]

    def uncompressed(self, before_ns: int, limit: int) -> list[EpisodeRow]:
        """Return ended episodes whose log is not compressed and was last changed before then, oldest first."""
        where = "WHERE state != 'open' AND file NOT LIKE '%.zst' AND mtime_ns <= ? ORDER BY created_ns LIMIT ?"
        return [_row(row) for row in self._database.read(f"{_SELECT} {where}", (before_ns, limit))]

    def without_digest(self) -> list[tuple[str, str]]:
        """Return (id, file) of the ended episodes whose digest is not known."""
        rows = self._database.read(
            "SELECT episode_id, file FROM episodes WHERE state != 'open' AND sha256 IS NULL"
        )
        return [(row[0], row[1]) for row in rows]

    def extent(self) -> tuple[int, int | None]:
        """Return the bytes that all episodes take on the medium, and when the first of them ended, in ns."""
        row = self._database.read(
            "SELECT ifnull(sum(size_bytes), 0), min(iif(state = 'open', NULL, ifnull(ended_ns, created_ns)))"
            " FROM episodes"
        )[0]
        return int(row[0]), row[1]

    def counts(self) -> dict[str, Any]:
        """Return `total`, `bytes`, `compressed` (files), `unconverted`, and the oldest such `created_ns`."""
        row = self._database.read(
            "SELECT count(*), ifnull(sum(size_bytes), 0), ifnull(sum(file LIKE '%.zst'), 0),"
            " ifnull(sum(state != 'open' AND NOT converted), 0),"
            " min(iif(state != 'open' AND NOT converted, created_ns, NULL)) FROM episodes"
        )[0]
        names = ("total", "bytes", "compressed", "unconverted", "oldest_unconverted_ns")
        return dict(zip(names, tuple(row), strict=True))

    def set_digests(self, digests: Mapping[str, str]) -> None:
        """Note the digests of ended logs' text, by episode id."""
        with self._database.transaction() as connection:
            connection.executemany(
                "UPDATE episodes SET sha256 = ? WHERE episode_id = ?",
                [(sha256, episode_id) for episode_id, sha256 in digests.items()],
            )

    def set_converted(self, digests: frozenset[str]) -> None:
        """Mark exactly those episodes as converted whose digest is among `digests`."""
        rows = self._database.read(
            "SELECT episode_id, sha256, converted FROM episodes WHERE sha256 NOT NULL OR converted"
        )
        changes = [(now, row[0]) for row in rows if (now := row[1] in digests) != bool(row[2])]
        if changes:
            with self._database.transaction() as connection:
                connection.executemany("UPDATE episodes SET converted = ? WHERE episode_id = ?", changes)

    def set_uploaded(self, episode_ids: Iterable[str], uploaded_ns: int) -> None:
        """Note, durably, that episodes are stored elsewhere too; a later one under the same id is not."""
        with self._database.transaction(durable=True) as connection:
            connection.executemany(
                "INSERT OR REPLACE INTO uploaded"
                " SELECT episode_id, created_ns, ? FROM episodes WHERE episode_id = ?",
                [(uploaded_ns, name) for name in episode_ids],
            )

    def set_uploaded_logs(self, digests: Iterable[str], uploaded_ns: int) -> None:
        """Note, durably, that the logs of these digests are stored elsewhere too, whether they are here or not."""
        with self._database.transaction(durable=True) as connection:
            connection.executemany(
                "INSERT OR REPLACE INTO uploaded_logs VALUES (?, ?)", [(sha256, uploaded_ns) for sha256 in digests]
            )

    def uploaded_logs(self) -> list[tuple[str, int]]:
        """Return the digests of the logs that were uploaded, and when, in nanoseconds of Unix time."""
        return [(row[0], row[1]) for row in self._database.read("SELECT sha256, uploaded_ns FROM uploaded_logs")]

    def uploads(self) -> list[tuple[str, int, int]]:
        """Return what was uploaded: id, and the times of creation and upload in nanoseconds of Unix time."""
        rows = self._database.read("SELECT episode_id, created_ns, uploaded_ns FROM uploaded")
        return [(row[0], row[1], row[2]) for row in rows]

    def add_uploads(self, uploads: Iterable[tuple[str, int, int]], logs: Iterable[tuple[str, int]] = ()) -> None:
        """Note what another index knows of uploads; times in nanoseconds."""
        with self._database.transaction() as connection:
            connection.executemany("INSERT OR REPLACE INTO uploaded VALUES (?, ?, ?)", uploads)
            connection.executemany("INSERT OR REPLACE INTO uploaded_logs VALUES (?, ?)", logs)

    def add_wear(self, days: Mapping[str, int]) -> None:
        """Add bytes written to the sums of their days."""
        if days:
            with self._database.transaction() as connection:
                connection.executemany(
                    "INSERT INTO wear VALUES (?, ?)"
                    " ON CONFLICT (day) DO UPDATE SET size_bytes = size_bytes + excluded.size_bytes",
                    list(days.items()),
                )

    def wear(self, days: int = 31) -> dict[str, int]:
        """Return the bytes written on the last days on which any were, by day."""
        rows = self._database.read("SELECT day, size_bytes FROM wear ORDER BY day DESC LIMIT ?", (days,))
        return {row[0]: row[1] for row in rows}


_COLUMNS = (
    "episode_id, file, file_bytes, mtime_ns, created_ns, ended_ns, state, environment_id, robot_id, control_role,"
    " xr_mode, idempotency_key, size_bytes, sha256, summary"
)
_UPSERT = (  # of the constant above alone
    f"INSERT INTO episodes ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"  # noqa: S608
    " ON CONFLICT (episode_id) DO UPDATE SET"
    " sha256 = ifnull(excluded.sha256, iif(file_bytes = excluded.file_bytes AND mtime_ns = excluded.mtime_ns,"
    " sha256, NULL)), "
    + ", ".join(
        f"{name} = excluded.{name}" for name in _COLUMNS.split(", ") if name not in ("episode_id", "sha256")
    )
)
_SELECT = (
    "SELECT episode_id, file, file_bytes, mtime_ns, size_bytes, summary, sha256, idempotency_key, converted,"
    " ifnull((SELECT uploaded_ns FROM uploaded AS u WHERE u.episode_id = episodes.episode_id"
    " AND u.created_ns = episodes.created_ns),"
    " (SELECT uploaded_ns FROM uploaded_logs AS l WHERE l.sha256 = episodes.sha256)) FROM episodes"
)


def _values(row: EpisodeRow) -> tuple[Any, ...]:
    metadata = row.summary["metadata"]
    named = [metadata.get(name) for name in ("environment_id", "robot_id", "control_role", "xr_mode")]
    return (
        *(row.episode_id, row.file, row.file_bytes, row.mtime_ns),
        *(row.created_ns, row.ended_ns, row.summary["state"]),
        *(None if value is None else str(value) for value in named),
        *(row.idempotency_key, row.size_bytes, row.sha256, orjson.dumps(row.summary).decode()),
    )


def _row(row: Any) -> EpisodeRow:
    name, file, file_bytes, mtime_ns, size_bytes, summary, sha256, key, converted, uploaded_ns = row
    return EpisodeRow(
        name,
        file,
        file_bytes,
        mtime_ns,
        size_bytes,
        orjson.loads(summary),
        sha256,
        key,
        bool(converted),
        uploaded_ns,
    )


def _where(filters: Filters) -> tuple[list[str], list[Any]]:
    where, values = [], []
    for name in ("robot_id", "environment_id", "control_role", "xr_mode", "state"):
        if (value := getattr(filters, name)) is not None:
            where.append(f"{name} = ?")
            values.append(value)
    for name, sign in (("created_after", ">"), ("created_before", "<")):
        if (value := getattr(filters, name)) is not None:
            where.append(f"created_ns {sign} ?")
            values.append(max(-_MOST_INTEGER, min(value, _MOST_INTEGER)))
    for tag in filters.tags:
        where.append(
            "EXISTS (SELECT 1 FROM episode_tags AS t WHERE t.tag = ? AND t.episode_id = episodes.episode_id)"
        )
        values.append(tag)
    return where, values


def encode_cursor(created_ns: int, episode_id: str) -> str:
    """Return the cursor that goes on behind an episode."""
    return base64.urlsafe_b64encode(f"{created_ns}:{episode_id}".encode()).decode().rstrip("=")


def decode_cursor(cursor: str) -> tuple[int, str]:
    """Return creation time in nanoseconds and id of the episode that a cursor stands behind.

    Raises:
        InvalidError: it is none of ours.
    """
    try:
        text = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True).decode()
        created_ns, colon, episode_id = text.partition(":")
        found = (int(created_ns), episode_id)
        if not colon or encode_cursor(*found) != cursor or abs(found[0]) >= 2**63:
            raise ValueError(cursor)
    except (binascii.Error, ValueError) as error:
        raise InvalidError(
            f"cursor {cursor[:64]!r} is none that a list gave; begin without one", field="cursor"
        ) from error
    return found
