"""The floor under every HTTP figure: FastAPI on the same uvicorn, reading the body raw and doing nothing.

    python -m tests.bench.floor PORT UNIX_SOCKET

Over WebSocket it answers each message with an acknowledgement as long as ours.
"""

import asyncio
import socket
import sys

import uvicorn
import uvloop
from fastapi import FastAPI, Request, WebSocket
from starlette.responses import Response

app = FastAPI()


@app.post("/")
async def nothing(request: Request) -> Response:
    """Read the body and answer with a constant."""
    await request.body()
    return Response(b"{}", media_type="application/json")


@app.websocket("/ws")
async def acknowledge(websocket: WebSocket) -> None:
    """Answer every message with a constant."""
    await websocket.accept()
    while True:
        message = await websocket.receive()
        if message["type"] == "websocket.disconnect":
            return
        await websocket.send_text('{"step_index":100000,"durable_through":100000}')


async def _serve(port: int, path: str) -> None:
    sockets = [socket.create_server(("127.0.0.1", port)), socket.socket(socket.AF_UNIX)]
    sockets[1].bind(path)
    config = uvicorn.Config(
        app,
        http="httptools",
        ws="websockets-sansio",
        ws_per_message_deflate=False,
        access_log=False,
        log_level="warning",
    )
    await uvicorn.Server(config).serve(sockets=sockets)


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(int(sys.argv[1]), sys.argv[2]))
