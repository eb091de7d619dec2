"""One episode as it lies in its shard: checked once as a whole, then read by any window of its steps.

    record   held against the CRC-32C of its TFRecord frame when it is first touched
    floats   stay where they are: a column's packed float32 are one run of bytes, `4 * width` a step
    others   (flags, roles, rewards, integers) are small: decoded once and kept
    images   stay as well: where each file starts and stops is kept
    blocks   the CRC-32C of each 8 KiB of the checked payload: what is read later is held against them

So a window costs its own bytes and not its episode's, and still no byte is used unchecked.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import google_crc32c
import numpy as np
from jaxtyping import Bool, Float32, Int64, UInt32

from brain_service.datasets.columns import Profile, action_name, step_features, valid_transitions
from brain_service.datasets.example import Values, decode_example
from brain_service.datasets.manifest import EpisodeEntry
from brain_service.datasets.storage import Range
from brain_service.datasets.tfrecord import FRAME_BYTES, unframe
from brain_service.datasets.wire import Span, bytes_at, find_spans, integers_at, places_at
from brain_service.errors import CorruptDataError
from brain_service.spec import EpisodeSpec, Feature

__all__ = ["BLOCK_BYTES", "Layout", "StoredColumn", "StoredEpisode", "open_record"]

BLOCK_BYTES = 8192
_HEADER_BYTES = 12  # of a TFRecord frame: what stands before the payload

Array = np.ndarray[Any, np.dtype[Any]]


class StoredColumn(NamedTuple):
    """A numeric feature of an observation or action: `width` numbers a step, at `place` of the flat vector."""

    key: str
    dtype: str
    place: int
    width: int


class Layout:
    """Which stored columns make up the flat vectors of a spec, in the order of `spec.to_vector`."""

    def __init__(self, spec: EpisodeSpec, profile: Profile) -> None:
        self.profile = profile
        self.features: dict[str, Feature] = step_features(spec)
        self.observation = _columns({f"observation/{path}": item for path, item in spec.observation.items()})
        self.action = _columns({action_name(spec, path): item for path, item in spec.action.items()})
        flags = {"reward": "float32", "is_first": "bool", "is_last": "bool", "is_terminal": "bool"}
        self.columns = (
            *self.observation,
            *self.action,
            *(StoredColumn(f"steps/{name}", dtype, 0, 1) for name, dtype in flags.items()),
        )
        """What a window is made of, besides the roles."""
        self.images = {path: f"steps/observation/{path}" for path in spec.image_paths}
        """The keys of the observation's images, by path."""
        self.keys = frozenset(
            {"steps/control_role", *(column.key for column in self.columns), *self.images.values()}
        )


def _columns(features: Mapping[str, Feature]) -> tuple[StoredColumn, ...]:
    found, place = [], 0
    for name, feature in features.items():
        if feature.is_numeric:
            width = int(np.prod(feature.shape, dtype=np.int64))
            found.append(StoredColumn(f"steps/{name}", feature.dtype, place, width))
            place += width
    return tuple(found)


