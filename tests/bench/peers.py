"""How others serve a policy, on the same bundle: a plain FastAPI endpoint, and openpi's websocket pattern.

    python -m tests.bench.peers HTTP_PORT WEBSOCKET_PORT BUNDLE CACHE

Both run the compiled step on the event loop, for one robot, and check nothing. Over the websocket a message is
msgpack with arrays as bytes, answered in kind; metadata comes first, as openpi's server does.
"""

import asyncio
import contextlib
import sys
import time
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import uvicorn
import uvloop
from fastapi import FastAPI
from pydantic import BaseModel
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosedError

from brain_service.export.bundle import Bundle
from brain_service.inference.arena import Layout
from brain_service.inference.backends.jax import load

app = FastAPI()


class Asked(BaseModel):
    """The body of a plain endpoint."""

    state: list[float]


class Robot:
    """One state, advanced by each call."""

    def __init__(self, bundle: Bundle, cache_dir: Path) -> None:
        layout = Layout.of(bundle.manifest)
        self._policy = load(bundle, layout, cache_dir)
        self._carry = np.zeros((2, 1, layout.carry_size), np.float32)
        self._request = np.zeros((1, layout.request_size), np.float32)
        self._response = np.zeros((1, layout.response_size), np.float32)
        self._slot = 0

    def act(self, state: Any) -> Any:
        """Return the action chunk [H * A] for a flat observation."""
        self._request[0, : len(state)] = state
        self._policy.run(self._carry[self._slot], self._request, self._carry[1 - self._slot], self._response)
        self._slot = 1 - self._slot
        return self._response[0]


ROBOTS: list[Robot] = []


@app.post("/infer")
async def infer(asked: Asked) -> dict[str, Any]:
    """Answer as a first attempt would."""
    return {"action": ROBOTS[0].act(asked.state).tolist()}


async def _openpi(connection: ServerConnection) -> None:
    await connection.send(msgspec.msgpack.encode({"policy": "bench"}))
    with contextlib.suppress(ConnectionClosedError):
        await _answer_all(connection)


async def _answer_all(connection: ServerConnection) -> None:
    async for message in connection:
        begun_s = time.monotonic()
        assert isinstance(message, bytes)
        asked = msgspec.msgpack.decode(message)
        action = ROBOTS[0].act(np.frombuffer(asked["state"], np.float32))
        timing = {"infer_ms": (time.monotonic() - begun_s) * 1e3}
        await connection.send(msgspec.msgpack.encode({"actions": action.tobytes(), "server_timing": timing}))


async def _serve(http_port: int, websocket_port: int) -> None:
    async with serve(_openpi, "127.0.0.1", websocket_port, compression=None, max_size=None):
        config = uvicorn.Config(app, port=http_port, http="httptools", access_log=False, log_level="warning")
        await uvicorn.Server(config).serve()


if __name__ == "__main__":
    ROBOTS.append(Robot(Bundle.open(Path(sys.argv[3])), Path(sys.argv[4])))
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(int(sys.argv[1]), int(sys.argv[2])))
