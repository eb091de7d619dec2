"""Types that several threads parse into.

msgspec works a struct type out at its first use. Two first uses at once, in two threads, can end the process: one
reads what the other has not filled in yet (a segmentation fault in `convert`, msgspec 0.22). So every type that
threads share is used once where it is defined, under the lock of its import.
"""

from typing import TypeVar

import msgspec

__all__ = ["PREPARED", "prepared"]

_Struct = TypeVar("_Struct", bound=type[msgspec.Struct])

PREPARED: set[type[msgspec.Struct]] = set()
"""What `prepared` has worked out."""


def prepared(kind: _Struct) -> _Struct:
    """Work a struct type out, and those that it holds: a class decorator, until msgspec has a lock of its own."""
    msgspec.json.Decoder(kind)
    PREPARED.add(kind)
    return kind
