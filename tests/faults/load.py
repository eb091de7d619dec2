"""Robots that record over HTTP and WebSocket at once, until the daemon dies, and remember what it answered."""

import asyncio
import contextlib
import random
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import orjson
from websockets.asyncio.client import connect, unix_connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake

from tests.faults.judge import Promise
from tests.faults.robots import body

__all__ = ["Heard", "Place", "drive"]

Heard = dict[str, Promise]

_DEAD = (OSError, EOFError, ConnectionClosed, InvalidHandshake, asyncio.IncompleteReadError)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a daemon listens: its port on the loopback interface, and its Unix socket."""

    port: int
    uds: Path


class Connection:
    """One keep-alive HTTP connection, with nothing between its bytes and the answer that counts as heard."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @staticmethod
    async def open(place: Place, unix: bool) -> "Connection":
        """Connect over TCP or the Unix socket."""
        if unix:
            return Connection(*await asyncio.open_unix_connection(str(place.uds)))
        return Connection(*await asyncio.open_connection("127.0.0.1", place.port))

    async def post(self, path: str, content: bytes, kind: str = "application/json") -> dict[str, Any]:
        """Send a request and return the whole answer; an error status is the test's failure."""
        head = f"POST {path} HTTP/1.1\r\nHost: brain\r\nContent-Type: {kind}\r\n"
        self._writer.write(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content)
        answer = (await self._reader.readuntil(b"\r\n\r\n")).decode().lower()
        length = int(answer.partition("content-length:")[2].partition("\r\n")[0])
        document = orjson.loads(await self._reader.readexactly(length))
        assert answer.startswith("http/1.1 2"), (path, answer, document)
        return dict(document)

    def close(self) -> None:
        """Drop it."""
        self._writer.close()


async def _begin(http: Connection, heard: Heard, episode_id: str, **members: Any) -> Promise:
    promise = heard.setdefault(episode_id, Promise())
    await http.post("/episodes", orjson.dumps({"episode_id": episode_id, **members}))
    promise.created = True
    return promise


def _hear(promise: Promise, answer: dict[str, Any]) -> None:
    promise.accepted = max(promise.accepted, int(answer["step_index"]))
    promise.durable = max(promise.durable, int(answer["durable_through"]))


async def _single(place: Place, heard: Heard, name: str, durability: str, unix: bool) -> None:
    http = await Connection.open(place, unix)
    promise = await _begin(http, heard, name, durability=durability)
    while True:
        promise.sent += 1
        _hear(promise, await http.post(f"/episodes/{name}/steps", orjson.dumps(body(name, promise.sent))))


async def _batches(place: Place, heard: Heard, name: str, kind: str) -> None:
    http = await Connection.open(place, unix=False)
    promise = await _begin(http, heard, name)
    while True:
        steps = [body(name, index) for index in range(promise.sent + 1, promise.sent + 21)]
        if kind == "application/msgpack":
            content = msgspec.msgpack.encode(steps)
        else:
            content = b"\n".join(map(orjson.dumps, steps))
        promise.sent += len(steps)
        _hear(promise, await http.post(f"/episodes/{name}/steps", content, kind))


async def _short_lives(place: Place, heard: Heard, name: str) -> None:
    """Episode after episode: begin, three steps, end."""
    http = await Connection.open(place, unix=True)
    for number in range(10**6):
        short = f"{name}.{number}"
        promise = await _begin(http, heard, short)
        for index in range(3):
            promise.sent = index
            _hear(promise, await http.post(f"/episodes/{short}/steps", orjson.dumps(body(short, index))))
        promise.ending = "truncated"
        await http.post(f"/episodes/{short}/end", b'{"reason":"truncated"}')
        promise.ended = "truncated"


async def _stream(place: Place, heard: Heard, name: str, unix: bool) -> None:
    """A WebSocket with up to 200 steps under way."""
    http = await Connection.open(place, unix=False)
    promise = await _begin(http, heard, name)
    http.close()
    url = f"ws://127.0.0.1:{place.port}/episodes/{name}/stream"
    connecting = unix_connect(str(place.uds), url) if unix else connect(url)
    async with connecting as socket:

        async def listen() -> None:
            async for message in socket:
                _hear(promise, orjson.loads(message))

        listening = asyncio.create_task(listen())
        try:
            while not listening.done():
                if promise.sent - promise.accepted < 200:
                    promise.sent += 1
                    await socket.send(orjson.dumps(body(name, promise.sent)).decode())
                else:
                    await asyncio.sleep(0.0005)
            await listening
        finally:
            listening.cancel()


async def drive(place: Place, heard: Heard, rng: random.Random, kill: Callable[[], None], load_s: float) -> None:
    """Let all robots loose, kill the daemon after `load_s` seconds, and return when every robot has noticed."""
    tag = f"{rng.randrange(16**8):08x}"
    robots: list[Coroutine[Any, Any, None]] = [
        _single(place, heard, f"single-{tag}", "interval", unix=True),
        _single(place, heard, f"step-{tag}", "step", unix=False),
        _single(place, heard, f"episode-{tag}", "episode", unix=False),
        _batches(place, heard, f"lines-{tag}", "application/x-ndjson"),
        _batches(place, heard, f"msgpack-{tag}", "application/msgpack"),
        _short_lives(place, heard, f"short-{tag}"),
        _stream(place, heard, f"stream-{tag}", unix=False),
        _stream(place, heard, f"unixstream-{tag}", unix=True),
    ]

    async def until_dead(robot: Coroutine[Any, Any, None]) -> None:
        with contextlib.suppress(*_DEAD):
            await robot

    tasks = [asyncio.create_task(until_dead(robot)) for robot in rng.sample(robots, len(robots))]
    await asyncio.sleep(load_s)
    for task in tasks:
        if task.done():
            task.result()
    await asyncio.to_thread(kill)
    await asyncio.wait_for(asyncio.gather(*tasks), 20)
