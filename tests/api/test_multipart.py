"""Forms of steps and images: what httpx sends is read, everything else is named."""

import asyncio
from typing import Any

import httpx
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from brain_service.api.multipart import MAX_PARTS, parse_multipart
from brain_service.errors import BrainError, InvalidError, MalformedError, TooLargeError
from tests.pictures import picture

STEP = {"observation": {"arm": {"joints": [0.5, 1]}}, "action": {"command": [0.1]}, "step_index": 3}


def form(*parts: tuple[str, bytes | str]) -> tuple[str, bytes]:
    """Return content type and body of a form as httpx writes it; text becomes a plain field."""
    files = [(name, ("", data) if isinstance(data, bytes) else (None, data)) for name, data in parts]
    request = httpx.Request("POST", "http://robot/steps", files=files)
    return request.headers["content-type"], request.read()


def parsed(*parts: tuple[str, bytes | str]) -> Any:
    return msgspec.msgpack.decode(asyncio.run(parse_multipart(*form(*parts))))


def text(document: Any) -> str:
    return msgspec.json.encode(document).decode()


def test_a_step_and_its_images_become_one_body() -> None:
    body = parsed(
        ("observation/camera", picture(1)), ("step", text(STEP)), ("observation/arm/wrist", picture(2, "jpeg"))
    )
    assert body == {
        **STEP,
        "observation": {"arm": {"joints": [0.5, 1]}, "camera": picture(1), "arm/wrist": picture(2, "jpeg")},
    }


def test_a_batch_and_its_images_become_one_body() -> None:
    images = [(f"steps/{n}/observation/camera", picture(n)) for n in range(3)]
    body = parsed(("steps", text([{"action": {}}, STEP, STEP])), *images)
    assert [step["observation"]["camera"] for step in body] == [picture(n) for n in range(3)]
    assert body[0] == {"action": {}, "observation": {"camera": picture(0)}}


@given(st.binary(max_size=3000), st.binary(max_size=300))
def test_any_bytes_survive_the_form(first: bytes, second: bytes) -> None:
    body = parsed(("step", "{}"), ("observation/a", first), ("observation/b", second))
    assert body == {"observation": {"a": first, "b": second}}


@pytest.mark.parametrize(
    ("parts", "field"),
    [
        ([], "step"),
        ([("observation/camera", b"x")], "step"),
        ([("step", "{}"), ("steps", "[]")], "step"),
        ([("step", "{}"), ("step", "{}")], "step"),
        ([("step", "{}"), ("observation/a", b"x"), ("observation/a", b"y")], "observation/a"),
        ([("step", '{"observation":{"a":1}}'), ("observation/a", b"x")], "observation/a"),
        ([("step", '{"observation":3}'), ("observation/a", b"x")], "observation/a"),
        ([("step", "3"), ("observation/a", b"x")], "observation/a"),
        ([("step", "{}"), ("camera", b"x")], "camera"),
        ([("step", "{}"), ("action/a", b"x")], "action/a"),
        ([("step", "{}"), ("steps/0/observation/a", b"x")], "steps/0/observation/a"),
        ([("steps", "[{}]"), ("observation/a", b"x")], "observation/a"),
        ([("steps", "[{}]"), ("steps/1/observation/a", b"x")], "steps/1/observation/a"),
        ([("steps", "[{}]"), ("steps/-1/observation/a", b"x")], "steps/-1/observation/a"),
        ([("steps", "[{}]"), (f"steps/{'9' * 400}/observation/a", b"x")], f"steps/{'9' * 400}/observation/a"),
        ([("steps", "[{}]"), ("steps/0/observation/", b"x")], "steps/0/observation/"),
        ([("step", '{"reward":' + "9" * 30 + "}")], "step"),
    ],
)
def test_a_part_out_of_place_is_named(parts: list[tuple[str, bytes | str]], field: str) -> None:
    with pytest.raises(InvalidError) as refused:
        parsed(*(parts or [("note", "hello")]))
    assert refused.value.field == field


@pytest.mark.parametrize("document", ["{", "", "NaN", "\ufffe{", "[" * 100_000])
def test_json_that_is_none_is_named(document: str) -> None:
    with pytest.raises(MalformedError) as refused:
        parsed(("step", document))
    assert refused.value.field == "step"


def test_a_cut_anywhere_is_refused() -> None:
    kind, body = form(("step", text(STEP)), ("observation/camera", picture(1)))
    for length in range(len(body) - 2):
        with pytest.raises(BrainError) as refused:
            asyncio.run(parse_multipart(kind, body[:length]))
        assert refused.value.status in (400, 422)


@pytest.mark.parametrize(
    "kind", ["multipart/form-data", "multipart/form-data; boundary=", "multipart/form-data; boundary=b"]
)
def test_a_body_of_no_such_boundary_is_refused(kind: str) -> None:
    with pytest.raises(MalformedError):
        asyncio.run(parse_multipart(kind, b"--a\r\n\r\nx\r\n--a--\r\n"))


def test_a_part_needs_a_name() -> None:
    with pytest.raises(MalformedError, match="part 0 has no name"):
        asyncio.run(parse_multipart("multipart/form-data; boundary=a", b"--a\r\nX-Y: z\r\n\r\nx\r\n--a--\r\n"))


def test_parts_are_bounded() -> None:
    body = b"".join(
        b'--a\r\nContent-Disposition: form-data; name="p%d"\r\n\r\n\r\n' % n for n in range(MAX_PARTS + 1)
    )
    with pytest.raises(TooLargeError):
        asyncio.run(parse_multipart("multipart/form-data; boundary=a", body + b"--a--\r\n"))


@pytest.mark.parametrize("filling", [b"\r" * 2**22, b"\r\n--" * 2**20, b"\r\n--a" * 2**20])
def test_a_filling_that_resembles_boundaries_is_read_as_data(filling: bytes) -> None:
    head = b'--abc\r\nContent-Disposition: form-data; name="step"\r\n\r\n'
    with pytest.raises(MalformedError, match="no JSON"):
        asyncio.run(parse_multipart("multipart/form-data; boundary=abc", head + filling + b"\r\n--abc--\r\n"))
