"""`python -m tests.bench.learning.shifted`: a robot whose task moved, and 16 demonstrations of where it is now.

Meta-World's reach (Yu et al., arXiv 1910.10897) with its own expert and actuator noise, as in `make demo`. A base
model learns goals in Meta-World's own box. Then the goals lie in another one, to the side of it, and four models
are driven to 200 goals of each: the base, the base with adapters of the LoRA trainer, the base with every
parameter trained on the same episodes, and a model trained from scratch on all demonstrations, old and new.

Every part is a process of its own and keeps what it made: a rerun goes on where the last one ended.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium
import jax
import metaworld  # noqa: F401  (registers the environments)
import numpy as np
from jaxtyping import Float32
from metaworld.policies import ENV_POLICY_MAP

from brain_service.datasets.convert import convert_directory_to_tfrecord
from brain_service.datasets.loader import open_dataset
from brain_service.durable import write_atomic
from brain_service.export.policy import flat_params, make_policy_step
from brain_service.model.state import carry_shapes
from brain_service.training.checkpointing import Checkpoints, load_checkpoint
from brain_service.training.config import TrainConfig
from brain_service.training.feed import Feed
from brain_service.training.loop import train
from brain_service.training.sharding import make_mesh
from brain_service.training.step import init_state, make_train_step
from tests.bench.learning.statistics import successes

OLD_EPISODES, NEW_EPISODES, DRIVES = 60, 16, 200
DEMONSTRATED_STEPS, DRIVEN_STEPS = 500, 200
ACTUATOR_NOISE = 0.3  # sigma, in units of the action
JUDGED_FROM = 1_000_003  # added to a seed: goals that no demonstration had
STEP_NS = 80_000_000  # Meta-World's control period

REGIONS: Mapping[str, tuple[tuple[float, float, float], tuple[float, float, float]]] = {
    "old": ((-0.1, 0.8, 0.05), (0.1, 0.9, 0.3)),  # Meta-World's own
    "new": ((0.2, 0.6, 0.05), (0.35, 0.75, 0.3)),
}
"""Lowest and highest goal, in metres; the hand begins at (0, 0.6, 0.2)."""


@dataclass(frozen=True)
class Plan:
    """What is run, and where it is kept."""

    folder: Path
    seed: int
    replay: int
    """Old demonstrations that are kept and trained on together with the new ones."""
    lora: Mapping[str, Any]
    """Settings of the LoRA trainer that are not its defaults."""

    @property
    def root(self) -> Path:
        """Return the folder of this seed."""
        return self.folder / f"seed-{self.seed}"

    @property
    def tuned_on(self) -> str:
        """Return the name of the dataset that the base is adapted to."""
        return f"new-and-{self.replay}-old"


class Reach:
    """The arm with goals from one region; the seed decides them and the disturbances."""

    def __init__(self, region: str, seed: int) -> None:
        warnings.filterwarnings("ignore", module="gymnasium")
        warnings.filterwarnings("ignore", module="metaworld")
        made: Any = gymnasium.make("Meta-World/MT1", env_name="reach-v3", seed=seed)
        made.reset()
        # Below the wrapper that draws from Meta-World's own 50 goals.
        self._env = made.unwrapped
        # What is observed of a goal is cut to this space.
        corners = np.asarray(list(REGIONS.values()))
        self._env.goal_space = gymnasium.spaces.Box(
            corners[:, 0].min(axis=0), corners[:, 1].max(axis=0), dtype=float
        )
        vars(self._env).pop("sawyer_observation_space", None)
        self._expert = ENV_POLICY_MAP["reach-v3"]()
        self._region = REGIONS[region]
        self._rng = np.random.default_rng(seed)

    def reset(self) -> Float32[np.ndarray, "D"]:
        """Go to the next goal."""
        while True:
            thing, goal = self._rng.uniform((-0.1, 0.6, 0.02), (0.1, 0.7, 0.02)), self._rng.uniform(*self._region)
            # Meta-World draws again where the goal is over the thing on the table.
            if np.linalg.norm(thing[:2] - goal[:2]) > 0.15:
                break
        self._env._last_rand_vec = np.concatenate([thing, goal])
        self._raw, _ = self._env.reset()
        return np.asarray(self._raw, np.float32)

    def expert_action(self) -> Float32[np.ndarray, "A"]:
        """Return what the expert commands now."""
        return np.clip(np.asarray(self._expert.get_action(self._raw), np.float32), -1.0, 1.0)

    def step(
        self, action: Float32[np.ndarray, "A"], noise: float = 0.0
    ) -> tuple[Float32[np.ndarray, "D"], float, bool]:
        """Apply a command; return what is seen then, the reward, and whether the goal is reached."""
        executed = np.clip(action + noise * self._rng.standard_normal(4), -1.0, 1.0).astype(np.float32)
        self._raw, reward, _, _, info = self._env.step(executed)
        return np.asarray(self._raw, np.float32), float(reward), bool(info["success"])


def demonstrate(region: str, seed: int, count: int, folder: Path) -> None:
    """Have the expert reach `count` goals, and write each as an episode's log."""
    folder.mkdir(parents=True, exist_ok=True)
    arm = Reach(region, seed)
    for index in range(count):
        seen, lines = arm.reset(), []
        for t in range(DEMONSTRATED_STEPS):
            command = arm.expert_action()
            following, reward, success = arm.step(command, ACTUATOR_NOISE)
            step = {
                "timestamp_ns": 10**18 + index * 10**12 + t * STEP_NS,
                "step_index": t,
                "control_role": "expert",
            }
            lines.append(
                {
                    "observation": {"state": seen.tolist()},
                    "action": {"command": command.tolist()},
                    "reward": reward,
                    "is_terminal": success,
                    "step_metadata": step,
                }
            )
            seen = following
            if success:
                break
        name = f"{region}-{index:03d}.jsonl"
        write_atomic(folder / name, "".join(json.dumps(line) + "\n" for line in lines).encode())


