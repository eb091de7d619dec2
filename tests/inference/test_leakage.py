"""The law of sessions: each answers as if it were alone, whatever thousands of others do in between."""

import asyncio
from collections import Counter

import numpy as np

from brain_service.errors import BrainError, ConflictError, DeadlineExceededError
from brain_service.inference import InferenceRouter
from tests.inference.conftest import Toys
from tests.inference.harness import ask, run, serving
from tests.inference.toy import Reference, toy_observation

SESSIONS = 2000
AT_ONCE = 100


async def live(router: InferenceRouter, seed: int, seen: Counter[str]) -> None:
    """One session's life, drawn from its seed, each answer held against the model run alone."""
    rng = np.random.default_rng(seed)
    session_id, reference, step = (await router.create_session()).session_id, Reference(), 0
    last = None
    while True:
        deed = rng.choice(["step", "step", "step", "repeat", "reset", "late", "gap", "end"])
        seen[deed] += 1
        observation, reward = toy_observation(rng), float(rng.uniform(-1, 1))
        if deed == "step":
            last = await ask(router, session_id, observation, step=step, reward=reward)
            np.testing.assert_allclose(last.chunk, reference.step(observation, reward), rtol=0, atol=1e-5)
            assert last.state_step == step
            step += 1
        elif deed == "repeat" and last is not None:
            assert await ask(router, session_id, observation, step=step - 1) is last
        elif deed == "reset":
            await router.reset_session(session_id)
            reference, step, last = Reference(), 0, None
        elif deed in ("late", "gap"):
            # Neither may touch the state, of this session or of another.
            try:
                fields = {"deadline_ms": 1e-3} if deed == "late" else {"step": step + 2}
                await ask(router, session_id, observation, **fields)
                raise AssertionError(f"{deed} was answered")
            except BrainError as error:
                assert isinstance(error, DeadlineExceededError if deed == "late" else ConflictError)
                assert error.members["next_step"] == step
        elif deed == "end":
            await router.end_session(session_id)
            return


def test_thousands_of_interleaved_sessions_answer_as_if_alone(toys: Toys) -> None:
    seen: Counter[str] = Counter()

    async def scenario() -> None:
        async with serving(toys.models_dir, toys.cache_dir, toys.first, max_sessions=AT_ONCE) as router:
            seeds = iter(range(SESSIONS))

            async def robot() -> None:
                for seed in seeds:
                    await live(router, seed, seen)

            await asyncio.gather(*(robot() for _ in range(AT_ONCE)))
            assert router.list_sessions() == []
            assert router.status()["compute_us"]["count"] == seen["step"]

    run(scenario())
    assert seen["end"] == SESSIONS and min(seen.values()) > 400
