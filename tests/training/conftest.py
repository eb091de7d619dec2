import os
from collections.abc import Iterator
from pathlib import Path

import jax
import pytest

from brain_service.training.loop import TrainResult, train
from tests.training.tasks import make_dataset, tiny


@pytest.fixture(scope="session", autouse=True)
def compiled_once(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Every run compiles its step anew; a cache on disk for this session makes that a matter of milliseconds.

    JAX's own variable keeps it for the next session too.
    """
    wanted = {
        "jax_compilation_cache_dir": os.environ.get("JAX_COMPILATION_CACHE_DIR")
        or str(tmp_path_factory.mktemp("compiled")),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
    }
    before = {name: jax.config.values[name] for name in wanted}
    for name, value in wanted.items():
        jax.config.update(name, value)
    yield
    for name, value in before.items():
        jax.config.update(name, value)


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of eight expert episodes."""
    return make_dataset(tmp_path_factory.mktemp("task"))


@pytest.fixture(scope="session")
def finished(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainResult:
    """A run of six steps that nothing disturbed. Read only."""
    return train(dataset, tmp_path_factory.mktemp("run") / "a", tiny())
