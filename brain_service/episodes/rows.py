"""The numbers of many steps at once: from what the JSON parser made to arrays, with names and types checked.

Each step's maps are encoded as MessagePack, where a Python float is always a tag and eight big-endian bytes, a
boolean one byte, and a name its bytes. Steps of the same features thus give rows of the same length that differ
in their numbers alone, and whatever else a step may hold (another name, a missing number, a string, an integer)
shows as another byte. NumPy looks at the rows of many steps in one go, which is faster than to look at each
number in Python.
Source: the MessagePack specification.
"""

import operator
from collections.abc import Mapping, Sequence
from functools import reduce
from typing import Any

import msgspec
import numpy as np

__all__ = ["Row", "RowLayout", "encode_row"]

Row = tuple[Mapping[str, Any], Mapping[str, Any], Any]
"""Observation, action and reward of a step."""

encode_row = msgspec.msgpack.Encoder().encode
_TAG_FLOAT, _TAG_FALSE = 0xCB, 0xC2
_FLOAT = np.dtype([("tag", "u1"), ("value", ">f8")])
_LARGEST_EXACT = 2.0**53


class RowLayout:
    """Where each number stands in rows like that of `example`.

    Raises:
        ValueError: the example holds something other than maps, lists, floats and booleans.
    """

    def __init__(self, example: Row) -> None:
        self._expected = np.frombuffer(encode_row(example), np.uint8)
        self._mask = np.full(len(self._expected), 0xFF, np.uint8)
        self._runs: dict[str, list[tuple[int, int]]] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._offset = 1
        for name, part in zip(("observation", "action", "reward"), example, strict=True):
            self._visit(name, part, ())
        if self._offset != len(self._expected):
            raise ValueError("not the layout that was expected")

    def _visit(self, path: str, node: Any, shape: tuple[int, ...]) -> None:
        if type(node) is dict and not shape:
            self._offset += _head_bytes(len(node))
            for name, child in node.items():
                self._offset += len(encode_row(name))
                self._visit(f"{path}/{name}", child, ())
        elif type(node) is list and node:
            self._offset += _head_bytes(len(node))
            shape = (*shape, len(node))
            if type(node[0]) is list:
                for child in node:
                    self._visit(path, child, shape)
            else:
                self._add(path, node[0], shape)
        elif not shape:
            self._add(path, node, shape)
        else:
            raise ValueError("not an array")

    def _add(self, path: str, value: Any, shape: tuple[int, ...]) -> None:
        """Note a run of numbers, the innermost axis of an array."""
        count = shape[-1] if shape else 1
        start = self._offset
        self._offset += count * (9 if type(value) is float else 1)
        if self._offset > len(self._expected):
            raise ValueError("not floats or booleans alone")
        if type(value) is float:
            self._mask[start : self._offset].reshape(count, 9)[:, 1:] = 0
        elif type(value) is bool:
            self._mask[start : self._offset] = 0xFE
        else:
            raise ValueError("neither a float nor a boolean")
        if self.shapes.setdefault(path, shape) != shape:
            raise ValueError("rows differ in length")
        self._runs.setdefault(path, []).append((start, self._offset))

    def arrays(self, rows: Sequence[bytes]) -> dict[str, np.ndarray[Any, np.dtype[Any]]] | None:
        """Return the numbers of the rows by path, float32 or bool, an array `[rows, numbers]` each.

        None where a row has another form, or a float is not finite in float32 or not below 2^53: a whole number
        beyond that would have been rounded twice.
        """
        size_bytes = len(self._expected)
        if set(map(len, rows)) != {size_bytes}:
            return None
        table = np.frombuffer(b"".join(rows), np.uint8).reshape(len(rows), size_bytes)
        if ((table ^ self._expected) & self._mask).any():
            return None
        found = {}
        for path, runs in self._runs.items():
            parts = [self._numbers(table, *run) for run in runs]
            found[path] = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)
            if found[path].dtype == np.float32 and not _is_exact(found[path]):
                return None
        return found

    def _numbers(self, table: Any, start: int, stop: int) -> np.ndarray[Any, np.dtype[Any]]:
        if self._expected[start] != _TAG_FLOAT:
            return np.asarray(table[:, start:stop] != _TAG_FALSE)
        with np.errstate(over="ignore"):
            floats: np.ndarray[Any, np.dtype[Any]] = table[:, start:stop].view(_FLOAT)["value"].astype(np.float32)
        return floats


def _head_bytes(count: int) -> int:
    return 1 if count < 16 else 3 if count < 1 << 16 else 5


def _is_exact(values: np.ndarray[Any, np.dtype[Any]]) -> bool:
    return bool(values.min() > -_LARGEST_EXACT and values.max() < _LARGEST_EXACT)


def at(tree: Any, names: Sequence[str]) -> Any:
    """Return what stands below these names."""
    return reduce(operator.getitem, names, tree)
