"""The tasks are what they say: experts that succeed, labels that are theirs, nothing that leaks."""

from dataclasses import replace

import numpy as np
import pytest

from tests.bench.learning.drive import drive_expert, drive_random
from tests.bench.learning.fit import normaliser_of, sequences_of
from tests.bench.learning.tasks import TASKS, Demonstrations

COUNTS = {"repeat-first": 2, "repeat-previous": 4, "pendulum": 4, "reach": 2}


@pytest.fixture(scope="module")
def collected() -> dict[str, Demonstrations]:
    return {name: TASKS[name].collect(0, count) for name, count in COUNTS.items()}


def test_the_labels_of_the_card_games_are_the_cards_that_were_dealt(collected: dict[str, Demonstrations]) -> None:
    first, previous = collected["repeat-first"], collected["repeat-previous"]
    assert first.observation.shape == (2, 415, 4)
    suits = first.observation.argmax(axis=2)[..., None]
    np.testing.assert_array_equal(first.action, np.broadcast_to(suits[:, :1], first.action.shape))
    assert previous.observation.shape == (4, 103, 4)
    np.testing.assert_array_equal(previous.action[:, 31:, 0], previous.observation[:, :-31].argmax(axis=2))
    assert not previous.imitated[:, :31].any()
    # POPGym pays for these very answers.
    np.testing.assert_allclose(first.reward.sum(axis=1), 1.0, atol=1e-5)
    np.testing.assert_allclose(previous.reward.sum(axis=1), 1.0, atol=1e-5)


@pytest.mark.parametrize(("name", "least", "most"), [("repeat-first", 1.0, -0.3), ("repeat-previous", 1.0, -0.3)])
def test_the_judge_pays_the_expert_in_full_and_a_guesser_less(name: str, least: float, most: float) -> None:
    task = replace(TASKS[name], episodes=4)
    assert drive_expert(task, 0) == pytest.approx([least] * 4, abs=1e-5)
    assert np.mean(drive_random(task, 0)) < most


def test_the_pendulums_expert_swings_up_and_holds() -> None:
    task = replace(TASKS["pendulum"], episodes=8)
    assert np.mean(drive_expert(task, 0)) > 0.8 > 0.5 > np.mean(drive_random(task, 0))


def test_demonstrations_follow_from_their_seed_and_are_not_what_is_judged() -> None:
    task = TASKS["repeat-previous"]
    one, same, other = (task.collect(seed, 1).observation for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, same)
    assert (one != other).any()
    judge = replace(task, episodes=1).judge(0)
    judge.reset()
    judged = [judge.step(judge.expert_action()).observation[0] for _ in range(20)]
    assert (np.asarray(judged) != one[0, 1:21]).any()


def test_a_hidden_goal_is_gone_from_the_tenth_step_on(collected: dict[str, Demonstrations]) -> None:
    plain, hidden = TASKS["reach"].view(collected["reach"]), TASKS["reach-hidden"].view(collected["reach"])
    np.testing.assert_array_equal(hidden.observation[:, :10], plain.observation[:, :10])
    assert not hidden.observation[:, 10:, 36:].any()
    assert plain.observation[:, 10:15, 36:].any()
    np.testing.assert_array_equal(hidden.observation[..., :36], plain.observation[..., :36])
    # The frame before would tell where the arm is heading.
    assert not plain.observation[..., 18:36].any()
    arm = TASKS["reach-hidden"].judge(0)
    seen = [arm.reset(), *(arm.step(np.zeros((1, 4), np.float32)).observation for _ in range(11))]
    assert [bool(row[0, 36:39].any()) for row in seen] == [True] * 10 + [False] * 2


@pytest.mark.parametrize("name", COUNTS)
def test_a_step_never_sees_its_own_answer(name: str, collected: dict[str, Demonstrations]) -> None:
    task, demonstrations = TASKS[name], collected[name]
    normaliser = normaliser_of(task, demonstrations)
    sequences = sequences_of(task, demonstrations, normaliser)
    # Another action and reward at the last step changes nothing that the model is given.
    action, reward = demonstrations.action.copy(), demonstrations.reward.copy()
    action[:, -1], reward[:, -1] = 9.0, 9.0
    changed = sequences_of(task, demonstrations._replace(action=action, reward=reward), normaliser)
    for seen, other in zip(sequences.inputs[:4], changed.inputs[:4], strict=True):
        np.testing.assert_array_equal(seen, other)
    assert (sequences.action != changed.action).any()
    past = np.asarray(sequences.inputs.previous_action)
    if task.sees_past:
        np.testing.assert_array_equal(past[:, 1:], sequences.action[:, :-1])
    else:
        assert not past.any()