def drive(checkpoint: Path, region: str, seed: int) -> list[float]:
    """Return 1 for each goal of the region that the policy of a checkpoint reaches, else 0."""
    loaded = load_checkpoint(checkpoint)
    params, step = flat_params(loaded.params), jax.jit(make_policy_step(loaded.config, loaded.normaliser))
    arm, scores = Reach(region, JUDGED_FROM + seed), []
    for _ in range(DRIVES):
        carry: Any = tuple(np.zeros((1, size), np.float32) for size in carry_shapes(loaded.config).values())
        seen, past, reward, success = arm.reset(), np.zeros((1, 4), np.float32), 0.0, False
        for t in range(DRIVEN_STEPS):
            now = seen[None], past, np.asarray([reward], np.float32), np.asarray([t == 0], np.float32)
            carry, actions = step(params, carry, *now)
            past = np.asarray(actions)[:, 0]
            seen, reward, success = arm.step(past[0])
            if success:
                break
        scores.append(float(success))
    return scores


def collect(plan: Plan) -> Mapping[str, Any]:
    """Record the demonstrations and make the three datasets of them."""
    root = plan.root
    for name, parts in {
        "old": {"old": OLD_EPISODES},
        plan.tuned_on: {"new": NEW_EPISODES, "old": plan.replay},
        "all": {"new": NEW_EPISODES, "old": OLD_EPISODES},
    }.items():
        for region, count in parts.items():
            # The seed draws the goals in order, so that fewer episodes are the first of more.
            demonstrate(region, plan.seed, count, root / "episodes" / name)
        convert_directory_to_tfrecord(root / "episodes" / name, root / "datasets" / name)
    return {}


def _dataset(plan: Plan, name: str) -> Path:
    (found,) = (path.parent for path in (plan.root / "datasets" / name).rglob("dataset_info.json"))
    return found


def train_on(dataset: str) -> Callable[[Plan, Path], Mapping[str, Any]]:
    """Return the training from scratch with the defaults of the JAX trainer."""

    def run(plan: Plan, folder: Path) -> Mapping[str, Any]:
        done = train(_dataset(plan, dataset), folder, TrainConfig(seed=plan.seed))
        return {"steps": done.step}

    return run


