"""Live sessions over a restart: saved whole, restored only where their state still means something."""

import asyncio
import json
from pathlib import Path

import numpy as np
import pytest

from brain_service.errors import ConflictError, NotFoundError, UnavailableError
from brain_service.inference.snapshot import FILE
from tests.inference.conftest import Toys
from tests.inference.harness import ask, eventually, refused, run, serving
from tests.inference.toy import Reference, toy_observation


def observations(count: int) -> list[np.ndarray[tuple[int, ...], np.dtype[np.float32]]]:
    rng = np.random.default_rng(7)
    return [toy_observation(rng) for _ in range(count)]


def test_sessions_go_on_after_a_graceful_restart(toys: Toys, tmp_path: Path) -> None:
    sessions_dir = tmp_path / "sessions"
    asked = observations(12)

    async def scenario() -> None:
        reference, expected = Reference(), []
        async with serving(
            toys.models_dir, toys.cache_dir, toys.first, sessions_dir=sessions_dir, on_swap="replay"
        ) as router:
            lived = (await router.create_session()).session_id
            fresh = (await router.create_session()).session_id
            for step, observation in enumerate(asked[:6]):
                last = await ask(router, lived, observation, step=step)
                expected.append(reference.step(observation))
        async with serving(toys.models_dir, toys.cache_dir, sessions_dir=sessions_dir, on_swap="replay") as router:
            # While the model loads nobody is told that the session is gone.
            error = await refused(router, lived, asked[6], step=6)
            assert isinstance(error, UnavailableError) and "being restored" in error.detail
            await eventually(lambda: len(router.list_sessions()) == 2)
            # From here on a kill must not bring this state back a second time.
            assert not (sessions_dir / FILE).exists()
            again = await ask(router, lived, asked[0], step=5)
            np.testing.assert_array_equal(again.chunk, last.chunk)
            assert (again.step, again.model_id, again.timings_us) == (last.step, last.model_id, last.timings_us)
            assert json.dumps(again.action, default=np.ndarray.tolist) == json.dumps(
                last.action, default=np.ndarray.tolist
            )
            for step, observation in enumerate(asked[6:9], start=6):
                reply = await ask(router, lived, observation, step=step)
                np.testing.assert_allclose(reply.chunk, reference.step(observation), atol=1e-6)
            reply = await ask(router, fresh, asked[0], step=0)
            np.testing.assert_allclose(reply.chunk, Reference().step(asked[0]), atol=1e-6)
            # Its inputs came along: it can still be rebuilt on another model.
            await router.activate(toys.second)
            await eventually(lambda: router.get_session(lived).model_id == toys.second)
            assert router.get_session(lived).state_steps == 9

    run(scenario())


def test_what_does_not_come_back_is_told_why(toys: Toys, tmp_path: Path) -> None:
    sessions_dir = tmp_path / "sessions"
    file = sessions_dir / FILE

    async def scenario() -> None:
        async with serving(toys.models_dir, toys.cache_dir, toys.first, sessions_dir=sessions_dir) as router:
            other = (await router.create_session()).session_id
            await ask(router, other, observations(1)[0])
            await router.activate(toys.second)
            damaged, old, whole = [(await router.create_session()).session_id for _ in range(3)]
            for session_id in (damaged, old, whole):
                await ask(router, session_id, observations(1)[0])
            router._sessions.get(old).used_s -= 250.0
        lines = file.read_bytes().splitlines(keepends=True)
        assert len(lines) == 4
        flipped = bytearray(lines[1])
        flipped[len(flipped) // 2] ^= 0x01
        file.write_bytes(b"".join([lines[0], bytes(flipped), *lines[2:]]))
        async with serving(
            toys.models_dir, toys.cache_dir, sessions_dir=sessions_dir, session_idle_s=200.0
        ) as router:
            await eventually(lambda: router.ready and bool(router.list_sessions()))
            assert [info.session_id for info in router.list_sessions()] == [whole]
            why = {
                session_id: (await refused(router, session_id, observations(1)[0])).detail
                for session_id in (other, damaged, old)
            }
            assert f"its model was {toys.first}" in why[other]
            assert "without a step" in why[old]
            assert "no session" in why[damaged]
            with pytest.raises(NotFoundError, match="not restored"):
                router.get_session(other)
            status = router.status()["restored_sessions"]
            assert status["restored"] == 1 and len(status["lost"]) == 3
            assert any("line 2: the checksum does not hold" in problem for problem in status["lost"])

    run(scenario())


def test_a_stop_before_the_sessions_were_restored_keeps_them(toys: Toys, tmp_path: Path) -> None:
    sessions_dir = tmp_path / "sessions"

    async def scenario() -> None:
        async with serving(toys.models_dir, toys.cache_dir, toys.first, sessions_dir=sessions_dir) as router:
            session_id = (await router.create_session()).session_id
        written = (sessions_dir / FILE).read_bytes()
        async with serving(toys.models_dir, toys.cache_dir, sessions_dir=sessions_dir) as router:
            await eventually(lambda: router.status()["state"] == "loading")
        assert (sessions_dir / FILE).read_bytes() == written
        async with serving(toys.models_dir, toys.cache_dir, sessions_dir=sessions_dir) as router:
            await eventually(lambda: bool(router.list_sessions()))
            assert router.get_session(session_id).next_step == 0

    run(scenario())


def test_a_snapshot_that_cannot_be_written_or_read_is_no_failure(toys: Toys, tmp_path: Path) -> None:
    sessions_dir = tmp_path / "sessions"
    sessions_dir.write_text("a file in the place of the folder")

    async def scenario() -> None:
        async with serving(toys.models_dir, toys.cache_dir, toys.first, sessions_dir=sessions_dir) as router:
            session_id = (await router.create_session()).session_id
            await ask(router, session_id, observations(1)[0])
        async with serving(toys.models_dir, toys.cache_dir, sessions_dir=sessions_dir) as router:
            await eventually(lambda: router.ready and router._sessions.restoring is None)
            error = await refused(router, session_id, observations(1)[0])
            assert isinstance(error, ConflictError) and "no session" in error.detail

    asyncio.run(scenario())
