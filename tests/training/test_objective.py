from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from brain_service.datasets.loader import SequenceLoader, open_dataset
from brain_service.model.core import unroll
from brain_service.model.signals import StepInputs, StepOutputs
from brain_service.model.state import init_carry
from brain_service.training.normalisation import Normaliser
from brain_service.training.objective import (
    DISCOUNT,
    TRACE,
    Sequences,
    chunk_targets,
    losses,
    masked_mean,
    normalise_batch,
    value_targets,
)
from brain_service.training.step import disturb, init_state
from tests.training.tasks import tiny

B, T, H, A, D = 2, 7, 3, 2, 4


def sequences(**changes: Any) -> Sequences:
    rng = np.random.default_rng(0)

    def normal(*shape: int) -> jax.Array:
        return jnp.asarray(rng.standard_normal(shape), jnp.float32)

    ones = jnp.ones((B, T), jnp.float32)
    inputs = StepInputs(normal(B, T, D), normal(B, T, A), normal(B, T), jnp.zeros((B, T)).at[:, 0].set(1))
    made = Sequences(
        inputs, normal(B, T, A), normal(B, T), jnp.zeros((B, T)), ones, ones, ones, ones.at[:, -1].set(0)
    )
    return made._replace(**changes)


def outputs(seed: int = 1) -> StepOutputs:
    rng = np.random.default_rng(seed)
    shapes = [(B, T, H, A), (B, T, H, A), (B, T, D), (B, T), (B, T)]
    return StepOutputs(*(jnp.asarray(rng.standard_normal(shape), jnp.float32) for shape in shapes))


def test_a_chunk_holds_the_actions_to_come_and_ends_with_the_episode() -> None:
    action = jnp.arange(T, dtype=jnp.float32).reshape(1, T, 1)
    is_first = jnp.zeros((1, T)).at[0, 0].set(1).at[0, 4].set(1)
    targets, mask = chunk_targets(action, jnp.ones((1, T)), is_first, H)
    expected = [[1, 1, 1], [1, 1, 1], [1, 1, 0], [1, 0, 0], [1, 1, 1], [1, 1, 0], [1, 0, 0]]
    assert np.array_equal(mask[0], expected)
    for t, h in zip(*np.nonzero(np.asarray(mask[0])), strict=True):
        assert targets[0, t, h, 0] == t + h


def test_steps_that_are_not_to_be_imitated_do_not_count_anywhere_in_a_chunk() -> None:
    counts = jnp.ones((1, T)).at[0, 3].set(0)
    _, mask = chunk_targets(jnp.zeros((1, T, 1)), counts, jnp.zeros((1, T)), 2)
    assert mask[0, 3, 0] == 0 and mask[0, 2, 1] == 0 and mask[0, 4, 0] == 1


@pytest.mark.parametrize("part", ["action", "reward"])
def test_masked_targets_change_nothing(part: str) -> None:
    hidden = jnp.ones((B, T)).at[:, 2:4].set(0)
    base = sequences(loss_mask=hidden, valid_mask=hidden, next_mask=hidden, mask=hidden)
    target = getattr(base, part)
    wild = base._replace(**{part: target.at[:, 2:4].set(1e3)})
    for name, value in losses(outputs(), base).items():
        assert np.array_equal(value, losses(outputs(), wild)[name]), name


def test_a_perfect_prediction_costs_less_than_a_near_one() -> None:
    batch = sequences()
    targets, _ = chunk_targets(batch.action, batch.loss_mask, batch.inputs.is_first, H)
    following = jnp.concatenate([batch.inputs.observation[:, 1:], jnp.zeros((B, 1, D))], axis=1)
    perfect = outputs()._replace(
        action_mean=targets,
        action_log_std=jnp.full((B, T, H, A), -3.0),
        next_observation=following,
        reward=batch.reward,
    )
    best = losses(perfect, batch)
    assert best["action_rmse"] == best["next_observation"] == best["reward"] == 0.0
    near = losses(perfect._replace(action_mean=targets + 0.1, reward=batch.reward + 1.0), batch)
    assert near["action"] > best["action"]
    assert near["reward"] == pytest.approx(0.5)
    assert near["action_rmse"] == pytest.approx(0.1, rel=1e-4)


