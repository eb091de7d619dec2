from pathlib import Path

import pytest

from brain_service.training.evaluation import EvaluationResult, evaluate
from brain_service.training.loop import train
from tests.training.tasks import tiny


@pytest.fixture(scope="session")
def learned_run(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run long enough to learn a linear controller roughly. Read only."""
    folder = tmp_path_factory.mktemp("learned") / "run"
    train(dataset, folder, tiny(steps=250, batch_size=8, learning_rate=1e-2, checkpoint_every=1000))
    return folder


@pytest.fixture(scope="session")
def learned(learned_run: Path, dataset: Path) -> EvaluationResult:
    """Its evaluation."""
    return evaluate(learned_run, dataset)
