"""What is said of requests that are wrong before any route sees them, and of errors that nobody expected."""

import asyncio

import httpx
import pytest
from fastapi import FastAPI
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect as connect_websocket

from brain_service.api.problems import install_problem_handlers
from tests.api.problems import assert_problem
from tests.api.wire import assert_raw_problem, connect, read_answer, request_bytes
from tests.processes import Daemon


def test_an_error_that_nobody_expected_is_answered_once_and_cuts_no_connection() -> None:
    app = FastAPI()
    install_problem_handlers(app)

    @app.get("/")
    async def fails() -> None:
        raise RuntimeError("a mistake")

    async def ask() -> httpx.Response:
        # What the application raises here is what makes the server close the connection.
        transport = httpx.ASGITransport(app, raise_app_exceptions=True)
        async with httpx.AsyncClient(transport=transport, base_url="http://brain") as http:
            return await http.get("/")

    problem = assert_problem(asyncio.run(ask()), 500)
    assert "a mistake" not in problem["detail"]


def test_a_method_that_is_none_is_named_as_such(daemon: Daemon) -> None:
    with connect(daemon) as connection:
        connection.sendall(request_bytes("/livez", method="BREW"))
        problem = assert_raw_problem(read_answer(connection), 400)
    assert "method" in problem["detail"]
    assert problem["title"] == "Malformed request"


def test_a_websocket_where_there_is_none_is_not_found(daemon: Daemon) -> None:
    with pytest.raises(InvalidStatus) as refused, connect_websocket(f"ws://127.0.0.1:{daemon.port}/stream"):
        pass
    assert refused.value.response.status_code == 404
    assert b"/episodes/{id}/stream" in refused.value.response.body


@pytest.mark.parametrize("path", ["/episodes", "/sessions", "/convert", "/infer"])
def test_a_compressed_body_is_told_to_come_uncompressed(daemon: Daemon, path: str) -> None:
    answer = httpx.post(f"{daemon.url}{path}", content=b"\x1f\x8b", headers={"Content-Encoding": "gzip"})
    assert "uncompressed" in assert_problem(answer, 415)["detail"]
    plain = httpx.post(f"{daemon.url}/episodes", content=b"{}", headers={"Content-Encoding": "identity"})
    assert plain.status_code == 201


def test_a_wrong_idempotency_key_is_told_the_rule_in_words(daemon: Daemon) -> None:
    answer = httpx.post(f"{daemon.url}/episodes", json={}, headers={"Idempotency-Key": "x" * 256})
    problem = assert_problem(answer, 422, field="idempotency-key")
    assert "255 printable" in problem["detail"]
    assert "^" not in problem["detail"]