def test_the_deviation_that_suits_the_error_is_the_cheapest() -> None:
    # The gradient with respect to the log deviation vanishes where it equals the error.
    batch = sequences()
    targets, _ = chunk_targets(batch.action, batch.loss_mask, batch.inputs.is_first, H)

    def slope(log_std: float) -> float:
        def cost(shift: jax.Array) -> jax.Array:
            shape = (B, T, H, A)
            made = outputs()._replace(action_mean=targets + 0.2, action_log_std=jnp.full(shape, log_std) + shift)
            return losses(made, batch)["action"]

        return float(jax.grad(cost)(jnp.zeros(())))

    assert slope(np.log(0.2) - 1) < 0 < slope(np.log(0.2) + 1)
    assert abs(slope(float(np.log(0.2)))) < 1e-5


def discrete(seed: int = 1, choices: int = 5) -> tuple[Sequences, StepOutputs, np.ndarray[Any, Any]]:
    """Return a batch of recorded choices, predictions with logits, and the targets' indices."""
    rng = np.random.default_rng(seed)
    index = rng.integers(0, choices, (B, T, A))
    batch = sequences(action=jnp.asarray(-1 + 2 * index / (choices - 1), jnp.float32))
    logits = jnp.asarray(rng.standard_normal((B, T, H, A, choices)), jnp.float32)
    return batch, outputs()._replace(action_logits=logits), index


def test_the_loss_of_discrete_actions_is_the_cross_entropy_of_the_recorded_choices() -> None:
    batch, made, index = discrete()
    assert made.action_logits is not None
    log_p = np.asarray(jax.nn.log_softmax(made.action_logits), np.float64)
    found = []
    for b, t, h in np.ndindex(B, T, H):
        if t + h < T:
            found.append(-np.mean([log_p[b, t, h, a, index[b, t + h, a]] for a in range(A)]))
    assert losses(made, batch)["action"] == pytest.approx(np.mean(found), rel=1e-5)


def test_choices_that_are_not_to_be_imitated_change_no_loss_and_no_gradient() -> None:
    batch, made, _ = discrete()
    hidden = batch._replace(loss_mask=batch.loss_mask.at[:, 2:4].set(0))
    other = hidden._replace(action=hidden.action.at[:, 2:4].multiply(-1.0))
    assert np.array_equal(losses(made, hidden)["action"], losses(made, other)["action"])
    assert not np.array_equal(losses(made, batch)["action"], losses(made, hidden)["action"])
    slope = jax.grad(lambda logits: losses(made._replace(action_logits=logits), hidden)["action"])(
        made.action_logits
    )
    assert np.abs(slope[:, 2:4, 0]).max() == 0.0 and np.abs(slope[:, 4, 0]).max() > 0.0


def test_the_value_of_a_terminal_step_is_its_share_of_its_reward() -> None:
    terminal = jnp.zeros((B, T)).at[:, -1].set(1)
    batch = sequences(is_terminal=terminal)
    value = jnp.zeros((B, T)).at[:, -1].set((1 - DISCOUNT) * batch.reward[:, -1])
    at_end = batch._replace(valid_mask=terminal)
    assert losses(outputs()._replace(value=value), at_end)["value"] == 0.0
    assert losses(outputs()._replace(value=value + 1.0), at_end)["value"] == pytest.approx(0.5)


@given(seed=st.integers(0, 2**16))
def test_a_value_is_drawn_to_the_rewards_that_follow_and_at_the_end_to_the_estimate(seed: int) -> None:
    """Against the definition: the mean of the n-step returns, each weighted by its power of lambda."""
    rng = np.random.default_rng(seed)
    terminal, valid, following = (rng.random((B, T)) < share for share in (0.1, 0.9, 0.9))
    following[:, -1] = False
    value, reward = rng.standard_normal((2, B, T))
    batch = sequences(
        reward=jnp.asarray(reward, jnp.float32),
        is_terminal=jnp.asarray(terminal, jnp.float32),
        valid_mask=jnp.asarray(valid, jnp.float32),
        next_mask=jnp.asarray(following, jnp.float32),
    )
    found, known = value_targets(jnp.asarray(value, jnp.float32), batch)
    assert np.array_equal(known, (following | terminal) & valid)
    for b, t in np.argwhere(np.asarray(known) > 0):
        gathered, power, expected, at, over = 0.0, 1.0, 0.0, t, False
        while known[b, at] and not over:
            gathered, power = gathered + power * (1 - DISCOUNT) * reward[b, at], power * DISCOUNT
            over, at = bool(terminal[b, at]), at + 1
            last = over or not known[b, at]
            weight = TRACE ** (at - t - 1) * (1.0 if last else 1 - TRACE)
            expected += weight * (gathered + (0.0 if over else power * value[b, at]))
        assert found[b, t] == pytest.approx(expected, abs=1e-5)


