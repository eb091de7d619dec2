"""Recorded steps computed again: bit for bit as answered, the first that differs named, nothing guessed."""

import asyncio
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from brain_service.errors import CorruptDataError, InvalidError, NotFoundError
from brain_service.inference import InferReply
from brain_service.inference.replay import RecordedStep, ReplayedStep, replay_steps
from tests.inference.conftest import Toys
from tests.inference.harness import ask, run, serving
from tests.inference.toy import Floats, Reference, as_tree, build_toy, toy_observation


def recorded(index: int, observation: Floats, reply: InferReply, reward: float | None) -> RecordedStep:
    action = {name: value.tolist() for name, value in reply.action.items()}
    return RecordedStep(
        step_index=index,
        observation=as_tree(observation),
        action=action,
        reward=reward,
        model_id=reply.model_id,
        backend=reply.backend,
        state_step=reply.state_step,
        bucket=reply.bucket,
        row=reply.row,
    )


@pytest.fixture(scope="module")
def lived(built: Toys, tmp_path_factory: pytest.TempPathFactory) -> list[RecordedStep]:
    """Twelve steps of one session: six on the first model, a reset, six on the second."""
    steps: list[RecordedStep] = []
    models_dir = tmp_path_factory.mktemp("lived") / "models"
    shutil.copytree(built.models_dir, models_dir)

    async def scenario() -> None:
        async with serving(models_dir, built.cache_dir, built.first) as router:
            session_id = (await router.create_session()).session_id
            rng = np.random.default_rng(1)
            reward = 0.0
            for index in range(12):
                if index == 6:
                    await router.activate(built.second)
                    await router.reset_session(session_id)
                observation = toy_observation(rng)
                reply = await ask(router, session_id, observation, reward=reward)
                # What follows this action is told with the next request, and stands in this step's record.
                reward = float(np.float32(rng.uniform(-1, 1)))
                steps.append(recorded(index, observation, reply, reward))

    run(scenario())
    return steps


def replayed(toys: Toys, steps: Sequence[RecordedStep], backend: str | None = None) -> list[ReplayedStep]:
    async def all_steps() -> list[ReplayedStep]:
        return [step async for step in replay_steps(steps, toys.models_dir, toys.cache_dir, backend)]

    return asyncio.run(all_steps())


def test_every_action_is_the_same_bit_for_bit_over_a_reset_and_a_swap(
    toys: Toys, lived: list[RecordedStep]
) -> None:
    found = replayed(toys, lived)
    assert [step.outcome for step in found] == ["equal"] * 12
    assert {step.model_id for step in found} == {toys.first, toys.second}
    assert all(step.difference == 0.0 and step.bound == 0.0 for step in found)


def test_an_input_that_was_changed_shows_at_the_first_action_it_reached(
    toys: Toys, lived: list[RecordedStep]
) -> None:
    # The reward of step 2 goes into step 3.
    told = lived[2].reward
    assert told is not None
    changed = [replace(step, reward=told + 0.5) if step.step_index == 2 else step for step in lived]
    found = replayed(toys, changed)
    first = next(step for step in found if step.outcome == "differs")
    assert first.step_index == 3
    assert first.difference == pytest.approx(0.01 * 0.5 / 10.0, rel=1e-3)  # a share of the range -5 to 5
    assert [step.outcome for step in found[6:]] == ["equal"] * 6, "a reset forgets it"


def test_what_follows_a_missing_step_is_not_guessed(toys: Toys, lived: list[RecordedStep]) -> None:
    found = replayed(toys, [step for step in lived if step.step_index not in (0, 8)])
    outcomes = {step.step_index: step.outcome for step in found}
    assert outcomes == {
        **dict.fromkeys([1, 2, 3, 4, 5], "skipped"),
        **dict.fromkeys([6, 7], "equal"),
        **dict.fromkeys([9, 10, 11], "skipped"),
    }
    assert "middle of a session" in (found[0].reason or "")
    assert "between state step 1 and 3" in (found[-1].reason or "")


