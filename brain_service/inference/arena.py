"""Shared memory of one model: a row a session with the carry in two slots, the request and the response.

The daemon creates the arena (an anonymous memfd) and owns it, so a session's hidden state outlives every worker. A
step reads one carry slot and writes the other; the daemon flips which is which only after the answer was
accepted, so a dropped answer changes nothing. All blocks are float32 and begin on 64-byte boundaries (a cache
line, and what XLA wants to use a buffer without copying it):

    row r:  carry slot 0 [C] | carry slot 1 [C] | request [D + A + 2 + P] | response [H * A]

The request is observation, previous action, previous reward, is_first, and for a model that sees the bytes of its
image, four to a float: P floats that are copied and never counted with. Pages that no session has touched take
no memory. The memfd is sealed against resizing: a worker cannot pull the memory from under the daemon.
"""

import fcntl
import mmap
import os
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

import numpy as np

from brain_service.errors import CorruptDataError
from brain_service.export.bundle import Manifest

if TYPE_CHECKING:
    from jaxtyping import Float32, Shaped, UInt8

__all__ = ["Arena", "Layout", "Row", "Rows"]

_LINE_BYTES = 64
_FLOAT_BYTES = 4


def _aligned_bytes(floats: int) -> int:
    return -(-floats * _FLOAT_BYTES // _LINE_BYTES) * _LINE_BYTES


@dataclass(frozen=True, slots=True)
class Layout:
    """Sizes in floats of one row: the carry arrays by name (packed in this order), D, A and H."""

    carry: Mapping[str, int]
    observation: int
    action: int
    horizon: int
    image: tuple[int, ...] = ()
    """(h, w, C) of the pixels in a request; empty for a model that sees none."""

    @staticmethod
    def of(manifest: Manifest) -> "Layout":
        """Return the layout that a bundle's model needs."""
        return Layout(
            manifest.carry,
            manifest.observation_size,
            manifest.action_size,
            manifest.action_horizon,
            manifest.image.shape if manifest.image else (),
        )

    @property
    def carry_size(self) -> int:
        """Floats of all carry arrays together, shape [C]."""
        return sum(self.carry.values())

    @property
    def request_size(self) -> int:
        """Floats of observation, previous action, previous reward, is_first and image, shape [D + A + 2 + P]."""
        return self.vector_size + -(-self.image_bytes // _FLOAT_BYTES)

    @property
    def vector_size(self) -> int:
        """Floats of a request without its image, shape [D + A + 2]."""
        return self.observation + self.action + 2

    @property
    def image_bytes(self) -> int:
        """Bytes of the image; 0 for a model that sees none."""
        return prod(self.image) if self.image else 0

    def put(
        self,
        request: "Float32[np.ndarray, 'R']",
        now: "tuple[Shaped[np.ndarray, '*X'], ...]",
    ) -> None:
        """Write a step's inputs into a request: observation, previous action, reward, is_first, and the image."""
        request[: self.vector_size] = np.concatenate([np.ravel(part) for part in now[:4]])
        if self.image:
            self.image_of(request)[...] = now[4].reshape(self.image)

    def image_of(self, request: "Float32[np.ndarray, '*B R']") -> "UInt8[np.ndarray, '*B h w C']":
        """Return the view of the image in requests; for a model that sees."""
        raw = request.view(np.uint8)[..., self.vector_size * _FLOAT_BYTES :][..., : self.image_bytes]
        return raw.reshape(*request.shape[:-1], *self.image)

    @property
    def response_size(self) -> int:
        """Floats of the action chunk, shape [H * A]."""
        return self.horizon * self.action

    @property
    def row_bytes(self) -> int:
        """Bytes of one row, all blocks padded to cache lines."""
        return (
            2 * _aligned_bytes(self.carry_size)
            + _aligned_bytes(self.request_size)
            + _aligned_bytes(self.response_size)
        )


@dataclass(frozen=True, slots=True, eq=False)
class Row:
    """Views into one row; writing to them writes to the shared memory."""

    index: int
    carry: "tuple[Float32[np.ndarray, '1 C'], Float32[np.ndarray, '1 C']]"
    request: "Float32[np.ndarray, '1 R']"
    response: "Float32[np.ndarray, '1 HA']"

    def clear(self) -> None:
        """Zero all blocks: what a former session left must not reach the next one."""
        for block in (*self.carry, self.request, self.response):
            block.fill(0.0)


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """Views of all N rows at once, to gather from and scatter to by index; `carry` by row and slot."""

    carry: "Float32[np.ndarray, 'N 2 C']"
    request: "Float32[np.ndarray, 'N R']"
    response: "Float32[np.ndarray, 'N HA']"


class Arena:
    """`capacity` rows of one layout in a memfd that both processes map."""

    def __init__(self, fd: int, layout: Layout, capacity: int) -> None:
        self.layout = layout
        self.capacity = capacity
        self._fd = fd
        self._memory = mmap.mmap(fd, layout.row_bytes * capacity)

    @classmethod
    def create(cls, layout: Layout, capacity: int) -> "Arena":
        """Allocate `capacity * row_bytes` bytes of shared memory, zeroed, sealed against growing and shrinking."""
        fd = os.memfd_create("brain-arena", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(fd, layout.row_bytes * capacity)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL)
        return cls(fd, layout, capacity)

    @classmethod
    def attach(cls, fd: int, layout: Layout, capacity: int) -> "Arena":
        """Map the memfd that the other side created; takes over `fd`.

        Raises:
            CorruptDataError: the memory is not of the `capacity * row_bytes` bytes that it should have.
        """
        found, expected = os.fstat(fd).st_size, layout.row_bytes * capacity
        if found != expected:
            raise CorruptDataError(f"arena: expected {expected} bytes of shared memory, got {found}")
        return cls(fd, layout, capacity)

    @property
    def fd(self) -> int:
        """The memfd, to be passed to a worker."""
        return self._fd

    def row(self, index: int) -> Row:
        """Return the views of row `index`.

        Raises:
            CorruptDataError: there is no such row.
        """
        if not 0 <= index < self.capacity:
            raise CorruptDataError(f"arena: row {index} is outside 0..{self.capacity - 1}")
        layout, start = self.layout, index * self.layout.row_bytes
        views = []
        for size in (layout.carry_size, layout.carry_size, layout.request_size, layout.response_size):
            view = np.frombuffer(self._memory, np.float32, size, start)
            views.append(view.reshape(1, size))
            start += _aligned_bytes(size)
        return Row(index, (views[0], views[1]), views[2], views[3])

    @property
    def rows(self) -> Rows:
        """Views of all rows."""
        layout = self.layout
        sizes = (layout.carry_size, layout.carry_size, layout.request_size, layout.response_size)
        slot, _, request, _ = (_aligned_bytes(size) // _FLOAT_BYTES for size in sizes)
        table = np.frombuffer(self._memory, np.float32).reshape(self.capacity, -1)
        carry = table[:, : 2 * slot].reshape(self.capacity, 2, slot)
        assert np.shares_memory(carry, table), "splitting an axis gives a view"
        responses = 2 * slot + request
        return Rows(
            carry[:, :, : layout.carry_size],
            table[:, 2 * slot : 2 * slot + layout.request_size],
            table[:, responses : responses + layout.response_size],
        )

    def close(self) -> None:
        """Close the memfd. The mapping goes with the last view of it."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