def test_an_estimate_that_is_off_moves_its_own_target_by_less_than_two_thirds_of_that() -> None:
    """What keeps values from chasing themselves: a target of one reward would move by 97 %."""
    length = 200
    ones, zeros = jnp.ones((1, length)), jnp.zeros((1, length))
    batch = sequences()._replace(
        reward=zeros,
        valid_mask=ones,
        next_mask=ones.at[:, -1].set(0),
        is_terminal=zeros.at[:, -1].set(1),
    )
    moved = value_targets(ones, batch)[0] - value_targets(zeros, batch)[0]
    assert moved.min() >= 0.0 and moved.max() < 2 / 3


def test_no_gradient_flows_through_the_targets_of_a_value() -> None:
    batch = sequences()
    slope = jax.grad(lambda value: value_targets(value, batch)[0].sum())(outputs().value)
    assert not slope.any()


def test_the_mean_of_nothing_is_zero() -> None:
    assert masked_mean(jnp.ones((3,)), jnp.zeros((3,))) == 0.0


def test_the_model_never_sees_the_action_and_reward_that_it_predicts(dataset_arrays: SequenceLoader) -> None:
    """Sentinel: another a_t and r_t change nothing up to and including t, and do change what follows."""
    loader, t = dataset_arrays, 5
    normaliser = Normaliser.from_statistics(loader.dataset.statistics)
    plain = loader.batch(0)
    changed = {name: getattr(plain, name).copy() for name in ("action", "reward")}
    changed["action"][:, t], changed["reward"][:, t] = 0.123, 0.456
    # What the loader would make of these recordings: the next step's past.
    past = {"previous_action": plain.previous_action.copy(), "previous_reward": plain.previous_reward.copy()}
    past["previous_action"][:, t + 1], past["previous_reward"][:, t + 1] = 0.123, 0.456
    spoiled = type(plain)(**{**vars(plain), **changed, **past})
    config = tiny()
    model = config.model_config(3, 2)
    params = init_state(model, config).params
    predict = jax.jit(unroll, static_argnums=1)
    carry = init_carry(model, loader.batch_size)
    inputs = [normalise_batch(batch, normaliser).inputs for batch in (plain, spoiled)]
    (_, before), (_, after) = (predict(params, model, carry, each) for each in inputs)
    for one, other in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True):
        assert np.array_equal(one[:, : t + 1], other[:, : t + 1])
    assert not np.array_equal(before.action_mean[:, t + 1], after.action_mean[:, t + 1])


@pytest.fixture
def dataset_arrays(dataset: object) -> SequenceLoader:
    return SequenceLoader(open_dataset(str(dataset)), "train", batch_size=2, sequence_length=12, seed=0)


def test_the_loaders_past_is_the_recorded_step_before(dataset_arrays: SequenceLoader) -> None:
    batch = dataset_arrays.batch(0)
    real = (batch.mask[:, 1:] * (1 - batch.is_first[:, 1:])) > 0
    assert np.array_equal(batch.previous_action[:, 1:][real], batch.action[:, :-1][real])
    assert np.array_equal(batch.previous_reward[:, 1:][real], batch.reward[:, :-1][real])


def test_disturbances_hide_some_past_actions_and_shake_observations_by_the_seed() -> None:
    inputs = sequences().inputs._replace(previous_action=jnp.ones((B, T, A)))
    config = tiny(previous_action_dropout=0.5, observation_noise=0.1)
    one, same, other = (disturb(inputs, config, jax.random.key(seed)) for seed in (0, 0, 1))
    assert np.array_equal(one.previous_action, same.previous_action)
    assert not np.array_equal(one.observation, other.observation)
    assert set(np.unique(one.previous_action)) == {0.0, 1.0}
    assert 0 < np.abs(one.observation - inputs.observation).mean() < 0.2
    calm = disturb(inputs, tiny(previous_action_dropout=0.0, observation_noise=0.0), jax.random.key(0))
    assert all(np.array_equal(a, b) for a, b in zip(calm[:4], inputs[:4], strict=True))
