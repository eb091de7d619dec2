"""What a search found: a table, a plot, and the command of the best trial."""

import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path

from cloud_trainer.tuning.process import METRIC
from cloud_trainer.tuning.state import Trial

__all__ = ["PLOT_FILE", "TABLE_FILE", "best_trial", "table", "write_plot"]

TABLE_FILE = "results.txt"
PLOT_FILE = "results.png"


def ranked(trials: Iterable[Trial]) -> list[Trial]:
    """Return the trials in order: those that came furthest first, and of these the best."""
    known = [trial for trial in trials if trial.results]
    rest = [trial for trial in trials if not trial.results]
    return sorted(known, key=lambda trial: (-trial.step, trial.results[trial.step], trial.number)) + rest


def best_trial(trials: Sequence[Trial]) -> Trial | None:
    """Return the best of the trials that came furthest, None where none was looked at."""
    first = next(iter(ranked(trials)), None)
    return first if first is not None and first.results else None


def table(trials: Sequence[Trial]) -> str:
    """Return a line a trial: number, last step, objective there, settings."""
    names = sorted({name for trial in trials for name in trial.settings})
    rows = [["trial", "step", METRIC, *names, ""]]
    for trial in ranked(trials):
        value = f"{trial.results[trial.step]:.6g}" if trial.results else "-"
        settings = [str(trial.settings.get(name, "-")) for name in names]
        rows.append([str(trial.number), str(trial.step), value, *settings, trial.problem or ""])
    widths = [max(len(row[n]) for row in rows) for n in range(len(rows[0]) - 1)]
    return "\n".join(
        "  ".join([*(cell.rjust(width) for cell, width in zip(row, widths, strict=False)), row[-1]]).rstrip()
        for row in rows
    )


def shell(command: Sequence[str]) -> str:
    """Return a command as a shell takes it."""
    return shlex.join(command)


def write_plot(path: Path, trials: Sequence[Trial]) -> None:
    """Draw the objective of each trial over its steps; the best one stands out."""
    # Without pyplot: no state of the process changes, and no display is looked for.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot()
    best = best_trial(trials)
    for trial in trials:
        steps = sorted(trial.results)
        stands_out = best is not None and trial.number == best.number
        axes.plot(
            steps,
            [trial.results[step] for step in steps],
            marker="o",
            color="tab:blue" if stands_out else "0.7",
            zorder=2 if stands_out else 1,
            label=f"trial {trial.number}, the best" if stands_out else None,
        )
    axes.set_xlabel("step")
    axes.set_ylabel(METRIC.replace("_", " "))
    axes.set_xscale("log")
    if best is not None:
        axes.legend()
    figure.savefig(path, dpi=120)
