"""Weights in fewer bits: how far a weight may move, what is left alone, and that NumPy and JAX read the same."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from brain_service.errors import InvalidError
from brain_service.export.policy import flat_params
from brain_service.export.quantise import SCALE, dequantise, quantise
from tests.export.models import source

# Normal halves or zero: below them half precision loses digits, as it must.
WEIGHTS = arrays(
    np.float32,
    st.tuples(st.integers(1, 9), st.integers(1, 5)),
    elements=st.one_of(st.just(0.0), st.floats(2.0**-14, 6e4, width=32), st.floats(-6e4, -(2.0**-14), width=32)),
)


@given(WEIGHTS)
def test_int8_moves_a_weight_by_at_most_half_a_step_of_its_own_output(weights: np.ndarray[Any, Any]) -> None:
    stored = quantise({"a/kernel": weights}, "int8")
    assert list(stored) == ["a/kernel", "a/kernel" + SCALE]
    assert stored["a/kernel"].dtype == np.int8 and stored["a/kernel" + SCALE].shape == (weights.shape[1],)
    again = dequantise(stored)
    assert list(again) == ["a/kernel"] and again["a/kernel"].dtype == np.float32
    half_step = np.abs(weights).max(axis=0) / 127 / 2
    assert (np.abs(again["a/kernel"] - weights) <= half_step * 1.001).all()
    assert (again["a/kernel"][weights == 0] == 0).all()


@given(WEIGHTS)
def test_fp16_moves_a_weight_by_at_most_its_own_last_digit(weights: np.ndarray[Any, Any]) -> None:
    stored = quantise({"a/kernel": weights}, "fp16")
    assert {name: array.dtype for name, array in stored.items()} == {"a/kernel": np.float16}
    again = dequantise(stored)["a/kernel"]
    assert again.dtype == np.float32
    assert (np.abs(again - weights) <= np.abs(weights) * 2.0**-11).all()


@pytest.mark.parametrize("quantisation", ["fp16", "int8"])
def test_only_matrices_of_weights_are_stored_in_fewer_bits(quantisation: str) -> None:
    params = flat_params(source().params)
    stored = quantise(params, quantisation)
    kept = {name for name, array in stored.items() if array.dtype == np.float32 and not name.endswith(SCALE)}
    assert kept == {name for name in params if not name.endswith("/kernel")}
    assert {"wave/rate", "cell/memory/initial_keys", "heads/out/bias"} <= kept
    assert all(stored[name] is params[name] for name in kept)
    again = dequantise(stored)
    assert list(again) == list(params)
    assert {name: array.shape for name, array in again.items()} == {n: array.shape for n, array in params.items()}


@pytest.mark.parametrize("quantisation", ["none", "fp16", "int8"])
def test_numpy_and_jax_read_the_same_weights(quantisation: str) -> None:
    stored = quantise(flat_params(source().params), quantisation)
    ours, theirs = dequantise(stored), dequantise({name: jnp.asarray(array) for name, array in stored.items()})
    for name, array in ours.items():
        np.testing.assert_array_equal(array, theirs[name])


def test_what_was_not_quantised_is_as_it_was() -> None:
    params = flat_params(source().params)
    stored = quantise(params, "none")
    assert stored == params and dequantise(stored) == params


def test_a_weight_beyond_half_precision_is_named() -> None:
    weights = np.full((2, 2), 7e4, np.float32)
    with pytest.raises(InvalidError, match=r"drive/kernel reaches 7.0e\+04.*use int8 or none") as refused:
        quantise({"drive/kernel": weights}, "fp16")
    assert refused.value.field == "quantization"
    assert quantise({"drive/kernel": weights}, "int8")["drive/kernel"].tolist() == [[127, 127], [127, 127]]


def test_an_unknown_quantisation_is_refused_with_the_known_ones() -> None:
    with pytest.raises(InvalidError, match="'int4' is not known; use one of none, fp16, int8"):
        quantise({}, "int4")
