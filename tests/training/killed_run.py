"""A training to be killed: `python -m tests.training.killed_run DATASET RUN RECORDS CONFIG`.

Appends a line "step crc" to RECORDS for every batch that it makes, and says on standard output that it trains.
"""

import json
import sys
import zlib
from pathlib import Path

import jax
import numpy as np

from brain_service.training.config import TrainConfig
from brain_service.training.feed import Feed
from brain_service.training.loop import TrainResult, train
from brain_service.training.objective import Sequences


def record_batches(feed: type[Feed], records: Path) -> None:
    """Have every batch of this process noted with the CRC of all its numbers."""
    original = feed.batch

    def batch(self: Feed, step: int) -> Sequences:
        made = original(self, step)
        crc = 0
        for leaf in jax.tree.leaves(made):
            crc = zlib.crc32(np.asarray(leaf).tobytes(), crc)
        with records.open("a") as file:
            file.write(f"{step} {crc}\n")
        return made

    feed.batch = batch  # type: ignore[method-assign]


def recorded(records: Path) -> dict[int, set[int]]:
    """Return which CRCs each step's batch had; a torn last line is left out."""
    found: dict[int, set[int]] = {}
    for line in records.read_text().splitlines(keepends=True):
        if line.endswith("\n"):
            step, crc = line.split()
            found.setdefault(int(step), set()).add(int(crc))
    return found


def main(dataset: str, run: str, records: str, config: str) -> TrainResult:
    record_batches(Feed, Path(records))
    return train(dataset, run, TrainConfig.from_dict(json.loads(config)))


if __name__ == "__main__":
    main(*sys.argv[1:])
