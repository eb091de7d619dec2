"""The steps of many log lines at once, without a Python object a number.

Lines of one episode differ in their values alone. A pattern made of the first one takes each of the others apart.
The texts of one feature, of all lines, are then one JSON document: simdjson checks it and hands out an array.
It takes lines of the usual kind alone: exactly the members that every step has, exactly the features of the spec,
each of its shape and type. What it takes has the bits that the general reader would give it.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from operator import mul
from typing import Any, NamedTuple

import google_crc32c
import numpy as np
import orjson

from brain_service.episodes.episode import Column
from brain_service.episodes.log_format import MARK, TAIL_BYTES
from brain_service.spec import EpisodeSpec, Feature

__all__ = ["GAVE_UP", "ParsedSteps", "StepParser"]

GAVE_UP = (AttributeError, KeyError, RuntimeError, TypeError, ValueError)
"""What `StepParser` raises for lines of another kind; what is wrong with them, if anything, others find."""

# A line without its newline: the bytes under the checksum.
_BODY = 1 - TAIL_BYTES
_TAIL = re.escape(MARK) + rb'([0-9a-f]{8})"\}'
# Whole numbers beyond would be rounded twice on their way to float32.
_LARGEST_EXACT = 2.0**53

_SCALAR = rb'([^,"\[\]{}]++)'
_TEXT = rb'("(?:[^"\\]++|\\.)*+")'
_ROW = rb"(\[[^\]]*+\])"
_ROWS = rb'([^"{}]*)'
_PLAIN_TEXT = rb'"[ !#-\[\]-~]*+"'
_STEP_METADATA = (
    rb'\{"timestamp_ns":' + _SCALAR + rb',"step_index":' + _SCALAR + rb',"control_role":' + _TEXT + rb"(?:,"
    rb'"policy":(\{[^{}]*+\}))?\}'
)
_MEMBERS: dict[str, bytes] = {
    "type": rb'"step"',
    "observation": b"",
    "action": b"",
    "reward": _SCALAR,
    "is_terminal": _SCALAR,
    "step_metadata": _STEP_METADATA,
    "episode_id": _PLAIN_TEXT,
}
_FEATURES = ("observation", "action")


class ParsedSteps(NamedTuple):
    """Columns of n steps: arrays `[n, *shape]` of the feature's dtype or lists of text, by part and path."""

    columns: dict[str, Column]
    reward: Column
    is_terminal: Column
    timestamp_ns: Column
    control_roles: list[str]


class StepParser:
    """Parses lines of steps that look like `example` and have the features of `spec`. For one thread at a time.

    Raises:
        GAVE_UP: the example is not of the usual kind.
    """

    def __init__(self, spec: EpisodeSpec, example: bytes) -> None:
        # Here, since the daemon imports this module and has no log to convert.
        import simdjson

        self._parser = simdjson.Parser()
        self._features = {
            **{f"observation/{path}": feature for path, feature in spec.observation.items()},
            **{f"action/{path}": feature for path, feature in spec.action.items()},
        }
        self._names: list[str] = []
        record = orjson.loads(example)
        members = []
        for name, pattern in _MEMBERS.items():
            value = b"".join(self._pattern(name, record[name])) if name in _FEATURES else pattern
            members.append(b'"%b":%b' % (name.encode(), value))
        if sorted(self._names) != sorted(self._features):
            raise ValueError("not the features of the spec")
        self._match = re.compile(rb"\{" + b",".join(members) + _TAIL, re.DOTALL).fullmatch

    def _pattern(self, path: str, node: Any) -> Iterator[bytes]:
        """Yield the parts of a pattern for the text of a feature, or of a map of them."""
        feature = self._features.get(path)
        if feature is not None:
            self._names.append(path)
            yield _value_pattern(feature)
            return
        separator = b"{"
        for name, child in node.items():
            yield re.escape(separator + orjson.dumps(name) + b":")
            yield from self._pattern(f"{path}/{name}", child)
            separator = b","
        yield rb"\}" if node else rb"\{\}"

    def parse(self, lines: Sequence[bytes], first: int) -> ParsedSteps:
        """Return the steps `first` and following of these lines (at least one, without newlines).

        Raises:
            GAVE_UP: a line is damaged, or not of the usual kind.
        """
        rows = []
        for line in lines:
            found = self._match(line)
            # Every value is looked at below, so JSON it is; but not that the line is what was written.
            if found is None or int(found[found.lastindex or 0], 16) != google_crc32c.value(line[:_BODY]):
                raise ValueError("another kind of line, or a damaged one")
            rows.append(found.groups())
        *values, reward, terminal, time, index, role, policy, _ = zip(*rows, strict=True)
        if not np.array_equal(self._column(index, _INT64), np.arange(first, first + len(lines))):
            raise ValueError("not the steps that follow")
        if any(policy) and len(self._document([text or b"null" for text in policy])) != len(lines):
            raise ValueError("no JSON")
        columns = {
            name: self._column(texts, self._features[name])
            for name, texts in zip(self._names, values, strict=True)
        }
        return ParsedSteps(
            columns,
            self._column(reward, _FLOAT),
            self._column(terminal, _BOOL),
            self._column(time, _INT64),
            _texts(self._document(role)),
        )

    def _document(self, texts: Sequence[bytes]) -> Any:
        return self._parser.parse(b"[" + b",".join(texts) + b"]")

    def _column(self, texts: Sequence[bytes], feature: Feature) -> Column:
        """Return the values of one feature, one a text."""
        values = self._document(texts)
        # Each text holds one value or more: none is empty where this is JSON.
        if len(values) != len(texts):
            raise ValueError("more than one value")
        if feature.shape:
            _require_shape(values, (len(texts), *feature.shape))
            # The parser flattens: that there is no array within the rows shows in the brackets.
            if len(feature.shape) > 1 and _brackets(texts) != len(texts) * _count_arrays(feature.shape):
                raise ValueError("another nesting")
        column = _GATHER[feature.dtype](values)
        return column if isinstance(column, list) else column.reshape(len(texts), *feature.shape)


