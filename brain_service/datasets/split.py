"""Train or validation: decided by a hash of the episode's id, so that it stays the same as data grows."""

import hashlib
from collections.abc import Sequence

__all__ = ["SPLITS", "assign_splits"]

SPLITS = ("train", "val")


def _position(episode_id: str) -> float:
    """Return where an id falls in [0, 1): uniform over ids, the same on every machine."""
    return int.from_bytes(hashlib.sha256(episode_id.encode()).digest()[:7], "big") / 2**56


def assign_splits(episode_ids: Sequence[str], val_fraction: float) -> list[str]:
    """Return `train` or `val` for each id: `val` where its hash in [0, 1) lies below `val_fraction`.

    With two episodes or more, and a fraction above 0, neither split stays empty: the episode with the smallest
    hash validates, the one with the largest trains. Only these two can change sides when more are recorded,
    and only while the fraction alone would leave a split empty.
    """
    positions = [_position(episode_id) for episode_id in episode_ids]
    splits = ["val" if position < val_fraction else "train" for position in positions]
    if len(splits) == 1:
        return ["train"]
    if splits and val_fraction > 0:
        splits[positions.index(min(positions))] = "val"
        splits[positions.index(max(positions))] = "train"
    return splits
