"""Bundles that are exported once for all tests of this folder."""

from pathlib import Path

import jax.numpy as jnp
import pytest

from brain_service.export.bundle import Bundle
from brain_service.export.jax_step import export_policy
from brain_service.training.checkpointing import Checkpoints
from brain_service.training.config import TrainConfig
from brain_service.training.step import TrainState, make_optimiser
from tests.export.models import CONFIG, NORMALISER, source


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The small model in float32, as JAX and ONNX."""
    models = tmp_path_factory.mktemp("models")
    made = export_policy(source(), models, forms=("jax", "onnx"), evaluation={"mae": 0.5}, source_run="run-7")
    return Bundle.open(made)


@pytest.fixture(scope="session")
def int8(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The same model in int8."""
    return Bundle.open(
        export_policy(source(), tmp_path_factory.mktemp("int8"), quantisation="int8", forms=("jax", "onnx"))
    )


@pytest.fixture(scope="session")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's checkpoint of the same model."""
    folder = tmp_path_factory.mktemp("checkpoints") / "run-7"
    params = dict(source().params)
    state = TrainState(jnp.asarray(30, jnp.int32), params, make_optimiser(TrainConfig()).init(params))
    meta = {
        "model": CONFIG.to_dict(),
        "normalisation": NORMALISER.to_dict(),
        "spec": source().spec.to_json(),
        "control_period_s": 0.02,
    }
    with Checkpoints(folder, keep=1) as checkpoints:
        checkpoints.save(state, meta)
    return folder
