"""The torch model against the JAX model: the same parameters, the same numbers."""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from brain_service.model.config import PRESETS, CoreModelConfig
from brain_service.model.core import Params, init_params
from brain_service.model.state import init_carry
from brain_service.training.step import opening_carry
from brain_service.training.torch_lora.parameters import to_torch
from brain_service.training.torch_lora.signals import StepOutputs, fresh_carry
from tests.model.models import DISCRETE, SEEING, SMALL, at, jit_unroll, params_of, random_inputs
from tests.training.torch_lora.tensors import as_tensors

LENGTH = 64


def difference(torch_outputs: StepOutputs, jax_outputs: object) -> float:
    """Return the greatest difference of any output; the likeliest of two choices that nearly tie is either."""
    worst = 0.0
    for name, expected in jax_outputs._asdict().items():  # type: ignore[attr-defined]
        found = getattr(torch_outputs, name)
        if expected is None:
            assert found is None
            continue
        assert found.shape == expected.shape, name
        apart = np.abs(found.detach().numpy() - np.asarray(expected))
        if name == "action_mean" and jax_outputs.action_logits is not None:  # type: ignore[attr-defined]
            top = np.sort(np.asarray(jax_outputs.action_logits), axis=-1)  # type: ignore[attr-defined]
            apart = apart[top[..., -1] - top[..., -2] > 1e-4]
        worst = max(worst, float(apart.max(initial=0.0)))
    return worst


