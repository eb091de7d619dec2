"""`brain evaluate`: its report, another model to be held against, and a simulator."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from brain_service.cli import main
from brain_service.export.jax_step import export_jax
from brain_service.training.loop import train
from tests.training.tasks import make_dataset, tiny

pytestmark = pytest.mark.slow

SIMULATOR = """
def simulate(policy, seed):
    import numpy as np
    action = policy(np.zeros(3, np.float32), 0.0)
    return Outcome(bool(seed % 2), float(len(action)), 7)

from collections import namedtuple
Outcome = namedtuple("Outcome", "success total_reward steps")
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset at `data`, and runs `trained` and `fresh`."""
    folder = tmp_path_factory.mktemp("cli")
    (folder / "data").symlink_to(make_dataset(folder))
    train(
        folder / "data",
        folder / "trained",
        tiny(steps=60, batch_size=8, learning_rate=1e-2, checkpoint_every=1000),
    )
    train(folder / "data", folder / "fresh", tiny(steps=0))
    return folder


def evaluate(folder: Path, run: str, *more: str) -> list[str]:
    return ["evaluate", "--data-path", str(folder / "data"), "--checkpoint-dir", str(folder / run), *more]


def test_a_report_and_a_verdict_beside_a_bundle(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = export_jax(folder / "fresh", tmp_path / "models")
    (tmp_path / "models" / "active").symlink_to(bundle.name)
    more = ["--against", str(tmp_path / "models" / "active"), "--report-dir", str(tmp_path / "report")]
    assert main(evaluate(folder, "trained", *more)) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["promotion"]["promoted"] is True
    assert document["promotion"]["active"] == bundle.name
    assert json.loads((tmp_path / "report" / "evaluation.json").read_text()) == document
    assert "<h2>Promotion</h2>" in (tmp_path / "report" / "evaluation.html").read_text()


def test_a_worse_run_exits_with_1(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(evaluate(folder, "fresh", "--against", str(folder / "trained"))) == 1
    assert json.loads(capsys.readouterr().out)["promotion"]["promoted"] is False


def test_training_episodes_are_no_ground_for_promotion(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(evaluate(folder, "trained", "--split", "train", "--against", str(folder / "fresh"))) == 2
    assert "held-out episodes only" in capsys.readouterr().err


def test_a_simulator_is_a_function_by_name(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "robot_of_mine.py").write_text(SIMULATOR)
    command = [sys.executable, "-m", "brain_service", *evaluate(folder, "trained"), "--episodes", "4"]
    done = subprocess.run(
        [*command, "--simulator", "robot_of_mine:simulate"],
        env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)["closed_loop"]
    assert (found["episodes"], found["success_rate"], found["mean_return"], found["mean_steps"]) == (4, 0.5, 2, 7)


@pytest.mark.parametrize("reference", ["nowhere.at.all:simulate", "json:no_such", "json"])
def test_a_simulator_that_cannot_be_imported_is_named(
    reference: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(evaluate(folder, "trained", "--simulator", reference)) == 2
    assert reference in capsys.readouterr().err
    assert main(evaluate(folder, "trained", "--simulator", reference, "--episodes", "0")) == 2
    assert "--episodes is 0" in capsys.readouterr().err
