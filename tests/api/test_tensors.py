"""The tensor codec of the Open Inference Protocol: what is written is read back, and no bytes at all break it."""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from brain_service.api.tensors import DATATYPES, Question, Tensor, read_question, write_answer
from brain_service.errors import BrainError, InvalidError, MalformedError

NAMES = {np.dtype(name): datatype for datatype, name in DATATYPES.items()}
SHAPES = arrays.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5)
TENSORS = st.sampled_from(list(NAMES)).flatmap(lambda dtype: arrays.arrays(dtype, SHAPES))
ELEMENTS = st.lists(st.binary(max_size=20), max_size=5)


def request(inputs: Sequence[tuple[dict[str, Any], bytes | None]], **head: Any) -> tuple[bytes, int]:
    """Return a body and the length of its JSON, written by hand."""
    described = []
    for document, data in inputs:
        extra = {} if data is None else {"parameters": {"binary_data_size": len(data)}}
        described.append(document | extra)
    text = json.dumps({"inputs": described, **head}).encode()
    return b"".join((text, *(data for _, data in inputs if data is not None))), len(text)


def describe(name: str, array: np.ndarray[Any, Any]) -> dict[str, Any]:
    return {"name": name, "datatype": NAMES[array.dtype], "shape": list(array.shape)}


@given(st.lists(TENSORS, min_size=1, max_size=4))
def test_binary_tensors_are_read_bit_for_bit(tensors: list[np.ndarray[Any, Any]]) -> None:
    inputs = [(describe(f"t{n}", array), array.tobytes()) for n, array in enumerate(tensors)]
    body, head_bytes = request(inputs, id="7", parameters={"sequence_id": 3})
    question = read_question(body, head_bytes)
    assert (question.request_id, question.parameters, question.outputs) == ("7", {"sequence_id": 3}, None)
    for number, array in enumerate(tensors):
        found = question.inputs[f"t{number}"].values
        assert isinstance(found, np.ndarray)
        assert (found.dtype, found.shape, found.tobytes()) == (array.dtype, array.shape, array.tobytes())


@given(TENSORS.filter(lambda array: bool(np.isfinite(array).all())), st.booleans())
def test_json_tensors_are_read_flat_or_nested(array: np.ndarray[Any, Any], nested: bool) -> None:
    if array.dtype == np.uint64:
        array = np.minimum(array, 2**63 - 1)
    data = array.tolist() if nested and array.ndim else array.ravel().tolist()
    body, _ = request([(describe("t", array) | {"data": data}, None)])
    if nested and array.ndim > 1 and array.size == 0:
        return  # nothing in a nested list says the sizes behind a 0
    found = read_question(body, None).inputs["t"].values
    assert isinstance(found, np.ndarray)
    assert (found.dtype, found.shape) == (array.dtype, array.shape)
    assert np.array_equal(found, array)


@given(ELEMENTS)
def test_elements_of_bytes_are_read(elements: list[bytes]) -> None:
    data = b"".join(len(one).to_bytes(4, "little") + one for one in elements)
    body, head_bytes = request([({"name": "t", "datatype": "BYTES", "shape": [len(elements)]}, data)])
    assert read_question(body, head_bytes).inputs["t"].values == elements


@given(st.lists(st.tuples(TENSORS.filter(lambda a: bool(np.isfinite(a).all())), st.booleans()), max_size=4))
def test_an_answer_is_read_back_as_a_request_would_be(outputs: list[tuple[np.ndarray[Any, Any], bool]]) -> None:
    tensors = [(Tensor(f"t{n}", NAMES[a.dtype], a.shape, a), binary) for n, (a, binary) in enumerate(outputs)]
    body, head_bytes = write_answer({"model_name": "m"}, tensors)
    assert (head_bytes is None) == (not any(binary for _, binary in outputs))
    length = len(body) if head_bytes is None else head_bytes
    document = json.loads(body[:length])
    offset = length
    assert document["model_name"] == "m"
    for (array, binary), output in zip(outputs, document["outputs"], strict=True):
        assert (output["shape"], output["datatype"]) == (list(array.shape), NAMES[array.dtype])
        if binary:
            size = output["parameters"]["binary_data_size"]
            found = np.frombuffer(body[offset : offset + size], array.dtype)
            offset += size
        else:
            found = np.array(output["data"], array.dtype)
        assert np.array_equal(found, array.ravel())
    assert offset == len(body)


