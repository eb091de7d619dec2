"""Trained in torch, served by JAX and ONNX Runtime: through the normal checkpoint and the normal export."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from safetensors.numpy import load

from brain_service.export import onnx_form
from brain_service.export.bundle import JAX_STEP, ONNX_MODEL, PARAMS, Bundle
from brain_service.export.jax_form import load_step
from brain_service.export.jax_step import export_jax
from brain_service.export.parity import Stepper
from brain_service.training.checkpointing import Checkpoints, load_checkpoint
from brain_service.training.step import TrainState
from brain_service.training.synthetic import synthetic_batch
from brain_service.training.torch_lora.adapters import AdapterSpec, adapter_parameters, attach, merged_params
from brain_service.training.torch_lora.model import TorchCoreModel
from brain_service.training.torch_lora.objective import losses, to_tensors
from brain_service.training.torch_lora.parameters import to_torch
from brain_service.training.torch_lora.signals import StepInputs, fresh_carry
from tests.export.models import CONFIG, NORMALISER, source

STEPS, RESET = 64, 40


def fine_tuned() -> TorchCoreModel:
    """Return a model after some optimiser steps on its adapters, which made it better."""
    model = to_torch(dict(source().params), CONFIG)
    torch.manual_seed(0)
    attach(model, AdapterSpec(2, 4.0, ("heads", "encoder", "cell.from_fast", "wave")))
    optimiser = torch.optim.AdamW(adapter_parameters(model), lr=1e-2)
    batch = to_tensors(synthetic_batch(0, 8, 16, CONFIG.obs_dim, CONFIG.action_dim))
    found = []
    for _ in range(8):
        optimiser.zero_grad()
        loss = losses(model.unroll(fresh_carry(CONFIG, 8), batch.inputs)[1], batch)["loss"]
        torch.autograd.backward(loss)
        optimiser.step()
        found.append(float(loss.detach()))
    assert found[-1] < found[0]
    return model


def torch_actions(model: TorchCoreModel, observation: np.ndarray, reward: np.ndarray) -> np.ndarray:
    """Return the raw actions of each step, shape `[T, H, A]`, the first one and the state fed back."""
    carry, past, found = fresh_carry(CONFIG, 1), np.zeros((1, CONFIG.action_dim), np.float32), []
    for t in range(STEPS):
        inputs = StepInputs(
            torch.tensor(np.asarray(NORMALISER.observation(observation[t : t + 1]))),
            torch.tensor(np.asarray(NORMALISER.action(past))),
            torch.tensor(np.asarray(NORMALISER.reward(reward[t : t + 1]))),
            torch.tensor([float(t in (0, RESET))]),
        )
        with torch.no_grad():
            carry, outputs = model.step(carry, inputs)
        action = np.asarray(NORMALISER.raw_action(outputs.action_mean.numpy()))
        past = action[:, 0]
        found.append(action[0])
    return np.stack(found)


def served_actions(
    step: Stepper, observation: np.ndarray, reward: np.ndarray, carry: tuple[int, ...]
) -> np.ndarray:
    """Return the same of a form of the bundle."""
    state, past, found = tuple(np.zeros((1, n), np.float32) for n in carry), np.zeros((1, 2), np.float32), []
    for t in range(STEPS):
        is_first = np.asarray([t in (0, RESET)], np.float32)
        state, action = step(state, observation[t : t + 1], past, reward[t : t + 1], is_first)
        past = np.asarray(action)[:, 0]
        found.append(np.asarray(action)[0])
    return np.stack(found)


@pytest.fixture(scope="module")
def tuned() -> TorchCoreModel:
    return fine_tuned()


@pytest.fixture(scope="module")
def served(tuned: TorchCoreModel, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The bundle of the merged model, made from a checkpoint that the normal writer wrote."""
    root = tmp_path_factory.mktemp("served")
    meta = {
        "model": CONFIG.to_dict(),
        "normalisation": NORMALISER.to_dict(),
        "spec": source().spec.to_json(),
        "control_period_s": 0.02,
    }
    with Checkpoints(root / "run", keep=1) as checkpoints:
        checkpoints.save(
            TrainState(jnp.asarray(8, jnp.int32), merged_params(tuned), {"none": jnp.zeros(())}), meta
        )
    merged = load_checkpoint(root / "run").params["heads"]["out"]["kernel"]
    assert not np.array_equal(merged, source().params["heads"]["out"]["kernel"])
    return Bundle.open(export_jax(root / "run", root / "models", forms=("jax", "onnx")))


@pytest.mark.parametrize("form", ["jax", "onnx"])
def test_what_torch_trained_is_served_with_the_actions_of_torch(
    tuned: TorchCoreModel, served: Bundle, form: str
) -> None:
    load_form, file = {"jax": (load_step, JAX_STEP), "onnx": (onnx_form.load_step, ONNX_MODEL)}[form]
    step = load_form(served.read(file), load(served.read(PARAMS)), served.manifest.carry)
    rng = np.random.default_rng(3)
    noise = rng.standard_normal((STEPS, CONFIG.obs_dim)).astype(np.float32)
    observation = NORMALISER.observation_mean + NORMALISER.observation_std * noise
    reward = 3.0 + rng.standard_normal(STEPS).astype(np.float32)
    expected = torch_actions(tuned, observation, reward)
    found = served_actions(step, observation, reward, tuple(served.manifest.carry.values()))
    span = NORMALISER.action_high - NORMALISER.action_low
    assert np.abs((found - expected) / span).max() <= 1e-4
    untuned = torch_actions(to_torch(dict(source().params), CONFIG), observation, reward)
    assert np.abs((untuned - expected) / span).max() > 1e-2
