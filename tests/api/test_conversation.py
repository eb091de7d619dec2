"""A conversation by itself: when messages are stamped, how many wait, and what ends it."""

import asyncio
import time
from collections.abc import Callable, Iterator
from typing import Any

import orjson

from brain_service.api.conversation import Frame, Incoming, converse
from brain_service.api.stream import AUTHORISED, MAX_WAITING_BYTES, MESSAGE_BYTES
from brain_service.errors import BrainError, InvalidError
from tests.api.test_stream_bounds import Message, Wire, drive

MAX_BYTES = 4096


class Party:
    """Answers with what it was sent once `open` is set; `bad` and `broken` it cannot answer."""

    def __init__(self) -> None:
        self.seen: list[Incoming] = []
        self.open = asyncio.Event()

    async def answer(self, message: Incoming) -> Frame:
        self.seen.append(message)
        await self.open.wait()
        if message.body == b"bad":
            raise InvalidError("bad", field="word")
        if message.body == b"broken":
            raise ZeroDivisionError
        return orjson.dumps({"said": message.body.decode()}).decode()

    def refusal(self, message: Incoming, error: BrainError) -> Frame:
        return orjson.dumps(error.problem()).decode()


def texts(*bodies: str) -> Iterator[Message]:
    for body in bodies:
        yield {"type": "websocket.receive", "text": body}


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110 - nothing here could set an event
            await asyncio.sleep(0.001)


def test_a_message_is_stamped_when_it_comes_not_when_its_turn_is() -> None:
    async def use() -> None:
        wire, party = Wire(texts("first", "second")), Party()
        serving = asyncio.create_task(converse({}, wire.receive, wire.send, party, MAX_BYTES))
        await until(lambda: wire.received == 2)
        both_here_ns = time.monotonic_ns()
        party.open.set()
        await until(lambda: len(wire.answers) == 2)
        assert party.seen[1].received_ns <= both_here_ns
        wire.left.set()
        await serving

    drive(use)


def test_what_waits_is_bounded() -> None:
    async def use() -> None:
        wire, party = Wire(texts(*["x" * 1000] * 2_000)), Party()
        serving = asyncio.create_task(converse({}, wire.receive, wire.send, party, MAX_BYTES))
        seen = -1
        while wire.received != seen:
            seen = wire.received
            await asyncio.sleep(0.2)
        assert 100 < wire.received < 2 * MAX_WAITING_BYTES // (1000 + MESSAGE_BYTES)
        party.open.set()
        await until(lambda: len(wire.answers) == 2_000)
        wire.left.set()
        await serving

    drive(use)


def test_one_message_after_another_fails_and_the_next_is_answered() -> None:
    async def use() -> None:
        wire, party = Wire(texts("bad", "broken", "x" * (MAX_BYTES + 1), "good")), Party()
        party.open.set()
        serving = asyncio.create_task(converse({}, wire.receive, wire.send, party, MAX_BYTES))
        await until(lambda: len(wire.answers) == 4)
        assert [one.get("status") for one in wire.answers] == [422, 500, 413, None]
        assert "ZeroDivision" not in str(wire.answers)
        wire.left.set()
        await serving

    drive(use)


def test_a_withdrawn_token_is_told_so_and_no_more() -> None:
    async def use() -> None:
        holds = [True]
        wire, party = Wire(texts("first", "second")), Party()
        scope = {AUTHORISED: lambda: holds[0]}
        serving = asyncio.create_task(converse(scope, wire.receive, wire.send, party, MAX_BYTES))
        await until(lambda: wire.received == 2)
        holds[0] = False
        party.open.set()
        await serving
        assert [one.get("status") for one in wire.answers] == [None, 401]
        assert wire.sent[-1] == {"type": "websocket.close", "code": 4401, "reason": "Unauthorized"}
        assert len(party.seen) == 1

    drive(use)


def test_a_client_that_left_has_its_message_answered_and_the_rest_dropped() -> None:
    async def use() -> None:
        wire, party = Wire(texts("first", "second")), Party()
        serving = asyncio.create_task(converse({}, wire.receive, wire.send, party, MAX_BYTES))
        await until(lambda: wire.received == 2)
        wire.left.set()
        await asyncio.sleep(0.05)
        party.open.set()
        await serving
        assert [one.body for one in party.seen] == [b"first"]

    drive(use)


def test_a_client_that_is_gone_when_its_answer_comes_is_no_error() -> None:
    async def use() -> None:
        wire, party = Wire(texts("first")), Party()
        party.open.set()

        async def send(_: Any) -> None:
            raise OSError("gone")

        await converse({}, wire.receive, send, party, MAX_BYTES)
        assert len(party.seen) == 1

    drive(use)
