"""The demo's figures: success with its interval, latency, and the table that is printed."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from scipy.stats import binomtest

from tests.e2e.demo.robot import DRIVE_STEPS, Drive


@dataclass(frozen=True)
class Score:
    """Closed-loop result of one model."""

    model_id: str
    successes: int
    episodes: int
    interval: tuple[float, float]
    mean_steps: float
    latency_ms_p50: float
    latency_ms_p99: float

    @staticmethod
    def of(model_id: str, drives: Sequence[Drive]) -> "Score":
        """Sum up the drives of one model."""
        wins = sum(drive.success for drive in drives)
        interval = binomtest(wins, len(drives)).proportion_ci(0.95, method="wilson")
        latency = np.concatenate([drive.latency_ms for drive in drives])
        return Score(
            model_id=model_id,
            successes=wins,
            episodes=len(drives),
            interval=(float(interval.low), float(interval.high)),
            mean_steps=float(np.mean([drive.steps for drive in drives])),
            latency_ms_p50=float(np.percentile(latency, 50)),
            latency_ms_p99=float(np.percentile(latency, 99)),
        )


@dataclass
class Figures:
    """Everything the demo measured; `build/demo.json` holds the same."""

    episodes: int = 0
    steps: int = 0
    record_s: float = 0.0
    untrained: Score | None = None
    trained: Score | None = None
    pipeline: dict[str, Any] = field(default_factory=dict)
    pipeline_s: float = 0.0
    total_s: float = 0.0
    peak_memory_bytes: int = 0

    def to_json(self) -> dict[str, Any]:
        """Return the figures as a JSON-ready mapping."""
        return asdict(self)


def print_figures(figures: Figures, console: Console) -> None:
    """Print the table: the two models side by side, then what it took."""
    assert figures.trained and figures.untrained
    models = Table(title=f"Reaching new goals within {DRIVE_STEPS} steps, closed loop over HTTP")
    for name in ("", "success", "95 % interval", "steps to the goal", "p50", "p99"):
        models.add_column(name, justify="right" if name else "left")
    for label, score in (("untrained", figures.untrained), ("trained", figures.trained)):
        low, high = score.interval
        models.add_row(
            label,
            f"{score.successes}/{score.episodes}",
            f"{100 * low:.0f}-{100 * high:.0f} %",
            f"{score.mean_steps:.0f}",
            f"{score.latency_ms_p50:.2f} ms",
            f"{score.latency_ms_p99:.2f} ms",
        )
    console.print(models)
    made = figures.pipeline
    data, train, held_out = made["dataset"], made["train"], made["evaluation"]
    facts = Table(show_header=False, title="What it took")
    facts.add_row("recorded", f"{figures.episodes} episodes, {figures.steps} steps in {figures.record_s:.0f} s")
    splits = data["splits"]
    facts.add_row(
        "dataset",
        f"{data['name']} {data['version']}: {splits['train']} episodes to train on, {splits['val']} held out",
    )
    facts.add_row(
        "training",
        f"{train['steps']} steps in {train['duration_s']:.0f} s ({train['steps_per_s']:.1f} steps/s), "
        f"loss {train['final_loss']:.3f}",
    )
    facts.add_row(
        "held out",
        f"action error {held_out['relative_rmse']:.1%} of the range; "
        f"always the mean action: {held_out['baseline_relative_rmse']:.1%}",
    )
    facts.add_row("pipeline", f"{figures.pipeline_s:.0f} s from POST /pipeline to the model in service")
    memory_gb = figures.peak_memory_bytes / 1e9
    facts.add_row("in all", f"{figures.total_s:.0f} s, peak memory {memory_gb:.2f} GB, simulator included")
    console.print(facts)
