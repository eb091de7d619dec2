"""The demo's plot: record experts, serve the untrained model, learn, drive again; all of it over HTTP."""

import time
from dataclasses import dataclass
from typing import Any

import httpx
from rich.progress import Progress, TaskID

from tests.e2e.demo.figures import Figures, Score
from tests.e2e.demo.robot import HELD_OUT_GOALS, Drive, Robot
from tests.jobs_http import wait_for_job


@dataclass(frozen=True)
class Plan:
    """How much of everything: the defaults are the demo, a test may ask for less."""

    expert_episodes: int = 60
    train_steps: int | None = None  # None: the pipeline's default
    drives: int = 25
    seed: int = 0  # of the goals, the held-out goals and the actuators' noise


def run_loop(url: str, plan: Plan, progress: Progress) -> Figures:
    """Run the plan against the daemon at `url` and return what was measured (seconds, bytes, rates)."""
    figures, begun = Figures(), time.monotonic()
    robot = Robot(url, goals_seed=plan.seed, noise_seed=plan.seed)
    bar = progress.add_task("expert records episodes", total=plan.expert_episodes)
    for _ in range(plan.expert_episodes):
        figures.steps += robot.record_expert_episode()
        progress.advance(bar)
    robot.close()
    figures.episodes, figures.record_s = plan.expert_episodes, time.monotonic() - begun

    untrained = _pipeline(url, {"steps": 0}, progress.add_task("untrained model", total=1.0), progress)
    figures.untrained = _drive_all(url, untrained["model_id"], plan, progress, "untrained drives")
    learning = time.monotonic()
    body = {} if plan.train_steps is None else {"steps": plan.train_steps}
    figures.pipeline = _pipeline(url, body, progress.add_task("pipeline learns", total=1.0), progress)
    figures.pipeline_s = time.monotonic() - learning
    figures.trained = _drive_all(url, figures.pipeline["model_id"], plan, progress, "trained drives")
    figures.total_s = time.monotonic() - begun
    return figures


def _drive_all(url: str, model_id: str, plan: Plan, progress: Progress, label: str) -> Score:
    robot = Robot(url, goals_seed=HELD_OUT_GOALS + plan.seed, noise_seed=plan.seed)
    bar = progress.add_task(label, total=plan.drives)
    done: list[Drive] = []
    for _ in range(plan.drives):
        done.append(robot.drive())
        progress.update(bar, advance=1, description=f"{label}: {sum(d.success for d in done)}/{len(done)}")
    robot.close()
    return Score.of(model_id, done)


def _pipeline(url: str, body: dict[str, Any], bar: TaskID, progress: Progress) -> dict[str, Any]:
    answer = httpx.post(f"{url}/pipeline", json={"preset": "development", **body}, timeout=120)
    answer.raise_for_status()
    job = wait_for_job(
        f"{url}{answer.headers['Location']}",
        lambda now: progress.update(bar, completed=now["progress"], description=_stage(now)),
    )
    if job["state"] != "succeeded":
        raise RuntimeError(f"job {job['job_id']} {job['state']}: {job['error']}")
    progress.update(bar, completed=1.0)
    result: dict[str, Any] = job["result"]
    return result


def _stage(job: dict[str, Any]) -> str:
    running = [stage["name"] for stage in job["stages"] if stage["status"] == "running"]
    return f"pipeline: {running[0]}" if running else "pipeline"
