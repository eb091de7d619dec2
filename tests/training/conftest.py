from pathlib import Path

import pytest

from brain_service.training.loop import TrainResult, train
from tests.training.tasks import make_dataset, tiny


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of eight expert episodes."""
    return make_dataset(tmp_path_factory.mktemp("task"))


@pytest.fixture(scope="session")
def finished(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainResult:
    """A run of six steps that nothing disturbed. Read only."""
    return train(dataset, tmp_path_factory.mktemp("run") / "a", tiny())
