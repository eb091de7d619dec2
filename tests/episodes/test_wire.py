"""Request bodies: the four forms, and errors that name the member."""

import msgspec
import numpy as np
import pytest

from brain_service.episodes.schema import StepIn
from brain_service.episodes.wire import parse_steps
from brain_service.errors import InvalidError, MalformedError, TooLargeError
from tests.episodes.bodies import JSON, NDJSON, as_json, step


def parse(body: bytes, content_type: str = JSON) -> tuple[list[StepIn], bool]:
    return parse_steps(body, content_type, max_steps=3)


def test_one_step_an_array_and_lines_mean_the_same() -> None:
    bodies = [step(0), step(1)]
    single, batch = parse(as_json(bodies[0]), "application/json; charset=utf-8")
    assert not batch
    array, batch = parse(b" \n" + as_json(bodies))
    assert batch
    lines, batch = parse(b"\n\n".join(map(as_json, bodies)) + b"\n", NDJSON)
    assert batch
    packed, batch = parse(msgspec.msgpack.encode(bodies), "application/msgpack")
    assert batch
    assert array == lines == packed
    assert array[:1] == single


def test_typed_msgpack_arrays_keep_their_dtype() -> None:
    image = np.arange(6, dtype=np.uint8).reshape(2, 3)
    typed = {"__ndarray__": True, "dtype": "|u1", "shape": [2, 3], "data": image.tobytes()}
    body = msgspec.msgpack.encode({"observation": {"cam": {"image": typed}}, "action": {"a": [1]}})
    (only,), batch = parse(body, "application/msgpack")
    assert not batch
    found = only.observation["cam"]["image"]
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, image)


@pytest.mark.parametrize(
    ("body", "content_type", "field"),
    [
        (b'{"observation": {}}', JSON, "action"),
        (b'{"observation": {}, "action": {}, "rewrad": 1}', JSON, "rewrad"),
        (b'{"observation": {}, "action": {}, "reward": "much"}', JSON, "reward"),
        (b'[{"observation": {}, "action": {}}, {"observation": 3, "action": {}}]', JSON, "steps/1/observation"),
        (b'{"observation": {}, "action": {}}\n{"action": {}}', NDJSON, "steps/1/observation"),
        (
            b'{"observation": {}, "action": {}, "step_metadata": {"step_index": "a"}}',
            JSON,
            "step_metadata/step_index",
        ),
        (msgspec.msgpack.encode([{"observation": {}}]), "application/msgpack", "steps/0/action"),
        (b"3", JSON, None),
    ],
)
def test_a_wrong_member_is_named(body: bytes, content_type: str, field: str | None) -> None:
    with pytest.raises(InvalidError) as raised:
        parse(body, content_type)
    assert raised.value.field == field


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (b"", JSON),
        (b"{", JSON),
        (b'{"observation": {"x": NaN}, "action": {}}', JSON),
        (b'{"observation": {"\xff": 1}, "action": {}}', JSON),
        (b'{"observation":' + b'{"a":' * 100_000, JSON),
        (b'{"observation": {}, "action": {}}\n{"obs', NDJSON),
        (b"\xc1", "application/msgpack"),
        (msgspec.msgpack.encode({"observation": {"x": {"__ndarray__": True}}}), "application/msgpack"),
    ],
)
def test_what_cannot_be_parsed_is_malformed(body: bytes, content_type: str) -> None:
    with pytest.raises(MalformedError):
        parse(body, content_type)


def test_a_typed_array_of_objects_is_refused() -> None:
    typed = {"__ndarray__": True, "dtype": "O", "shape": [1], "data": b"\0" * 8}
    with pytest.raises(MalformedError):
        parse(msgspec.msgpack.encode({"observation": {"x": typed}, "action": {}}), "application/msgpack")


def test_a_batch_over_the_limit_is_refused() -> None:
    with pytest.raises(TooLargeError, match="4 steps"):
        parse(as_json([step(i) for i in range(4)]))


def test_a_number_out_of_range_names_its_part() -> None:
    with pytest.raises(InvalidError) as raised:
        parse(b'{"observation": {"s": [1e400]}, "action": {"c": 1}}')
    assert raised.value.field == "observation"
