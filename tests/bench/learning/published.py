"""The published cells: what docs/learning.md rests on, kept beside it so that a later run goes on from there.

One line a cell, found again by the digest of its settings. Scores are rounded to 4 decimals; of the references'
scores the means are kept.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from brain_service.durable import write_atomic
from tests.bench.learning.cell import Cell

__all__ = ["PUBLISHED", "publish", "read_published"]

PUBLISHED = Path(__file__).parents[3] / "docs" / "learning-table.json"


def read_published(path: Path, cells: Iterable[Cell]) -> dict[Cell, dict[str, Any]]:
    """Return the published results of those of the cells that were run with these very settings."""
    try:
        lines: list[dict[str, Any]] = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    known = {line["digest"]: line for line in lines}
    return {cell: known[cell.digest] for cell in cells if cell.digest in known}


def publish(path: Path, results: Mapping[Cell, Mapping[str, Any]]) -> None:
    """Write the results, a line a cell: the file holds these and no other."""
    lines = [json.dumps(_line(cell, document)) for cell, document in results.items()]
    write_atomic(path, ("[\n" + ",\n".join(lines) + "\n]\n").encode())


def _line(cell: Cell, document: Mapping[str, Any]) -> dict[str, Any]:
    (steps, loss), seconds = document["curve"][-1], document["seconds"]
    return {
        "task": cell.task,
        "model": cell.model,
        "seed": cell.seed,
        "digest": cell.digest,
        "parameters": document["parameters"],
        "seconds": {name: round(value) for name, value in seconds.items()},
        "references": {name: [round(float(np.mean(rows)), 4)] for name, rows in document["references"].items()},
        "scores": [round(score, 4) for score in document["scores"]],
        "curve": [[steps, round(loss, 4)]],
        "versions": document["versions"],
    }
