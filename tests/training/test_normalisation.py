import json

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from brain_service.datasets.statistics import FeatureStatistics, Statistics
from brain_service.errors import CorruptDataError, InvalidError
from brain_service.training.normalisation import CLIP, STD_FLOOR, Normaliser


def figures(mean: list[float], std: list[float], low: list[float], high: list[float]) -> FeatureStatistics:
    return FeatureStatistics(mean, std, low, high, low, high, low, high)


def statistics(**changes: FeatureStatistics) -> Statistics:
    parts = {
        "observation": figures([1.0, -2.0, 5.0], [2.0, 0.5, 1e-7], [-3.0, -3.0, 5.0], [5.0, 0.0, 5.0]),
        "action": figures([0.0, 0.7], [1.0, 0.0], [-2.0, 0.7], [4.0, 0.7]),
        "reward": figures([10.0], [4.0], [0.0], [20.0]),
    } | changes
    return Statistics({"state": parts["observation"]}, {"command": parts["action"]}, parts["reward"], 10, 2)


NORMALISER = Normaliser.from_statistics(statistics())


@given(share=st.lists(st.floats(0, 1, width=32), min_size=2, max_size=2))
def test_recorded_actions_fit_in_one_unit_and_come_back(share: list[float]) -> None:
    raw = NORMALISER.action_low + np.asarray(share, np.float32) * (NORMALISER.action_high - NORMALISER.action_low)
    normalised = NORMALISER.action(raw)
    assert np.abs(normalised).max() <= 1 + 1e-6
    np.testing.assert_allclose(NORMALISER.raw_action(normalised), raw, atol=1e-5)


@given(beyond=st.floats(-1e6, 1e6, width=32))
def test_no_answer_leaves_the_recorded_limits(beyond: float) -> None:
    raw = NORMALISER.raw_action(np.full(2, beyond, np.float32))
    assert (raw >= NORMALISER.action_low).all() and (raw <= NORMALISER.action_high).all()


def test_observations_and_rewards_have_zero_mean_and_unit_spread() -> None:
    np.testing.assert_allclose(
        NORMALISER.observation(np.asarray([[1.0, -2.0, 5.0], [3.0, -1.5, 5.0]], np.float32)),
        [[0, 0, 0], [1, 1, 0]],
    )
    np.testing.assert_allclose(NORMALISER.reward(np.asarray([10.0, 14.0], np.float32)), [0.0, 1.0])


def test_a_feature_that_never_varied_is_not_blown_up() -> None:
    shifted = NORMALISER.observation(np.asarray([1.0, -2.0, 5.0 + STD_FLOOR / 2], np.float32))
    assert abs(shifted[2]) < 1.0


def test_what_never_varied_is_no_shock_when_it_moves() -> None:
    same = statistics(
        observation=figures([0.4, 2048.0, 0.0], [0.0] * 3, [0.4, 2048.0, 0.0], [0.4, 2048.0, 0.0]),
        reward=figures([0.5], [0.0], [0.5], [0.5]),
    )
    normaliser = Normaliser.from_statistics(same)
    np.testing.assert_array_equal(normaliser.observation(np.asarray([0.4, 2048.0, 0.0], np.float32)), 0.0)
    moved = normaliser.observation(np.asarray([0.6, 2500.0, 0.2], np.float32))
    assert np.abs(moved).max() < 0.3
    # A client that leaves the reward out.
    np.testing.assert_allclose(normaliser.reward(np.asarray([0.5, 0.0], np.float32)), [0.0, -0.5])


def test_choices_are_counted_from_the_first_to_the_last_though_some_were_never_taken() -> None:
    taken = figures([1.0, 2.0], [0.5, 0.0], [0.0, 2.0], [2.0, 2.0])
    normaliser = Normaliser.from_statistics(statistics(action=taken), 4)
    points = normaliser.action(np.asarray([[0, 1], [1, 2], [2, 3]], np.float32))
    np.testing.assert_allclose(points, [[-1, -1 / 3], [-1 / 3, 1 / 3], [1 / 3, 1]], atol=1e-6)
    with pytest.raises(InvalidError, match=r"recorded from 0 to 2, and the choices are 0 to 1") as caught:
        Normaliser.from_statistics(statistics(action=taken), 2)
    assert caught.value.field == "model"


def test_a_broken_sensor_is_cut() -> None:
    wild = NORMALISER.observation(np.asarray([1e30, -1e30, 0.0], np.float32))
    assert np.abs(wild).max() == CLIP


def test_numpy_and_jax_give_the_same_numbers() -> None:
    rng = np.random.default_rng(0)
    observation = rng.standard_normal((4, 3)).astype(np.float32)
    action = rng.standard_normal((4, 2)).astype(np.float32)
    np.testing.assert_allclose(
        NORMALISER.observation(jnp.asarray(observation)), NORMALISER.observation(observation), rtol=1e-6
    )
    np.testing.assert_allclose(
        NORMALISER.raw_action(jnp.asarray(action)), NORMALISER.raw_action(action), rtol=1e-6
    )


def test_it_survives_json_exactly() -> None:
    again = Normaliser.from_dict(json.loads(json.dumps(NORMALISER.to_dict())))
    assert again.to_dict() == NORMALISER.to_dict()


def test_a_document_with_a_missing_figure_is_corrupt() -> None:
    document = NORMALISER.to_dict()
    del document["reward_std"]
    with pytest.raises(CorruptDataError, match="reward_std"):
        Normaliser.from_dict(document)


def test_statistics_with_nan_are_refused_by_name() -> None:
    broken = figures([float("nan")], [1.0], [0.0], [1.0])
    with pytest.raises(InvalidError) as caught:
        Normaliser.from_statistics(statistics(reward=broken))
    assert caught.value.field == "reward_mean"


def test_a_dataset_of_text_alone_cannot_be_learned() -> None:
    nothing = Statistics(
        {}, {"command": figures([0.0], [1.0], [0.0], [1.0])}, figures([0.0], [1.0], [0.0], [1.0]), 1, 1
    )
    with pytest.raises(InvalidError, match="record numbers"):
        Normaliser.from_statistics(nothing)


def test_actions_whose_range_overflows_are_refused() -> None:
    wild = figures([0.0, 0.0], [1.0, 1.0], [-3e38, -1.0], [3e38, 1.0])
    with pytest.raises(InvalidError, match="beyond float32") as caught:
        Normaliser.from_statistics(statistics(action=wild))
    assert caught.value.field == "action"
