"""What a stored step holds, and the two ends of an episode."""

import numpy as np
import pytest

from brain_service.datasets.columns import episode_columns, step_features, valid_transitions
from brain_service.errors import InvalidError
from brain_service.spec import EpisodeSpec, Feature

from .samples import PERIOD_NS, RICH_SPEC, assert_equal_columns, make_episode

STATE = {"state": Feature("float32", (2,))}


def test_one_action_is_stored_as_action_itself() -> None:
    nested = EpisodeSpec(STATE, {"arm/command": Feature("float32", (2,))})
    assert step_features(nested)["action"] == Feature("float32", (2,))


def test_a_scalar_action_gets_an_axis_and_keeps_its_values() -> None:
    spec = EpisodeSpec(STATE, {"throttle": Feature("float32")})
    episode = make_episode(spec=spec)
    assert step_features(spec)["action"] == Feature("float32", (1,))
    stored, captured = episode_columns(episode, "oxe")["action"], episode.action["throttle"]
    assert isinstance(stored, np.ndarray) and isinstance(captured, np.ndarray)
    assert np.array_equal(stored[:, 0], captured)


def test_several_actions_keep_their_names() -> None:
    assert [name for name in step_features(RICH_SPEC) if name.startswith("action")] == [
        "action/arm/command",
        "action/gripper",
        "action/mode",
    ]


@pytest.mark.parametrize("clash", [{"arm": Feature("bool"), "arm/joint": Feature("bool")}])
def test_a_name_that_is_feature_and_folder_is_refused(clash: dict[str, Feature]) -> None:
    with pytest.raises(InvalidError, match="'observation/arm' is a feature and also the folder"):
        step_features(EpisodeSpec(clash, STATE))


@pytest.mark.parametrize("end", ["terminated", "truncated"])
def test_oxe_is_one_to_one_with_the_capture(end: str) -> None:
    episode = make_episode(steps=4, end=end, final=True, spec=RICH_SPEC)
    columns = episode_columns(episode, "oxe")
    assert list(columns) == list(step_features(RICH_SPEC))
    for path, expected in episode.observation.items():
        assert_equal_columns(columns[f"observation/{path}"], expected)
    for path, expected in episode.action.items():
        assert_equal_columns(columns[f"action/{path}"], expected)
    over = end == "terminated"
    assert np.array_equal(columns["is_first"], [True, False, False, False])
    assert np.array_equal(columns["is_last"], [False, False, False, True])
    assert np.array_equal(columns["is_terminal"], [False, False, False, over])
    assert np.array_equal(columns["discount"], [1, 1, 1, 0 if over else 1])
    assert columns["language_instruction"] == ["reach the puck"] * 4


@pytest.mark.parametrize("end", ["terminated", "truncated"])
def test_rlds_appends_the_final_observation_and_moves_the_flags(end: str) -> None:
    episode = make_episode(steps=3, end=end, final=True, spec=RICH_SPEC)
    columns = episode_columns(episode, "rlds")
    assert episode.final_observation is not None
    for path, expected in episode.observation.items():
        stored = columns[f"observation/{path}"]
        assert len(stored) == 4
        assert_equal_columns(stored[:3], expected)
        assert np.array_equal(stored[3], episode.final_observation[path])
    over = end == "terminated"
    assert np.array_equal(columns["is_last"], [False, False, False, True])
    assert np.array_equal(columns["is_terminal"], [False, False, False, over])
    # The transition that ended the episode has discount 0; the step after it has no transition.
    assert np.array_equal(columns["discount"], [1, 1, 0 if over else 1, 0])
    assert np.array_equal(columns["reward"], [*episode.reward, 0])
    command, times = columns["action/arm/command"], columns["timestamp_ns"]
    assert isinstance(command, np.ndarray) and isinstance(times, np.ndarray)
    assert np.array_equal(command[3], [0, 0])
    assert np.array_equal(np.diff(times), [PERIOD_NS] * 3)


def test_rlds_without_a_final_observation_invents_no_step() -> None:
    episode = make_episode(steps=3)
    columns = episode_columns(episode, "rlds")
    assert_equal_columns(columns["observation/state"], episode.observation["state"])
    is_last = columns["is_last"]
    assert isinstance(is_last, np.ndarray)
    assert valid_transitions(is_last, "rlds").tolist() == [True, True, False]
    assert valid_transitions(is_last, "oxe").tolist() == [True, True, True]
