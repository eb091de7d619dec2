"""Steps on the wire: what the client encodes is what the daemon's own parser reads."""

from typing import Any

import httpx
import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from brain_service.client import EncodeError
from brain_service.client.errors import is_passing, response_error
from brain_service.client.wire import as_arrays, decode_object, encode_step, join_steps, renumber, to_json
from tests.episodes.bodies import parse_steps

MSGPACK = "application/msgpack"
ARRAYS = st.tuples(
    st.sampled_from(["<f4", "<f8", "<f2", ">f4", "|b1", "|u1", "<i8", ">i8", "<i2"]),
    st.sampled_from([(), (1,), (3,), (2, 3), (2, 1, 2)]),
    st.integers(0, 2**32 - 1),
)


def make_array(dtype: str, shape: tuple[int, ...], seed: int) -> np.ndarray[Any, np.dtype[Any]]:
    return (np.random.default_rng(seed).uniform(0, 100, shape)).astype(dtype)


def step(index: int, value: Any) -> dict[str, Any]:
    return {"step_index": index, "observation": {"a": {"b": value}, "t": "up"}, "action": {"c": value}}


@given(ARRAYS)
def test_the_daemon_reads_every_array_as_it_was(parameters: tuple[str, tuple[int, ...], int]) -> None:
    value = make_array(*parameters)
    (read,), batch = parse_steps(encode_step(step(7, value)), MSGPACK, 1)
    assert not batch
    assert read.index() == 7
    found = read.observation["a"]["b"]
    assert found.shape == value.shape
    assert found.dtype == (np.float32 if value.dtype.kind == "f" else value.dtype.newbyteorder("<"))
    np.testing.assert_array_equal(found, value.astype(found.dtype))


@given(st.lists(ARRAYS, min_size=1, max_size=40))
def test_joined_steps_are_the_array_of_them(parameters: list[tuple[str, tuple[int, ...], int]]) -> None:
    steps = [step(index, make_array(*each)) for index, each in enumerate(parameters)]
    read, batch = parse_steps(join_steps([encode_step(each) for each in steps]), MSGPACK, 40)
    assert batch == (len(steps) > 1)
    assert [one.index() for one in read] == list(range(len(steps)))


def test_an_encoded_step_is_a_copy() -> None:
    values = np.zeros(3, np.float32)
    encoded = encode_step(step(0, values))
    values[:] = 9
    assert encode_step(step(0, np.zeros(3, np.float32))) == encoded


def test_slices_and_views_travel_by_value() -> None:
    square = np.arange(9, dtype=np.float32).reshape(3, 3)
    (read,), _ = parse_steps(encode_step(step(0, square.T[::2])), MSGPACK, 1)
    np.testing.assert_array_equal(read.action["c"], square.T[::2])


@pytest.mark.parametrize("value", [object(), np.array(["a"]), np.array([None]), 2**70, 1j])
def test_what_has_no_form_is_refused_here(value: Any) -> None:
    with pytest.raises(EncodeError):
        encode_step(step(0, value))


def test_arrays_become_lists_in_json_and_lists_arrays_again() -> None:
    tree = {"x": np.array([0.5, 1.5], np.float32), "y": {"z": np.array([[True]])}, "n": np.int64(3), "t": "up"}
    read = as_arrays(msgspec.json.decode(to_json(tree)))
    assert (read["x"].dtype, read["y"]["z"].dtype, read["n"].dtype, read["t"]) == (
        np.float32,
        np.bool_,
        np.int64,
        "up",
    )
    np.testing.assert_array_equal(read["x"], tree["x"])
    with pytest.raises(EncodeError):
        to_json({"x": object()})


@given(old=st.integers(0, 2**64 - 1), new=st.integers(0, 2**64 - 1))
def test_a_step_under_another_index_is_the_same_step(old: int, new: int) -> None:
    rest = {"observation": {"x": np.arange(3, dtype=np.float32)}, "reward": 0.5}
    assert renumber(encode_step({"step_index": old, **rest}), new) == encode_step({"step_index": new, **rest})


def test_only_a_step_that_begins_with_its_index_gets_another() -> None:
    with pytest.raises(EncodeError, match="begins"):
        renumber(encode_step({"reward": 1, "step_index": 1}), 2)


@pytest.mark.parametrize("body", ['{"detail": "cut', b"\x81\xa1a\xa1\xff", b"\xc1", "[1]", b"\x90"])
def test_an_answer_that_is_no_map_reads_as_an_empty_one(body: bytes | str) -> None:
    assert decode_object(body) == {}


@pytest.mark.parametrize("content", [b'{"detail": "\xff"}', b"<html>\xe9</html>", b"[]", b""])
def test_a_refusal_that_is_no_problem_document_keeps_its_status(content: bytes) -> None:
    error = response_error(httpx.Response(502, content=content))
    assert (error.status, is_passing(error)) == (502, True)