def assert_same(config: CoreModelConfig, batch: int, length: int = LENGTH, *, seed: int = 0) -> None:
    """Hold both forms of the torch model against JAX over a sequence with resets in its middle.

    JAX's own tests say that its steps are its sequence.
    """
    params = params_of(config, seed)
    model = to_torch(params, config)
    inputs = random_inputs(config, batch, length, seed=seed)
    is_first = inputs.is_first.at[0, length // 3].set(1.0).at[batch - 1, length // 2].set(1.0)
    inputs = inputs._replace(is_first=is_first)
    last, together = jit_unroll(params, config, init_carry(config, batch), inputs)
    with torch.no_grad():
        end, outputs = model.unroll(fresh_carry(config, batch), as_tensors(inputs))
        assert difference(outputs, together) <= 1e-5
        carry = fresh_carry(config, batch)
        for t in range(length):
            carry, outputs = model.step(carry, as_tensors(at(inputs, t)))
            expected = type(together)(*(None if part is None else part[:, t] for part in together))
            assert difference(outputs, expected) <= 1e-5, t
    for found in (end, carry):
        for name, expected in last._asdict().items():
            # A wave channel sums the rounding of all steps that it remembers.
            assert np.abs(getattr(found, name).numpy() - np.asarray(expected)).max() <= 3e-5, name


@pytest.mark.long
@pytest.mark.parametrize(("preset", "batch"), [("development", 3), ("pi5_optimized", 1)])
def test_the_presets_of_robots_give_the_outputs_of_jax_over_64_steps(preset: str, batch: int) -> None:
    assert_same(PRESETS[preset](obs_dim=9, action_dim=2), batch)


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("preset", sorted(set(PRESETS) - {"development", "pi5_optimized"}))
def test_the_presets_of_accelerators_give_the_outputs_of_jax_over_64_steps(preset: str) -> None:
    assert_same(PRESETS[preset](obs_dim=9, action_dim=2), 2)


@pytest.mark.parametrize(
    "config",
    [
        SMALL,
        replace(SMALL, wave_pairs=0),
        replace(SMALL, d_w=4, wave_pairs=2),
        replace(SMALL, action_horizon=1),
        replace(SMALL, cms_sizes=(3,), cms_periods=(1,), cms_decays=(0.05,)),
        DISCRETE,
        SEEING,
        replace(SEEING, image_shape=(8, 7, 1), image_channels=(3, 5, 4)),
    ],
    ids=["chunk", "no pairs", "pairs only", "one action", "one level", "discrete", "image", "deep image"],
)
def test_every_kind_of_model_gives_the_outputs_of_jax(config: CoreModelConfig) -> None:
    assert_same(config, 3)


@st.composite
def configs(draw: st.DrawFn) -> CoreModelConfig:
    """Small models of any shape."""
    levels = draw(st.integers(1, 3))
    sizes: dict[str, Any] = {name: draw(st.integers(1, 6)) for name in ("obs_dim", "action_dim", "action_horizon")}
    sizes |= {name: draw(st.integers(1, 9)) for name in ("d_e", "d_s", "d_w", "d_p", "d_c", "d_k", "d_v", "d_h")}
    choices = draw(st.sampled_from([0, 0, 2, 5]))
    seeing = draw(st.booleans())
    return CoreModelConfig(
        **sizes,
        wave_pairs=draw(st.integers(0, sizes["d_w"] // 2)),
        cms_sizes=tuple(draw(st.integers(1, 4)) for _ in range(levels)),
        cms_periods=(1, *sorted(draw(st.sets(st.integers(2, 9), min_size=levels - 1, max_size=levels - 1)))),
        cms_decays=(0.2, 0.1, 0.01)[:levels],
        action_kind="discrete" if choices else "continuous",
        action_choices=choices,
        image_shape=tuple(draw(st.integers(1, 7)) for _ in range(3)) if seeing else (),
        image_channels=tuple(draw(st.lists(st.integers(1, 4), min_size=1, max_size=2))),
    )


@pytest.mark.slow
@settings(max_examples=4)
@given(config=configs(), seed=st.integers(0, 2**16), batch=st.integers(1, 3))
def test_models_of_any_small_shape_give_the_outputs_of_jax(config: CoreModelConfig, seed: int, batch: int) -> None:
    assert_same(config, batch, 17, seed=seed)


def test_products_in_bfloat16_are_those_of_jax() -> None:
    rough = replace(SMALL, compute_dtype="bfloat16")
    params, inputs = params_of(rough), random_inputs(rough, 2, 8)
    _, expected = jit_unroll(params, rough, init_carry(rough, 2), inputs)
    _, exact = jit_unroll(params, SMALL, init_carry(rough, 2), inputs)
    with torch.no_grad():
        _, outputs = to_torch(params, rough).unroll(fresh_carry(rough, 2), as_tensors(inputs))
    assert difference(outputs, expected) <= 1e-5
    assert difference(outputs, exact) > 1e-4


def test_the_gradients_are_those_of_jax() -> None:
    config, batch = SMALL, 3
    params = init_params(config, jax.random.key(0))
    inputs = random_inputs(config, batch, 20, resets=0.1)

    def cost(params: Params) -> jax.Array:
        _, outputs = jit_unroll(params, config, init_carry(config, batch), inputs)
        return jnp.stack([((leaf - 0.3) ** 2).mean() for leaf in jax.tree.leaves(outputs)]).sum()

    model = to_torch(params, config)
    _, outputs = model.unroll(fresh_carry(config, batch), as_tensors(inputs))
    total = torch.stack([((part - 0.3) ** 2).mean() for part in outputs if part is not None]).sum()
    torch.autograd.backward(total)
    expected = jax.grad(cost)(params)
    for name, parameter in model.named_parameters():
        slope = expected
        for part in name.split("."):
            slope = slope[part]
        assert parameter.grad is not None
        assert np.abs(parameter.grad.numpy() - np.asarray(slope)).max() <= 1e-5, name


def test_an_image_for_a_model_without_an_encoder_is_refused() -> None:
    inputs = as_tensors(random_inputs(SEEING, 1, 2))
    with pytest.raises(ValueError, match=r"image has shape \(9, 6, 2\), the model's image_shape is \(\)"):
        to_torch(params_of(SMALL), SMALL).unroll(fresh_carry(SMALL, 1), inputs)


def test_sequences_that_begin_inside_an_episode_open_with_the_state_of_jax() -> None:
    params = params_of(SMALL)
    expected = opening_carry(SMALL, params, 3)
    with torch.no_grad():
        found = to_torch(params, SMALL).opening_carry(3)
    for name, value in expected._asdict().items():
        np.testing.assert_allclose(getattr(found, name), value, atol=1e-6, err_msg=name)
