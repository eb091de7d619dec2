"""Trained to N in one go = trained to k, SIGKILLed at a random instant, resumed to N: bits, batches and curves."""

import itertools
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from brain_service.training.checkpointing import Checkpoints
from brain_service.training.config import TrainConfig
from brain_service.training.loop import train
from brain_service.training.metrics import read_metrics
from brain_service.training.step import abstract_state
from tests.training.killed_run import recorded
from tests.training.tasks import same_parameters, tiny

MODES: dict[str, dict[str, Any]] = {
    "windows": {},
    "streams": {"mode": "streams"},
    "episodes": {"mode": "episodes", "sequence_length": None, "remat_steps": 8},
}
STEPS = 40


def settings(mode: str, **more: Any) -> TrainConfig:
    return tiny(steps=STEPS, checkpoint_every=1, log_every=1, **(MODES[mode] | more))


def child(dataset: Path, run: Path, records: Path, config: TrainConfig) -> "subprocess.Popen[bytes]":
    cache = {
        "JAX_COMPILATION_CACHE_DIR": str(jax.config.values["jax_compilation_cache_dir"]),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    arguments = [str(dataset), str(run), str(records), json.dumps(config.to_dict())]
    return subprocess.Popen(
        [sys.executable, "-m", "tests.training.killed_run", *arguments],
        cwd=Path(__file__).parents[2],
        env=os.environ | cache,
    )


def sealed(run: Path) -> list[int]:
    return sorted(int(path.parent.name) for path in run.glob("*/sha256.json"))


def kill_somewhere(process: "subprocess.Popen[bytes]", run: Path, after_s: float) -> None:
    """SIGKILL a run at an instant that it cannot know: `after_s` behind its first checkpoint."""
    give_up_s = time.monotonic() + 300
    with process:
        while not sealed(run):
            assert process.poll() is None, "it ended before its first checkpoint"
            assert time.monotonic() < give_up_s
            time.sleep(0.002)
        time.sleep(after_s)
        process.kill()
    assert process.returncode == -signal.SIGKILL, "it was over before it could be killed"


def curve(run: Path) -> list[dict[str, float]]:
    clocked = ("steps_per_s", "input_wait_share")
    return [{name: value for name, value in line.items() if name not in clocked} for line in read_metrics(run)]


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("mode", sorted(MODES))
def test_a_killed_run_resumes_to_the_same_bits_batches_and_curves(
    mode: str, dataset: Path, tmp_path: Path, record_property: Any
) -> None:
    config = settings(mode)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    with child(dataset, whole, tmp_path / "whole.txt", config) as process:
        assert process.wait(300) == 0  # first: the others find its programs compiled

    after_s = random.SystemRandom().uniform(0.0, 0.3)
    record_property("killed_after_s", after_s)
    kill_somewhere(child(dataset, killed, tmp_path / "killed.txt", config), killed, after_s)
    with child(dataset, killed, tmp_path / "killed.txt", config) as process:
        assert process.wait(300) == 0

    assert same_parameters(whole, killed)
    assert curve(killed) == curve(whole)
    assert [line["step"] for line in curve(killed)] == list(range(1, STEPS + 1))
    once, twice = recorded(tmp_path / "whole.txt"), recorded(tmp_path / "killed.txt")
    for step in range(STEPS):
        assert len(once[step]) == 1
        assert twice[step] == once[step], f"batch {step} differs after the kill"


def test_the_state_carried_between_windows_is_in_the_checkpoint(dataset: Path, tmp_path: Path) -> None:
    config = tiny(mode="streams", steps=5, checkpoint_every=100)
    train(dataset, tmp_path / "whole", config)
    asked = itertools.count()
    train(dataset, tmp_path / "run", config, should_stop=lambda: next(asked) == 3)
    like = abstract_state(config.model_config(3, 2), config)
    with Checkpoints(tmp_path / "run") as checkpoints:
        carry = checkpoints.restore(3, "carry", like.carry)
    assert all(np.abs(leaf).max() > 0 for leaf in carry)
    assert train(dataset, tmp_path / "run", config).resumed_from == 3
    assert same_parameters(tmp_path / "whole", tmp_path / "run")


def test_a_run_may_go_on_with_another_rhythm_of_checkpoints(dataset: Path, tmp_path: Path) -> None:
    asked = itertools.count()
    train(dataset, tmp_path / "run", tiny(), should_stop=lambda: next(asked) == 3)
    assert train(dataset, tmp_path / "run", tiny(checkpoint_every=5, keep=3, log_every=1)).resumed_from == 3
