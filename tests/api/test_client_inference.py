"""`Session` and `AsyncSession` of the client, on a model that the daemon trained itself."""

import asyncio
import threading
import time
from collections.abc import Iterator
from typing import Literal

import httpx
import numpy as np
import pytest

from brain_service.client import (
    AsyncBrainClient,
    BrainClient,
    ConflictError,
    NotFoundError,
    RejectedError,
    Session,
    StaleError,
    UnreachableError,
)
from tests.api.conftest import observation
from tests.fakes.proxy import Proxy, running_proxy
from tests.processes import Daemon


@pytest.fixture
def proxy(taught: Daemon) -> Iterator[Proxy]:
    with running_proxy(taught.port) as running:
        yield running


@pytest.fixture(params=["post", "stream"])
def session(proxy: Proxy, request: pytest.FixtureRequest) -> Iterator[Session]:
    url = f"http://127.0.0.1:{proxy.port}"
    with BrainClient(url, timeout_s=1) as client, client.start_session(transport=request.param) as found:
        yield found


def drive(session: Session, steps: range) -> list[list[float]]:
    actions = [session.infer(observation(step), 0.1, deadline_ms=5000) for step in steps]
    assert [action.step for action in actions] == list(steps)
    return [list(action.action["command"]) for action in actions]


def test_actions_come_back_as_arrays_with_their_origin(session: Session) -> None:
    action = session.infer(observation(0), deadline_ms=5000)
    assert action.action["command"].dtype == np.float32
    assert action.action["command"].shape == (2,)
    assert (action.step, action.model_id) == (0, session.model_id)
    assert {"queue", "compute", "total"} <= action.timings_us.keys()
    assert session.next_step == 1
    assert session.session_id in repr(session)


def test_a_reset_begins_anew(session: Session) -> None:
    first = drive(session, range(4))
    session.reset()
    assert drive(session, range(4)) == first


def test_a_cut_connection_is_no_lost_step(session: Session, proxy: Proxy) -> None:
    expected = drive(session, range(6))
    session.reset()
    actions = drive(session, range(3))
    proxy.drop()
    time.sleep(0.05)
    assert actions + drive(session, range(3, 6)) == expected


def test_a_lost_answer_is_never_taken_for_that_of_a_newer_observation(session: Session, proxy: Proxy) -> None:
    expected = drive(session, range(5))
    session.reset()
    drive(session, range(2))
    proxy.swallow = True
    with pytest.raises(StaleError):
        session.infer(observation(2), 0.1, deadline_ms=300)
    proxy.drop()
    proxy.swallow = False
    # The daemon took step 2; its answer is gone, and what is seen now is step 3.
    assert drive(session, range(3, 5)) == expected[3:]


def test_without_a_deadline_silence_is_unreachable(session: Session, proxy: Proxy) -> None:
    session.infer(observation(0))
    proxy.swallow = True
    with pytest.raises(UnreachableError):
        session.infer(observation(1))
    proxy.drop()
    proxy.swallow = False
    assert session.infer(observation(2)).step == 2


def test_an_answer_after_the_deadline_is_dropped(session: Session, proxy: Proxy) -> None:
    drive(session, range(1))
    proxy.delay_s = 0.4
    with pytest.raises(StaleError, match="50 ms"):
        session.infer(observation(1), deadline_ms=50)
    proxy.delay_s = 0.0
    time.sleep(0.5)
    assert session.infer(observation(2), deadline_ms=5000).step == 2


def test_the_daemons_own_deadline_comes_with_the_next_step(taught: Daemon) -> None:
    with BrainClient(taught.url) as client, client.start_session() as session:
        session.infer(observation(0), deadline_ms=5000)
        with pytest.raises(StaleError):
            session.infer(observation(1), deadline_ms=0.01)
        assert session.infer(observation(1), deadline_ms=5000).step == 1


def test_a_wrong_observation_names_its_field_and_moves_nothing(session: Session) -> None:
    with pytest.raises(RejectedError) as raised:
        session.infer({"arm": {"joints": [1.0, 2.0]}, "holding": True})
    assert raised.value.field == "observation/arm/joints"
    assert session.next_step == 0
    assert session.infer(observation(0)).step == 0


def test_a_lost_session_is_an_error_not_a_zero_state(taught: Daemon) -> None:
    with BrainClient(taught.url) as client:
        session = client.start_session()
        session.infer(observation(0))
        httpx.delete(f"{taught.url}/sessions/{session.session_id}").raise_for_status()
        with pytest.raises((ConflictError, NotFoundError)):
            session.infer(observation(1))
        session.end()


def test_the_daemon_records_what_its_policy_did(taught: Daemon) -> None:
    with BrainClient(taught.url) as client, client.start_session() as session:
        episode_id = httpx.post(f"{taught.url}/episodes", json={}).json()["episode_id"]
        for step in range(3):
            session.infer(observation(step), executed_action={"command": np.zeros(2)}, record=episode_id)
        httpx.post(f"{taught.url}/episodes/{episode_id}/end", json={}).raise_for_status()
        roles = [record["step_metadata"]["control_role"] for record in client.steps(episode_id)]
        assert roles == ["policy"] * 3


@pytest.mark.parametrize("transport", ["post", "stream"])
def test_the_async_session_is_the_same(taught: Daemon, transport: Literal["post", "stream"]) -> None:
    async def act() -> list[list[float]]:
        async with (
            AsyncBrainClient(taught.url) as client,
            await client.start_session(transport=transport) as session,
        ):
            found = []
            for step in range(4):
                answer = await session.infer(observation(step), 0.1, deadline_ms=5000)
                assert (answer.step, session.next_step, answer.model_id) == (step, step + 1, session.model_id)
                found.append(list(answer.action["command"]))
            await session.reset()
            again = await session.infer(observation(0), 0.1, deadline_ms=5000)
            assert list(again.action["command"]) == found[0]
            assert session.session_id in repr(session)
            return found

    with BrainClient(taught.url) as client, client.start_session() as session:
        assert asyncio.run(act()) == drive(session, range(4))


def test_one_client_serves_many_threads(taught: Daemon) -> None:
    answers: dict[int, list[list[float]]] = {}
    with BrainClient(taught.url) as client:

        def robot(number: int) -> None:
            with client.start_session() as session:
                answers[number] = drive(session, range(10))

        threads = [threading.Thread(target=robot, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(answers) == 4
    assert all(np.allclose(found, answers[0], atol=1e-6) for found in answers.values())
