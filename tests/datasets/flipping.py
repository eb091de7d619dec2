"""Damages one file of a dataset in every way that one byte allows, and says what verifying did not see.

    python -m tests.datasets.flipping FOLDER FILE

Run in a process of its own, without the run-time shape checks of the tests, which take ten times as long.
Prints `{"bytes", "unseen", "altered", "misplaced", "unseen_cuts"}`, the last four as positions: flips that were
not found; those of them after which a reader gets other values; flips whose damage was not named by shard, episode
and byte; lengths at which a cut was not found.
"""

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from brain_service.datasets.dataset import Dataset, open_dataset
from brain_service.datasets.verify import Damage, verify_dataset
from brain_service.datasets.verify.record import RecordCheck
from brain_service.datasets.verify.shard import check_shard
from brain_service.datasets.verify.sidecars import check_layout, check_statistics


def flips(path: Path) -> Iterator[int]:
    """Flip one bit of each byte in turn, another one each time; yields where. The file is whole afterwards."""
    good = path.read_bytes()
    for position in range(len(good)):
        bad = bytearray(good)
        bad[position] ^= 1 << (position % 8)
        path.write_bytes(bad)
        yield position
    path.write_bytes(good)


def flip_shard(folder: Path, dataset: Dataset, file: str) -> dict[str, Any]:
    """Flip every byte of a shard, and cut it at every length."""
    (shard,) = [shard for shard in dataset.manifest.shards if shard.file == file]
    entries = [entry for entry in dataset.entries(shard.split) if entry.shard == file]
    path = folder / file

    def check() -> list[Damage]:
        return check_shard(folder, shard, entries, RecordCheck(dataset.spec, dataset.profile))[1]

    assert check() == []
    unseen, misplaced = [], []
    for position in flips(path):
        damages = check()
        (hit,) = [e for e in entries if e.offset_bytes <= position < e.offset_bytes + e.size_bytes]
        unseen += [] if damages else [position]
        if (hit.episode_id, hit.offset_bytes) not in {(d.episode, d.offset_bytes) for d in damages}:
            misplaced.append(position)
        if {d.episode for d in damages} - {None, hit.episode_id}:
            misplaced.append(position)
    good, unseen_cuts = path.read_bytes(), []
    for length in range(len(good)):
        path.write_bytes(good[:length])
        unseen_cuts += [] if check() else [length]
    path.write_bytes(good)
    return {
        "bytes": len(good),
        "unseen": unseen,
        "altered": [],
        "misplaced": misplaced,
        "unseen_cuts": unseen_cuts,
    }


def flip_sidecar(path: Path, ok: Callable[[], bool], meaning: Callable[[], Any]) -> dict[str, Any]:
    """Flip every byte of a JSON file."""
    assert ok()
    expected = meaning()
    unseen = [position for position in flips(path) if ok()]
    altered = []
    good = path.read_bytes()
    for position in unseen:
        bad = bytearray(good)
        bad[position] ^= 1 << (position % 8)
        path.write_bytes(bad)
        altered += [] if same(meaning(), expected) else [position]
    path.write_bytes(good)
    return {"bytes": len(good), "unseen": unseen, "altered": altered, "misplaced": [], "unseen_cuts": []}


def values(folder: Path) -> Any:
    """Return what a reader of ours gets: every value of every episode."""
    dataset = open_dataset(folder)
    episodes = {
        f"{split}/{i}": {name: np.asarray(column).tolist() for name, column in dataset.read(split, i).items()}
        for split in dataset.splits
        for i in range(len(dataset.entries(split)))
    }
    return [episodes, dataset.profile, dataset.spec.to_json()]


def same(found: Any, good: Any) -> bool:
    """Whether two documents say the same, but for free text and the last digits of figures."""
    if isinstance(good, dict) and isinstance(found, dict):
        return found.keys() == good.keys() and all(
            same(found[key], good[key]) for key in good if key != "description"
        )
    if isinstance(good, list) and isinstance(found, list):
        return len(found) == len(good) and all(same(*pair) for pair in zip(found, good, strict=True))
    if isinstance(good, float) and isinstance(found, float | int):
        return abs(found - good) <= 1e-5 * (1 + abs(good))
    return bool(found == good)


def main(folder: Path, file: str) -> dict[str, Any]:
    """Return what was not seen."""
    dataset = open_dataset(folder)
    if ".tfrecord-" in file:
        return flip_shard(folder, dataset, file)
    if file == "manifest.json":
        return flip_sidecar(folder / file, lambda: verify_dataset(folder).ok, lambda: values(folder))
    path = folder / file
    if "statistics" not in file:
        return flip_sidecar(
            path,
            lambda: not check_layout(folder, dataset.manifest),
            lambda: orjson.loads(path.read_bytes()),
        )
    check = RecordCheck(dataset.spec, dataset.profile)
    for shard in dataset.manifest.shards:
        entries = [entry for entry in dataset.entries(shard.split) if entry.shard == shard.file]
        check_shard(folder, shard, entries, check)
    return flip_sidecar(
        path,
        lambda: not check_statistics(folder, dataset.manifest, check),
        lambda: orjson.loads(path.read_bytes()),
    )


if __name__ == "__main__":
    sys.stdout.write(json.dumps(main(Path(sys.argv[1]), sys.argv[2])))