_FLOAT, _INT64, _BOOL = Feature("float32"), Feature("int64"), Feature("bool")


def _value_pattern(feature: Feature) -> bytes:
    if feature.dtype == "text":
        return _TEXT
    return (_SCALAR, _ROW)[len(feature.shape)] if len(feature.shape) < 2 else _ROWS


def _brackets(texts: Sequence[bytes]) -> int:
    return sum(text.count(b"[") for text in texts)


def _count_arrays(shape: tuple[int, ...]) -> int:
    """Return how many JSON arrays a value of this shape is written as."""
    return sum(accumulate(shape[:-1], mul, initial=1))


def _require_shape(values: Any, shape: tuple[int, ...]) -> None:
    """Check the lengths of arrays in arrays, but for what the innermost ones hold."""
    if len(values) != shape[0]:
        raise ValueError("another shape")
    if len(shape) == 2:
        if set(map(len, values)) - {shape[1]}:
            raise ValueError("another shape")
    elif len(shape) > 2:
        for value in values:
            _require_shape(value, shape[1:])


def _floats(values: Any) -> np.ndarray[Any, np.dtype[np.float32]]:
    wide = np.frombuffer(values.as_buffer(of_type="d"), np.float64)
    if wide.size and not (wide.min() > -_LARGEST_EXACT and wide.max() < _LARGEST_EXACT):
        raise ValueError("rounded twice, or not finite in float32")
    return wide.astype(np.float32)


def _integers(values: Any) -> np.ndarray[Any, np.dtype[np.int64]]:
    return np.frombuffer(values.as_buffer(of_type="i"), np.int64)


def _small_integers(values: Any) -> np.ndarray[Any, np.dtype[np.uint8]]:
    wide = _integers(values)
    if wide.size and not (wide.min() >= 0 and wide.max() <= 255):
        raise ValueError("not in 0..255")
    return wide.astype(np.uint8)


def _booleans(values: Any) -> np.ndarray[Any, np.dtype[np.bool_]]:
    # The parser has no buffer of them; mixed with numbers they would not be an array of booleans.
    array = np.array(values.as_list())
    if array.size and array.dtype != np.bool_:
        raise ValueError("not booleans alone")
    return array.astype(np.bool_)


def _texts(values: Any) -> list[str]:
    found: list[str] = values.as_list()
    return found


_GATHER: dict[str, Callable[[Any], Any]] = {
    "float32": _floats,
    "int64": _integers,
    "uint8": _small_integers,
    "bool": _booleans,
    "text": _texts,
}
