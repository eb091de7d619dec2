import jax
import jax.numpy as jnp
import numpy as np
import pytest

from brain_service.model.signals import StepInputs
from brain_service.model.state import Carry
from tests.bench.learning.models import MODELS, make_policy

SMALL = {
    "d_e": 16,
    "d_s": 8,
    "d_w": 16,
    "d_p": 4,
    "d_c": 8,
    "d_k": 4,
    "d_v": 4,
    "d_h": 16,
    "cms_sizes": (2, 2),
    "cms_periods": (1, 4),
    "cms_decays": (0.1, 0.05),
}


def inputs(batch: int, steps: int, seed: int = 0) -> StepInputs:
    rng = np.random.default_rng(seed)
    is_first = np.zeros((batch, steps), np.float32)
    is_first[:, 0] = 1.0
    is_first[0, steps // 2] = 1.0
    rows = (
        rng.normal(size=(batch, steps, 5)),
        rng.normal(size=(batch, steps, 2)),
        rng.normal(size=(batch, steps)),
    )
    observation, action, reward = (jnp.asarray(row, jnp.float32) for row in rows)
    return StepInputs(observation, action, reward, jnp.asarray(is_first))


@pytest.mark.parametrize(("obs_dim", "action_dim"), [(4, 4), (2, 1), (39, 4)])
@pytest.mark.parametrize("name", ["gru", "mlp"])
def test_a_baseline_has_as_many_parameters_within_a_twentieth(name: str, obs_dim: int, action_dim: int) -> None:
    ours, theirs = (make_policy(model, obs_dim, action_dim).parameters for model in ("core", name))
    assert abs(theirs / ours - 1) < 0.05


@pytest.mark.parametrize("name", MODELS)
def test_step_by_step_and_over_a_sequence_give_the_same_numbers(name: str) -> None:
    policy, sequence = make_policy(name, 5, 2, **SMALL), inputs(2, 6)
    params = policy.init(jax.random.key(1))
    _, expected = jax.jit(policy.unroll)(params, policy.init_carry(2), sequence)
    carry, step = policy.init_carry(2), jax.jit(policy.step)
    for t in range(6):
        carry, found = step(params, carry, jax.tree.map(lambda values, t=t: values[:, t], sequence))
        np.testing.assert_allclose(found.action_mean, expected.action_mean[:, t], atol=1e-5)


@pytest.mark.parametrize(("name", "remembers"), [("core", True), ("gru", True), ("mlp", False)])
def test_only_a_model_with_a_state_remembers(name: str, remembers: bool) -> None:
    policy, sequence = make_policy(name, 5, 2, **SMALL), inputs(2, 4)
    params = policy.init(jax.random.key(1))
    other = sequence._replace(observation=sequence.observation.at[1, 0].add(1.0))
    first, second = (
        policy.unroll(params, policy.init_carry(2), seen)[1].action_mean[1, -1] for seen in (sequence, other)
    )
    assert bool(jnp.any(first != second)) is remembers


@pytest.mark.parametrize(("name", "part"), [("core-no-wave", "wave"), ("core-no-cms", "slots")])
def test_an_ablation_keeps_its_state_at_zero_and_its_weights_out_of_training(name: str, part: str) -> None:
    policy, core = make_policy(name, 5, 2, **SMALL), make_policy("core", 5, 2, **SMALL)
    params = policy.init(jax.random.key(1))
    found: Carry = policy.unroll(params, policy.init_carry(2), inputs(2, 6))[0]
    whole: Carry = core.unroll(core.init(jax.random.key(1)), core.init_carry(2), inputs(2, 6))[0]
    values = [getattr(carry, part).reshape(2, -1) for carry in (found, whole)]
    if part == "slots":
        # Value and key of each slot: no value is ever written.
        width = SMALL["d_v"] + SMALL["d_k"]  # type: ignore[operator]
        values = [slots.reshape(2, -1, width)[..., : SMALL["d_v"]] for slots in values]
    assert not jnp.any(values[0])
    assert jnp.any(values[1])
    assert policy.parameters < core.parameters
    held = [leaf for leaf in jax.tree.leaves(policy.trainable(params)) if leaf == 0]
    assert len(held) >= 2


def test_an_unknown_model_is_named() -> None:
    with pytest.raises(ValueError, match="lstm"):
        make_policy("lstm", 4, 4)
