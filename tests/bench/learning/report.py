"""The table and the plot of what was run; what was not run is said to be so."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure as Plot

from tests.bench.learning.models import MODELS
from tests.bench.learning.statistics import Figure, interquartile_mean, returns, successes
from tests.bench.learning.tasks import TASKS

__all__ = ["Row", "markdown", "plot", "rows", "write_report"]

Results = Mapping[tuple[str, str, int], Mapping[str, Any]]
"""Task, model and seed -> what `run_cell` wrote."""


@dataclass(frozen=True)
class Row:
    """One model on one task."""

    task: str
    model: str
    seeds: tuple[int, ...]
    parameters: int
    score: Figure
    interquartile_mean: float
    expert: float
    chance: float
    """The random policy's mean."""

    @property
    def normalised(self) -> Figure:
        """Return the score as a share of the way from chance to the expert."""
        span = self.expert - self.chance
        return Figure(*((value - self.chance) / span for value in asdict(self.score).values()))


def rows(results: Results) -> dict[tuple[str, str], Row]:
    """Sum up the seeds of each task and model that were run."""
    table = {}
    for task, model in dict.fromkeys((task, model) for task, model, _ in results):
        found = {seed: document for (t, m, seed), document in results.items() if (t, m) == (task, model)}
        scores = [document["scores"] for document in found.values()]
        references = [document["references"] for document in found.values()]
        table[task, model] = Row(
            task=task,
            model=model,
            seeds=tuple(sorted(found)),
            parameters=next(iter(found.values()))["parameters"],
            score=(successes if TASKS[task].success else returns)(scores),
            interquartile_mean=interquartile_mean(scores),
            expert=float(np.mean([found["expert"] for found in references])),
            chance=float(np.mean([found["random"] for found in references])),
        )
    return table


def markdown(table: Mapping[tuple[str, str], Row], tasks: Iterable[str]) -> str:
    """Return the table: a row a task, a column a model."""
    heads = ["task", "score", "random", "expert", *MODELS]
    lines = [" | ".join(heads), " | ".join("---" for _ in heads)]
    for task in tasks:
        known = [row for (name, _), row in table.items() if name == task]
        reference = [f"{known[0].chance:.3f}", f"{known[0].expert:.3f}"] if known else ["", ""]
        kind = "success rate" if TASKS[task].success else "return"
        lines.append(" | ".join([task, kind, *reference, *(_cell(table.get((task, model))) for model in MODELS)]))
    return "\n".join(f"| {line} |" for line in lines) + "\n"


def _cell(row: Row | None) -> str:
    if row is None:
        return "not run"
    seeds = f"{len(row.seeds)} seed{'s' if len(row.seeds) != 1 else ''}"
    return f"{row.score.value:.3f} [{row.score.low:.3f}, {row.score.high:.3f}] ({seeds})"


def plot(table: Mapping[tuple[str, str], Row], tasks: Iterable[str], path: Path) -> None:
    """Draw every model's share of the way from chance to the expert, with its interval."""
    shown = [task for task in tasks if any(name == task for name, _ in table)]
    figure = Plot(figsize=(max(6.0, 1.7 * len(shown)), 3.6), layout="constrained")
    axes = figure.subplots()
    width = 0.8 / len(MODELS)
    for index, model in enumerate(MODELS):
        found = [(place, table[task, model]) for place, task in enumerate(shown) if (task, model) in table]
        figures = [row.normalised for _, row in found]
        values = np.asarray([figure.value for figure in figures])
        reach = np.abs(
            np.asarray([[figure.low, figure.high] for figure in figures]).reshape(-1, 2) - values[:, None]
        )
        places = np.asarray([place for place, _ in found]) + (index - (len(MODELS) - 1) / 2) * width
        axes.bar(places, values, width, yerr=reach.T if len(found) else None, label=model, capsize=2)
    axes.axhline(1.0, color="0.5", linestyle="--", linewidth=1)
    axes.set_xticks(range(len(shown)), shown)
    axes.set_ylabel("chance = 0, expert = 1")
    axes.legend(fontsize=8, ncols=len(MODELS), loc="upper center", bbox_to_anchor=(0.5, -0.12))
    figure.savefig(path, metadata={"Date": None})


def write_report(folder: Path, results: Results, tasks: Iterable[str]) -> str:
    """Write `table.md`, `table.json` and `learning.svg` into the folder; return the markdown."""
    tasks = list(tasks)
    table = rows(results)
    text = markdown(table, tasks)
    (folder / "table.md").write_text(text)
    document = [asdict(row) | {"normalised": asdict(row.normalised)} for row in table.values()]
    (folder / "table.json").write_text(json.dumps(document, indent=1) + "\n")
    plot(table, tasks, folder / "learning.svg")
    return text