@dataclass(frozen=True, eq=False)
class StoredEpisode:
    """The checked index of one record; `place` stands for it in errors.

    `starts` are the bytes of the payload at which the float columns of observation and action start; `arrays` hold
    their other columns, shape `[T, width]`. `files` are the places of the images by path: where each starts and
    stops, shape `[T, 2]`. `roles` are the control roles that occur and `role` says for each step
    which. `is_terminal` is true on the step whose action ended the episode, too. `payload` is kept where reading
    it again would cost a request.
    """

    entry: EpisodeEntry
    place: str
    starts: Mapping[str, int]
    arrays: Mapping[str, Array]
    files: Mapping[str, Int64[np.ndarray, "T 2"]]
    blocks: UInt32[np.ndarray, " blocks"]
    reward: Float32[np.ndarray, " T"]
    is_first: Bool[np.ndarray, " T"]
    is_terminal: Bool[np.ndarray, " T"]
    valid: Bool[np.ndarray, " T"]
    role: Array
    roles: tuple[str, ...]
    payload: bytes | None

    @property
    def size_bytes(self) -> int:
        """Memory that it takes, in bytes; about 3 KB of it for the objects themselves."""
        kept = (self.blocks, self.reward, self.is_first, self.is_terminal, self.valid, self.role)
        arrays = sum(array.nbytes for array in (*kept, *self.arrays.values(), *self.files.values()))
        return 3072 + arrays + len(self.payload or b"")

    def without_payload(self) -> "StoredEpisode":
        """Return the index alone."""
        return replace(self, payload=None)

    def ranges(self, columns: tuple[StoredColumn, ...], first: int, stop: int) -> list[Range]:
        """Return the bytes of the shard that hold steps `first` to `stop` of float columns, in whole blocks."""
        return [
            self._range(*self._blocks_around(*self._span(column, first, stop)))
            for column in columns
            if column.key in self.starts
        ]

    def image_range(self, path: str, first: int, stop: int) -> Range:
        """Return the bytes of the shard that hold the images of steps `first` to `stop`, in whole blocks."""
        return self._range(*self._blocks_around(*self._image_span(path, first, stop)))

    def images(self, path: str, first: int, stop: int, piece: bytes | None) -> list[bytes]:
        """Return the image files of steps `first` to `stop`; `piece` is what lies in their `image_range`.

        Raises:
            CorruptDataError: a block is not what was checked before; names shard and byte.
        """
        data, origin = self.payload, 0
        if piece is not None:
            origin, high = self._blocks_around(*self._image_span(path, first, stop))
            self._check(piece, origin, high)
            data = piece
        assert data is not None  # without a payload in memory there is a piece
        places = (self.files[path][first:stop] - origin).tolist()
        return [data[start:end] for start, end in places]

    def _image_span(self, path: str, first: int, stop: int) -> tuple[int, int]:
        places = self.files[path]
        return int(places[first, 0]), int(places[stop - 1, 1])

    def _span(self, column: StoredColumn, first: int, stop: int) -> tuple[int, int]:
        start, step_bytes = self.starts[column.key], 4 * column.width
        return start + first * step_bytes, start + stop * step_bytes

    def _range(self, low: int, high: int) -> Range:
        return Range(self.entry.shard, self.entry.offset_bytes + _HEADER_BYTES + low, high - low)

    def _blocks_around(self, start: int, stop: int) -> tuple[int, int]:
        low = start // BLOCK_BYTES * BLOCK_BYTES
        high = -(-stop // BLOCK_BYTES) * BLOCK_BYTES
        return low, min(high, self.entry.size_bytes - FRAME_BYTES)

    def vectors(
        self, columns: tuple[StoredColumn, ...], first: int, stop: int, pieces: list[bytes]
    ) -> Float32[np.ndarray, "T D"]:
        """Return steps `first` to `stop` as flat vectors, shape `[stop - first, D]`; may be read-only.

        `pieces` are the bytes of `ranges`; with the payload in memory there is no need of any.

        Raises:
            CorruptDataError: a block is not what was checked before; names shard and byte.
        """
        at = iter(pieces)
        parts = [self._part(column, first, stop, at) for column in columns]
        if len(parts) == 1:
            return parts[0].astype(np.float32, copy=False)
        out = np.zeros((stop - first, sum(column.width for column in columns)), np.float32)
        for column, part in zip(columns, parts, strict=True):
            out[:, column.place : column.place + column.width] = part
        return out

    def _part(self, column: StoredColumn, first: int, stop: int, pieces: Any) -> Array:
        if column.key not in self.starts:
            return self.arrays[column.key][first:stop]
        start = self.starts[column.key] + 4 * column.width * first
        if self.payload is not None:
            data, low = self.payload, 0
        else:
            data, (low, high) = next(pieces), self._blocks_around(*self._span(column, first, stop))
            self._check(data, low, high)
        flat = np.frombuffer(data, "<f4", (stop - first) * column.width, start - low)
        return flat.reshape(stop - first, column.width)

    def _check(self, data: bytes, low: int, high: int) -> None:
        if len(data) != high - low:
            raise CorruptDataError(
                f"{self.place}: the shard now ends before the episode's last byte; "
                "restore it or convert the episodes again",
                file=self.entry.shard,
            )
        for at in range(0, len(data), BLOCK_BYTES):
            if google_crc32c.value(data[at : at + BLOCK_BYTES]) != self.blocks[(low + at) // BLOCK_BYTES]:
                byte = self.entry.offset_bytes + _HEADER_BYTES + low + at
                raise CorruptDataError(
                    f"{self.place}: the {BLOCK_BYTES} bytes from byte {byte} on changed since they were checked; "
                    "restore the shard or convert the episodes again",
                    file=self.entry.shard,
                )


def _ended(is_terminal: Bool[np.ndarray, " T"], valid: Bool[np.ndarray, " T"]) -> Bool[np.ndarray, " T"]:
    # In the profile `rlds` the flag stands on the final observation, whose action means nothing; what ended the
    # episode is the action before it, and nothing is to be gained after that.
    ended = is_terminal.copy()
    ended[:-1] |= (is_terminal & ~valid)[1:]
    return ended


def open_record(record: bytes, entry: EpisodeEntry, layout: Layout, shard: str, *, keep: bool) -> StoredEpisode:
    """Check a framed record of the shard called `shard` in errors, and find its columns; `keep` its payload if so.

    Raises:
        CorruptDataError: a checksum does not hold, or a feature is missing or of another length or kind.
    """
    if not record:
        raise CorruptDataError(f"{shard} ends before byte {entry.offset_bytes}", file=entry.shard)
    payload = unframe(record, shard, entry.offset_bytes)
    place = f"{shard}, byte {entry.offset_bytes}, episode {entry.episode_id}"
    starts, arrays, files, roles = _locate(payload, layout, entry.length, place)
    flags = {name: arrays.pop(f"steps/{name}")[:, 0] for name in ("reward", "is_first", "is_last", "is_terminal")}
    names = tuple(dict.fromkeys(roles))
    codes = {name: code for code, name in enumerate(names)}
    smallest = np.min_scalar_type(len(names))
    valid = valid_transitions(flags["is_last"], layout.profile)
    return StoredEpisode(
        entry=entry,
        place=place,
        starts=starts,
        arrays=arrays,
        files=files,
        blocks=np.array(
            [google_crc32c.value(payload[at : at + BLOCK_BYTES]) for at in range(0, len(payload), BLOCK_BYTES)],
            np.uint32,
        ),
        reward=flags["reward"],
        is_first=flags["is_first"],
        is_terminal=_ended(flags["is_terminal"], valid),
        valid=valid,
        role=np.fromiter((codes[name] for name in roles), smallest, len(roles))
        if len(names) > 1
        else np.zeros(len(roles), smallest),
        roles=tuple(name.decode(errors="replace") for name in names),
        payload=payload if keep else None,
    )


def _locate(
    payload: bytes, layout: Layout, length: int, place: str
) -> tuple[dict[str, int], dict[str, Array], dict[str, Array], list[bytes]]:
    """Return where the floats of observation and action start, every other column, the images, and the roles."""
    spans = find_spans(payload, layout.keys)
    roles = _roles(payload, spans)
    if spans is None or roles is None:
        # Legal, but not how encoders write: every column is then decoded and kept, but for the images.
        decoded, roles = _decode_all(decode_example(payload, place), layout, length, place)
        return {}, decoded, {}, roles
    starts: dict[str, int] = {}
    arrays: dict[str, Array] = {}
    for column in layout.columns:
        span = spans.get(column.key)
        values: Values | None = None
        if span is not None and span.kind == "float":
            values = np.frombuffer(payload, "<f4", (span.stop - span.start) // 4, span.start)
        elif span is not None and span.kind == "int64":
            values = integers_at(payload, span)
        checked = _checked(values, column, length, place)
        if span is not None and column.dtype == "float32" and column.key != "steps/reward":
            starts[column.key] = span.start
        else:
            arrays[column.key] = _shaped(checked, column)
    _require_length(roles, length, place)
    return starts, arrays, _image_places(payload, spans, layout, length, place), roles


def _image_places(
    payload: bytes, spans: Mapping[str, Span], layout: Layout, length: int, place: str
) -> dict[str, Array]:
    found: dict[str, Array] = {}
    for path, key in layout.images.items():
        span = spans.get(key)
        places = places_at(payload, span) if span is not None and span.kind == "bytes" else None
        if places is None or len(places) != length:
            raise CorruptDataError(
                f"{place}: {key} should hold {length} images, found {0 if places is None else len(places)}; "
                "convert the episodes again"
            )
        found[path] = places
    return found


def _roles(payload: bytes, spans: Mapping[str, Span] | None) -> list[bytes] | None:
    span = (spans or {}).get("steps/control_role")
    return None if span is None or span.kind != "bytes" else bytes_at(payload, span)


def _decode_all(
    values: Mapping[str, Values], layout: Layout, length: int, place: str
) -> tuple[dict[str, Array], list[bytes]]:
    roles = values.get("steps/control_role")
    roles = roles if isinstance(roles, list) else []
    _require_length(roles, length, place)
    arrays = {
        column.key: _shaped(_checked(values.get(column.key), column, length, place), column)
        for column in layout.columns
    }
    return arrays, roles


def _require_length(roles: list[bytes], length: int, place: str) -> None:
    if len(roles) != length:
        raise CorruptDataError(
            f"{place}: steps/control_role should hold {length} values of text, found {len(roles)}; "
            "convert the episodes again"
        )


def _checked(values: Values | None, column: StoredColumn, length: int, place: str) -> Array:
    """Return a column's flat values if they are of its kind and as many as there should be."""
    count = length * column.width
    numbers = values if isinstance(values, np.ndarray) and len(values) == count else None
    if numbers is not None and (numbers.dtype == np.float32) == (column.dtype == "float32"):
        return numbers
    found = "nothing" if values is None else f"{len(values)} of kind {type(values).__name__}"
    raise CorruptDataError(
        f"{place}: {column.key} should hold {count} values of {column.dtype}, found {found}; "
        "convert the episodes again"
    )


def _shaped(values: Array, column: StoredColumn) -> Array:
    """Return values as `[T, width]` in the column's dtype: a copy, since a view would keep the whole payload."""
    return np.array(values, column.dtype).reshape(-1, column.width)