@given(st.binary(max_size=200), st.none() | st.integers(-5, 300))
def test_arbitrary_bytes_are_a_typed_4xx(body: bytes, head_bytes: int | None) -> None:
    assert_refused_or_read(body, head_bytes)


PARAMETERS = st.dictionaries(
    st.sampled_from(["binary_data_size", "shared_memory_region", "x"]),
    st.integers(-10, 60) | st.booleans() | st.text(max_size=3) | st.none(),
    max_size=2,
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4),
    max_leaves=6,
)
INPUT = st.fixed_dictionaries(
    {
        "name": st.sampled_from(["a", "b", ""]),
        "datatype": st.sampled_from([*DATATYPES, "BYTES", "BF16", "fp32"]),
        "shape": st.lists(st.integers(-1, 5) | st.just(2**40), max_size=10),
    },
    optional={"data": JSON, "parameters": PARAMETERS},
)


@given(st.lists(INPUT, max_size=3), st.binary(max_size=80), st.integers(-3, 3))
def test_lying_heads_are_a_typed_4xx(inputs: list[dict[str, Any]], rest: bytes, off: int) -> None:
    text = json.dumps({"inputs": inputs}).encode()
    assert_refused_or_read(text + rest, len(text) + off)


def assert_refused_or_read(body: bytes, head_bytes: int | None) -> None:
    try:
        question = read_question(body, head_bytes)
    except BrainError as error:
        assert 400 <= error.status < 500
        assert error.detail
    else:
        assert isinstance(question, Question)
        for tensor in question.inputs.values():
            count = len(tensor.values) if isinstance(tensor.values, list) else tensor.values.size
            assert count == np.prod(tensor.shape, dtype=object)


FP32 = {"name": "t", "datatype": "FP32", "shape": [2]}


@pytest.mark.parametrize(
    ("document", "data", "says"),
    [
        (FP32, b"1234567", "takes 8 bytes"),
        (FP32 | {"shape": [2**31, 2**31]}, b"12345678", "takes"),
        (FP32 | {"shape": [-1]}, b"", "shape"),
        (FP32 | {"datatype": "BF16"}, b"1234", "BF16"),
        (FP32 | {"data": [1, 2]}, b"12345678", "both"),
        (FP32, None, "neither"),
        (FP32 | {"data": [[1], [2, 3]]}, None, "differ in length"),
        (FP32 | {"data": [[1, 2]]}, None, "shape"),
        (FP32 | {"data": [1, [2]]}, None, "FP32"),
        (FP32 | {"data": [True, 2]}, None, "FP32"),
        (FP32 | {"data": [1]}, None, "shape"),
        (FP32 | {"data": ["1", "2"]}, None, "FP32"),
        (FP32 | {"datatype": "INT8", "data": [1, 128]}, None, "INT8"),
        (FP32 | {"datatype": "UINT8", "data": [0, -1]}, None, "UINT8"),
        (FP32 | {"datatype": "BOOL"}, b"\x00\x02", "0 or 1"),
        (FP32 | {"datatype": "BYTES"}, b"\x05\x00\x00\x00ab", "cut off"),
        (FP32 | {"datatype": "BYTES"}, b"\x01\x00\x00\x00a", "shape"),
        (FP32 | {"parameters": {"shared_memory_region": "r"}}, None, "not supported"),
    ],
)
def test_each_lie_is_named(document: dict[str, Any], data: bytes | None, says: str) -> None:
    body, head_bytes = request([(document, data)])
    with pytest.raises(InvalidError, match=says):
        read_question(body, head_bytes)


def test_bytes_that_nobody_claims_and_twins_are_refused() -> None:
    body, head_bytes = request([(FP32, bytes(8))])
    with pytest.raises(InvalidError, match="claims"):
        read_question(body + b"x", head_bytes)
    with pytest.raises(InvalidError, match="left for it"):
        read_question(body[:-1], head_bytes)
    with pytest.raises(MalformedError, match="the body has"):
        read_question(body, len(body) + 1)
    with pytest.raises(MalformedError, match="Inference-Header-Content-Length"):
        read_question(body, None)
    with pytest.raises(InvalidError, match="twice"):
        read_question(*request([(FP32, bytes(8)), (FP32, bytes(8))]))
