"""A shuffle that is the same for ever: NumPy's generators may change their streams between versions."""

from functools import lru_cache

import numpy as np
from jaxtyping import Int64, UInt64

__all__ = ["permutation"]


@lru_cache(maxsize=8)
def permutation(count: int, seed: int, epoch: int) -> Int64[np.ndarray, " n"]:
    """Return 0..count-1 (shape `[count]`) in an order fixed by seed and epoch: sorted by a hash of each.

    The hash is the finaliser of SplitMix64 (Steele, Lea, Flood 2014), a bijection: no two numbers tie. The last
    few results are kept and shared, hence read-only.
    """
    key = _mix(np.array([seed % 2**64], np.uint64)) + np.array([epoch], np.uint64)
    hashes = _mix(np.arange(count, dtype=np.uint64) ^ _mix(key))
    order = np.argsort(hashes, kind="stable").astype(np.int64)
    order.setflags(write=False)
    return order


def _mix(x: UInt64[np.ndarray, " n"]) -> UInt64[np.ndarray, " n"]:
    # Unsigned overflow wraps, which is what the hash means.
    z = x + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
