"""Request bodies: the four forms, and errors that name the member."""

import contextlib
import tracemalloc

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from brain_service.episodes.schema import StepIn
from brain_service.episodes.wire import plain_bytes
from brain_service.errors import InvalidError, MalformedError, TooLargeError
from tests.episodes.bodies import JSON, NDJSON, as_json, parse_steps, step


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


@pytest.mark.parametrize("dtype", ["f4,(2", "<f4,<f4", "O", "V8", "S3", "object", 4, None, "datetime64[ns]"])
def test_a_dtype_is_one_of_the_known_ones(dtype: object) -> None:
    """NumPy reads a string as a small language: `f4,(2` is a syntax error there, and `O` would be objects."""
    typed = {"__ndarray__": True, "dtype": dtype, "shape": [1], "data": bytes(8)}
    body = msgspec.msgpack.encode({"observation": {"x": typed}, "action": {"a": [1]}})
    with pytest.raises(MalformedError, match="dtype"):
        parse(body, "application/msgpack")


MSGPACK_TREES = st.recursive(
    st.one_of(st.integers(-5, 2**40), st.floats(), st.text(max_size=5), st.binary(max_size=300), st.none()),
    lambda below: st.one_of(st.lists(below, max_size=4), st.dictionaries(st.text(max_size=5), below, max_size=4)),
    max_leaves=15,
)


@settings(max_examples=200, deadline=None)
@given(MSGPACK_TREES)
def test_plain_bytes_are_those_that_become_objects(tree: object) -> None:
    def objects(node: object) -> int:
        if isinstance(node, dict):
            return sum(objects(child) for child in node.values())
        if isinstance(node, list):
            return 1 + sum(objects(child) for child in node)
        return 0 if isinstance(node, bytes) else 1

    packed = msgspec.msgpack.encode(tree)
    found = plain_bytes(packed, 10**6)
    assert objects(tree) <= found <= len(packed)
    if not isinstance(tree, list):
        assert plain_bytes(packed, 3) > 3 or found <= 3


@pytest.mark.parametrize(
    "bomb",
    [
        b"\xdd" + (10**6).to_bytes(4, "big") + b"\x90" * 10**6,
        b"\xdf" + (10**6).to_bytes(4, "big"),
        b"\x81\xa1a" * 10 + b"\xdd" + (10**6).to_bytes(4, "big") + b"\x01" * 10**6,
        b"\x81\xa1a" * 10**5 + b"\x01",
    ],
)
def test_a_value_of_countless_parts_is_known_before_it_is_built(bomb: bytes) -> None:
    body = b"\x82\xabobservation\x81\xa1x" + bomb + b"\xa6action\x81\xa1a\x01"
    tracemalloc.start()
    try:
        with contextlib.suppress(MalformedError):
            assert plain_bytes(body, 50_000) > 50_000
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()
