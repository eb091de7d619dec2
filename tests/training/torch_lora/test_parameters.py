"""Parameters on the way from JAX to torch and back."""

from dataclasses import replace

import jax
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from brain_service.errors import InvalidError
from brain_service.model.config import PRESETS, CoreModelConfig
from brain_service.model.core import count_parameters, init_params
from brain_service.training.checkpointing import load_checkpoint
from brain_service.training.loop import TrainResult
from brain_service.training.torch_lora.model import TorchCoreModel
from brain_service.training.torch_lora.parameters import base_parameters, to_jax, to_torch
from tests.model.models import DISCRETE, SEEING, SMALL, params_of


def same_bits(left: object, right: object) -> bool:
    """Whether two trees hold the same names and bits."""
    assert str(jax.tree.structure(left)) == str(jax.tree.structure(right))
    pairs = zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True)
    return all(np.asarray(a).tobytes() == np.asarray(b).tobytes() for a, b in pairs)


@pytest.mark.parametrize("config", [SMALL, DISCRETE, SEEING, replace(SMALL, wave_pairs=0)], ids=str)
@given(seed=st.integers(0, 2**16))
@settings(max_examples=10)
def test_parameters_return_from_torch_with_the_same_bits(config: CoreModelConfig, seed: int) -> None:
    params = params_of(config, seed)
    assert same_bits(to_jax(to_torch(params, config)), params)


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_the_torch_model_of_every_preset_has_the_parameters_of_the_jax_model(preset: str) -> None:
    config = PRESETS[preset]()
    like = jax.eval_shape(lambda: init_params(config, jax.random.key(0)))
    with torch.device("meta"):
        names = {name: tuple(value.shape) for name, value in base_parameters(TorchCoreModel(config)).items()}
    flat = jax.tree_util.tree_flatten_with_path(like)[0]
    assert names == {".".join(part.key for part in path): leaf.shape for path, leaf in flat}
    assert sum(int(np.prod(shape)) for shape in names.values()) == count_parameters(like)


def test_a_checkpoint_of_the_jax_trainer_loads(finished: TrainResult) -> None:
    loaded = load_checkpoint(finished.checkpoint_dir)
    assert same_bits(to_jax(to_torch(loaded.params, loaded.config)), loaded.params)


def test_training_in_torch_leaves_the_arrays_of_jax_alone() -> None:
    params = params_of(SMALL)
    model = to_torch(params, SMALL)
    before = to_jax(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    assert same_bits(before, params)
    assert not same_bits(to_jax(model), params)


def test_parameters_of_another_model_are_refused_by_name() -> None:
    params = params_of(SMALL)
    with pytest.raises(
        InvalidError, match=r"encoder\.first\.kernel is float32\[10, 12\].* wants float32\[11, 12\]"
    ):
        to_torch(params, replace(SMALL, obs_dim=6))
    with pytest.raises(InvalidError, match=r"wave\.angle: missing, or unknown"):
        to_torch(params_of(replace(SMALL, wave_pairs=0)), replace(SMALL))
    rounded = jax.tree.map(lambda leaf: leaf.astype(np.float16), params)
    with pytest.raises(InvalidError, match="float16"):
        to_torch(rounded, SMALL)
