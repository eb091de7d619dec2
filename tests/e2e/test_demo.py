"""The demo as a test: the whole loop on a simulated robot, over HTTP, in real processes."""

from pathlib import Path

import pytest
from rich.console import Console
from rich.progress import Progress
from scipy.stats import fisher_exact

from tests.e2e.demo.figures import print_figures
from tests.e2e.demo.loop import Plan, run_loop
from tests.processes import running_daemon


@pytest.mark.demo
@pytest.mark.timeout(1200)
def test_the_robot_gets_better_through_the_daemon(tmp_path: Path) -> None:
    """Fewer episodes and steps than the demo, more goals to drive to: enough to tell learning from luck.

    A policy that always does the same reaches about half of the goals by passing through them, so the bar is a
    test of the two rates and not a number of successes.
    """
    plan = Plan(expert_episodes=40, train_steps=400, drives=50)
    with running_daemon(tmp_path / "brain") as daemon, Progress(disable=True) as progress:
        figures = run_loop(daemon.url, plan, progress)
    assert figures.trained and figures.untrained
    assert figures.trained.model_id != figures.untrained.model_id
    table = [
        [figures.trained.successes, plan.drives - figures.trained.successes],
        [figures.untrained.successes, plan.drives - figures.untrained.successes],
    ]
    assert fisher_exact(table, alternative="greater").pvalue < 0.001, table
    assert (
        figures.pipeline["evaluation"]["relative_rmse"] < figures.pipeline["evaluation"]["baseline_relative_rmse"]
    )
    logs = list((tmp_path / "brain" / "episodes").glob("*.jsonl"))
    assert len(logs) == plan.expert_episodes
    figures.peak_memory_bytes = 1
    console = Console(record=True, width=100)
    print_figures(figures, console)
    assert f"{figures.trained.successes}/{plan.drives}" in console.export_text()