def test_a_session_rebuilt_on_another_model_is_rebuilt_from_as_many_inputs(
    toys: Toys, lived: list[RecordedStep]
) -> None:
    """The router's way: the last three inputs go through the new model, then its own steps follow."""
    reference, steps = Reference(2.0), list(lived[:4])
    for step in steps[1:]:
        observation = np.array([*step.observation["arm"]["joints"], step.observation["load"]], np.float32)
        reference.step(observation, steps[step.step_index - 1].reward)
        reference.previous = np.array([step.action["gripper"], *step.action["velocity"]], np.float32)
    observation = np.array([0.25, -0.5, 0.0], np.float32)
    action = reference.step(observation, steps[-1].reward)[0]
    moved = replace(
        steps[-1],
        step_index=4,
        observation=as_tree(observation),
        action={"gripper": float(action[0]), "velocity": [float(action[1])]},
        model_id=toys.second,
        state_step=3,
    )
    found = replayed(toys, [*steps, moved])
    assert [step.outcome for step in found[:4]] == ["equal"] * 4
    assert found[4].outcome in ("equal", "within") and "rebuilt" in (found[4].reason or "")
    gone = replayed(toys, [*steps[2:], moved])
    assert [step.outcome for step in gone] == ["skipped"] * 3
    assert "rebuilt from are not all recorded" in (gone[-1].reason or "")


def test_what_cannot_be_replayed_is_refused_with_the_reason(
    toys: Toys, lived: list[RecordedStep], tmp_path: Path
) -> None:
    with pytest.raises(InvalidError, match="jax-cpu"):
        replayed(toys, lived, backend="abacus")
    with pytest.raises(NotFoundError):
        replayed(replace(toys, models_dir=tmp_path), lived)
    with pytest.raises(CorruptDataError, match="step 0 is none of model"):
        replayed(toys, [replace(lived[0], observation={"load": 1.0})])


def test_a_record_is_read_and_a_damaged_one_refused(lived: list[RecordedStep]) -> None:
    policy = {"model_id": "m", "backend": "jax-cpu", "state_step": 3}
    record = {"observation": {}, "action": {}, "reward": 0.5, "step_metadata": {"step_index": 7, "policy": policy}}
    step = RecordedStep.of(record)
    assert step is not None and (step.step_index, step.state_step, step.bucket, step.row) == (7, 3, 1, 0)
    assert RecordedStep.of(record | {"step_metadata": {"step_index": 7}}) is None
    for bad in ({"state_step": -1}, {"state_step": "3"}, {"model_id": None}, {"bucket": 1.5}):
        damaged = record | {"step_metadata": {"step_index": 7, "policy": policy | bad}}
        with pytest.raises(CorruptDataError, match="step 7"):
            RecordedStep.of(damaged)


def test_a_reward_that_nobody_tells_reads_as_the_mean_of_the_training(toys: Toys, tmp_path: Path) -> None:
    usual, told = 4.0, (None, 0.0, None, 1.5)
    models_dir, steps = tmp_path / "models", list[RecordedStep]()
    model = build_toy(models_dir, usual_reward=usual)

    async def scenario() -> None:
        async with serving(models_dir, toys.cache_dir, model) as router:
            session_id = (await router.create_session()).session_id
            rng, reference = np.random.default_rng(2), Reference()
            for index, reward in enumerate(told):
                observation = toy_observation(rng)
                reply = await ask(router, session_id, observation, reward=reward)
                expected = reference.step(observation, usual if reward is None else reward)[0]
                answered = np.concatenate([np.ravel(part) for part in reply.action.values()])
                assert answered == pytest.approx(expected, abs=1e-5)
                following = told[index + 1] if index + 1 < len(told) else None
                steps.append(recorded(index, observation, reply, following))

    run(scenario())
    found = replayed(replace(toys, models_dir=models_dir), steps)
    assert [step.outcome for step in found] == ["equal"] * len(told)