def fine_tune(plan: Plan, folder: Path) -> Mapping[str, Any]:
    """Train every parameter of the base on the episodes that the adapters get, with the JAX trainer's step."""
    base = load_checkpoint(plan.root / "base")
    config, mesh = TrainConfig(seed=plan.seed), make_mesh()
    feed = Feed(open_dataset(_dataset(plan, plan.tuned_on)), config, base.normaliser, mesh)
    step, state = make_train_step(base.config, config, mesh), init_state(base.config, config, mesh)
    state = state._replace(params=base.params)
    for index in range(config.steps):
        state, _ = step(state, feed.batch(index))
    with Checkpoints(folder, keep=1) as checkpoints:
        checkpoints.save(state, base.meta)
    return {"steps": config.steps}


def adapt(plan: Plan, folder: Path) -> Mapping[str, Any]:
    """Train adapters on the base with the LoRA trainer, and merge them into a checkpoint."""
    from brain_service.training.torch_lora.base import checkpoint_base
    from brain_service.training.torch_lora.config import LoraConfig
    from brain_service.training.torch_lora.merge import merge_adapters
    from brain_service.training.torch_lora.trainer import train_adapters

    base, adapters = checkpoint_base(plan.root / "base"), folder.with_name(f"{folder.name}-adapters")
    config = LoraConfig.from_dict({"seed": plan.seed, **plan.lora})
    done = train_adapters(_dataset(plan, plan.tuned_on), adapters, base, config)
    merge_adapters(adapters, base, folder)
    return {"steps": done.step, "best_step": done.best_step, "share": done.share, "ended_by": done.ended_by}


MODELS: Mapping[str, Callable[[Plan, Path], Mapping[str, Any]]] = {
    "base": train_on("old"),
    "lora": adapt,
    "fine-tuned": fine_tune,
    "from scratch": train_on("all"),
}


def run_part(plan: Plan, part: str) -> None:
    """Do one part and keep its figures: times, the peak of memory, and successes in both regions."""
    begun_s = time.monotonic()
    if part == "demonstrations":
        found: Mapping[str, Any] = collect(plan)
    else:
        found = MODELS[part](plan, plan.root / part)
    used = resource.getrusage(resource.RUSAGE_SELF)
    document = {
        **found,
        "seconds": time.monotonic() - begun_s,
        "cpu_seconds": used.ru_utime + used.ru_stime,
        "peak_rss_bytes": 1024 * used.ru_maxrss,
    }
    if part in MODELS:
        document |= {region: drive(plan.root / part, region, plan.seed) for region in REGIONS}
    write_atomic(_file(plan, part), json.dumps(document).encode())


def _file(plan: Plan, part: str) -> Path:
    return plan.root / f"{part}.json"


def report(plan: Plan) -> str:
    """Return the table of what is there."""
    lines = ["| model | new region | old region | trained in | CPU | peak memory |", "|---|---|---|---|---|---|"]
    for name in MODELS:
        if not _file(plan, name).is_file():
            continue
        found = json.loads(_file(plan, name).read_bytes())
        cells = []
        for region in ("new", "old"):
            figure = successes([found[region]])
            cells.append(f"{figure.value:.0%} ({figure.low:.0%} to {figure.high:.0%})")
        times = f"{found['seconds']:.0f} s | {found['cpu_seconds']:.0f} s | {found['peak_rss_bytes'] / 1e9:.2f} GB"
        lines.append(f"| {name} | {' | '.join(cells)} | {times} |")
        if "share" in found:
            lines[-1] += f" ({found['share']:.1%} of the parameters, {found['steps']} steps)"
    return "\n".join(lines)


def main() -> int:
    """Run what is missing of one seed, then print the table."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.learning.shifted", description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--replay", type=int, default=32, help="old demonstrations trained on too (default: 32)")
    parser.add_argument("--lora", type=json.loads, default={}, help="settings of the LoRA trainer, as JSON")
    parser.add_argument("--output", type=Path, default=Path("build/shifted"))
    parser.add_argument("--part", choices=["demonstrations", *MODELS], help=argparse.SUPPRESS)
    options = parser.parse_args()
    plan = Plan(options.output, options.seed, options.replay, options.lora)
    if options.part:
        run_part(plan, options.part)
        return 0
    for part in ("demonstrations", *MODELS):
        if not _file(plan, part).is_file():
            print(f"{part} ...", flush=True)
            command = [sys.executable, "-m", "tests.bench.learning.shifted", *sys.argv[1:], "--part", part]
            subprocess.run(command, check=True)
    print(report(plan))
    return 0


if __name__ == "__main__":
    sys.exit(main())
