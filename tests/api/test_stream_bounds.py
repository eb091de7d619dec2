"""A stream by itself on a real store: what it keeps while the medium stalls, and whom it goes on to answer."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from pathlib import Path
from typing import Any

import orjson
import pytest

from brain_service.api.capture import CaptureTransport
from brain_service.api.stream import AUTHORISED, MAX_WAITING_BYTES, MESSAGE_BYTES, serve_stream
from brain_service.episodes.store import EpisodeStore
from brain_service.settings import CaptureSettings
from tests.episodes.bodies import as_json, begin, open_store, step

Message = MutableMapping[str, Any]


class Wire:
    """The server's side of one connection: what the client sends, and what it is sent."""

    def __init__(self, messages: Iterator[Message]) -> None:
        self.received = 0
        self.sent: list[Message] = []
        self._messages = messages
        self.left = asyncio.Event()

    async def receive(self) -> Message:
        await asyncio.sleep(0)
        found = next(self._messages, None)
        if found is None:
            await self.left.wait()
            return {"type": "websocket.disconnect", "code": 1000}
        self.received += 1
        return found

    async def send(self, message: Message) -> None:
        self.sent.append(message)

    @property
    def answers(self) -> list[Any]:
        return [orjson.loads(sent["text"]) for sent in self.sent if sent["type"] == "websocket.send"]


def texts(*bodies: bytes) -> Iterator[Message]:
    yield {"type": "websocket.connect"}
    for body in bodies:
        yield {"type": "websocket.receive", "text": body.decode()}


@contextlib.contextmanager
def stalled(store: EpisodeStore, episode: str) -> Iterator[None]:
    """Hold the episode's writer as a thread does that waits for the medium."""
    writer = store._open.known(episode)
    assert writer is not None
    with writer._lock:
        yield


def drive(use: Callable[[], Awaitable[None]]) -> None:
    async def timed() -> None:
        async with asyncio.timeout(30):
            await use()

    asyncio.run(timed())


@pytest.mark.parametrize("padding", [0, 1000])
def test_a_stalled_medium_closes_the_window(tmp_path: Path, padding: int) -> None:
    """Empty messages count too: they cost memory as others do."""
    with open_store(tmp_path) as store:
        episode = begin(store, 1)
        body = b" " * padding
        bound = 2 * MAX_WAITING_BYTES // (len(body) + MESSAGE_BYTES)

        async def use() -> None:
            wire = Wire(texts(as_json(step(1)), *[body] * 20_000))
            with stalled(store, episode):
                serving = asyncio.create_task(serve_stream(store, episode, {}, wire.receive, wire.send))
                seen = -1
                while wire.received != seen:
                    seen = wire.received
                    await asyncio.sleep(0.2)
                assert 100 < wire.received < bound
            wire.left.set()
            await serving

        drive(use)


def test_a_withdrawn_token_hears_of_no_more_steps(tmp_path: Path) -> None:
    with open_store(tmp_path, sync_interval_s=0.3) as store:
        episode = begin(store)
        holds = [True]

        async def use() -> None:
            wire = Wire(texts(as_json(step(0))))
            scope = {AUTHORISED: lambda: holds[0]}
            serving = asyncio.create_task(serve_stream(store, episode, scope, wire.receive, wire.send))
            while not wire.answers:  # noqa: ASYNC110 - nothing here could set an event
                await asyncio.sleep(0.005)
            holds[0] = False
            while wire.sent[-1]["type"] != "websocket.close":  # noqa: ASYNC110 - the same
                await asyncio.sleep(0.01)
            wire.left.set()
            await serving
            first, last = wire.answers
            assert first == {"step_index": 0, "durable_through": -1}
            assert (last["status"], wire.sent[-1]["code"]) == (401, 4401)

        drive(use)


def test_forms_count_while_they_are_read(tmp_path: Path) -> None:
    """A form is copied as it is read; many at once are refused before they fill the memory."""
    form = b'--x\r\nContent-Disposition: form-data; name="step"\r\n\r\n{"observation":{},"action":{}}\r\n--x\r\n'
    form += (
        b'Content-Disposition: form-data; name="observation/camera"\r\n\r\n' + bytes(400_000) + b"\r\n--x--\r\n"
    )
    with open_store(tmp_path) as store:
        episode = begin(store)
        transport = CaptureTransport(_no_app, store, CaptureSettings(max_queued_bytes=1_000_000))
        statuses: list[int] = []

        async def post() -> None:
            parts: list[Message] = [{"type": "http.request", "body": form, "more_body": False}]

            async def receive() -> Message:
                return parts.pop()

            async def send(message: Message) -> None:
                if "status" in message:
                    statuses.append(message["status"])

            headers = [(b"content-type", b"multipart/form-data; boundary=x")]
            path = f"/episodes/{episode}/steps"
            scope = {"type": "http", "method": "POST", "path": path, "headers": headers}
            await transport(scope, receive, send)

        async def use() -> None:
            await asyncio.gather(*(post() for _ in range(8)))
            assert statuses.count(503) == 6
            statuses.clear()
            await post()
            assert statuses == [422]

        drive(use)


async def _no_app(*_: Any) -> None:
    raise AssertionError("the hot path answers by itself")
