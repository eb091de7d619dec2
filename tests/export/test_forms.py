"""Quantised and ONNX forms of a real model: smaller, another model, within the cap; and what is refused."""

import dataclasses
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import onnx
import pytest
from jax import export
from safetensors.numpy import load

from brain_service.errors import CorruptDataError, InvalidError, UnavailableError
from brain_service.export import forms, onnx_form
from brain_service.export.bundle import JAX_STEP, ONNX_MODEL, PARAMS, Bundle
from brain_service.export.jax_form import load_step, model_step
from brain_service.export.jax_step import export_policy
from brain_service.export.measure import make_forms, require_parity
from brain_service.export.onnx_graph import OPERATORS, OPSET
from brain_service.export.parity import Inputs, difference, drive, record_reference
from brain_service.export.policy import flat_params, policy_step_of
from brain_service.export.quantise import quantise
from brain_service.export.subject import bundle_subject
from brain_service.model.state import carry_shapes
from tests.export.models import CONFIG, NORMALISER, source

LIMITS = NORMALISER.action_low, NORMALISER.action_high


def test_int8_is_smaller_another_model_and_measured_against_the_float_one(bundle: Bundle, int8: Bundle) -> None:
    theirs, ours = bundle.manifest, int8.manifest
    assert ours.model_id != theirs.model_id and (ours.quantisation, theirs.quantisation) == ("int8", "none")
    assert ours.files[PARAMS].size_bytes < theirs.files[PARAMS].size_bytes
    np.testing.assert_array_equal(int8.golden().action, bundle.golden().action)
    for form in ("jax", "onnx", "switch"):
        assert theirs.parity[form].measured <= theirs.parity[form].bound == 1e-4
        # It costs something, or nothing was quantised; and the cap is that of quantised models.
        assert 1e-5 < ours.parity[form].measured <= ours.parity[form].bound == 2e-2
    for form in ("jax", "onnx"):
        assert theirs.measured[form]["drift"] <= 1e-3 < 1 and ours.measured[form]["drift"] <= 5e-2
        assert ours.measured[form]["step_us"] > 0


@pytest.mark.parametrize("how", ["exported", "rebuilt"])
def test_the_quantised_step_takes_the_stored_parameters_as_they_are(int8: Bundle, how: str) -> None:
    stored = load(int8.read(PARAMS))
    assert {array.dtype.name for array in stored.values()} == {"int8", "float32"}
    if how == "exported":
        call: Any = export.deserialize(bytearray(int8.read(JAX_STEP))).call
    else:
        call = jax.jit(policy_step_of(int8.manifest))
    golden = int8.golden()
    found = drive(lambda *now: call(stored, *now), int8.manifest.carry, Inputs.of(golden)).action
    assert difference(found, golden.action, *LIMITS) == pytest.approx(
        int8.manifest.parity["jax"].measured, rel=0.05
    )


def test_evaluation_reads_the_quantised_weights_as_numbers(bundle: Bundle, int8: Bundle) -> None:
    floats, quantised = (flat_params(bundle_subject(each, None).params) for each in (bundle, int8))
    assert list(floats) == list(quantised)
    worst = max(float(np.abs(floats[name] - quantised[name]).max()) for name in floats)
    assert 0 < worst < 0.02


@pytest.mark.parametrize("name", ["bundle", "int8"])
def test_the_graph_has_static_shapes_known_names_and_operators_of_accelerators(
    name: str, request: pytest.FixtureRequest
) -> None:
    made: Bundle = request.getfixturevalue(name)
    graph = onnx.load_model_from_string(made.read(ONNX_MODEL))
    onnx.checker.check_model(graph, full_check=True)
    assert [(entry.domain, entry.version) for entry in graph.opset_import] == [("", OPSET)] and OPSET <= 17
    assert {node.op_type for node in graph.graph.node} <= OPERATORS
    shapes = {
        each.name: tuple(size.dim_value for size in each.type.tensor_type.shape.dim)
        for each in (*graph.graph.input, *graph.graph.output)
    }
    carry = {part: (1, size) for part, size in made.manifest.carry.items()}
    assert shapes == {
        **carry, "observation": (1, 4), "previous_action": (1, 2), "previous_reward": (1,), "is_first": (1,),
        **{f"next_{part}": shape for part, shape in carry.items()}, "action": (1, 3, 2),
    }  # fmt: skip


def test_the_graph_in_the_bundle_gives_the_golden_actions(bundle: Bundle) -> None:
    manifest, golden = bundle.manifest, bundle.golden()
    step = onnx_form.load_step(bundle.read(ONNX_MODEL), {}, manifest.carry)
    found = difference(drive(step, manifest.carry, Inputs.of(golden)).action, golden.action, *LIMITS)
    assert found == pytest.approx(manifest.parity["onnx"].measured, abs=1e-6)


def test_bytes_that_are_no_graph_are_refused_by_name() -> None:
    with pytest.raises(UnavailableError, match=r"ONNX Runtime .* cannot load the graph"):
        onnx_form.load_step(b"no graph", {}, {"fast": 1})


def test_a_form_is_added_to_the_bundle_of_the_same_model(bundle: Bundle, tmp_path: Path) -> None:
    path = export_policy(source(), tmp_path)
    first = Bundle.open(path)
    assert path.name == bundle.manifest.model_id and ONNX_MODEL not in first.manifest.files
    assert set(first.manifest.parity) == {"jax"}
    assert export_policy(source(), tmp_path, forms=("onnx",)) == path
    both = Bundle.open(path).manifest
    assert set(both.parity) == {"jax", "onnx", "switch"} and both.parity["jax"] == first.manifest.parity["jax"]


class TwoDigits:
    """A form that rounds its actions: right at a glance, and off by more than float32 may be."""

    @staticmethod
    def compile_step(*arguments: Any) -> bytes:
        return b""

    @staticmethod
    def load_step(data: bytes, params: Any, carry: Any) -> Any:
        step = model_step(CONFIG, NORMALISER, params)

        def rounded(*now: Any) -> Any:
            state, action = step(*now)
            return state, np.round(np.asarray(action), 2)

        return rounded


def test_a_form_that_differs_from_the_model_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "two_digits", TwoDigits)
    params = flat_params(source().params)
    reference = record_reference(model_step(CONFIG, NORMALISER, params), carry_shapes(CONFIG), NORMALISER)
    with pytest.raises(CorruptDataError, match=r"the rounding form differs .* the bound is 1e-04"):
        make_forms([forms.Form("rounding", "x", "two_digits")], CONFIG, NORMALISER, params, "none", reference)


def test_weights_that_int8_cannot_hold_are_refused_with_what_can(tmp_path: Path) -> None:
    # What an episode's first step alone sees has weights so large that those of every other input round to zero.
    params = dict(source().params)
    first = params["encoder"]["first"]
    huge = {**first, "kernel": first["kernel"].at[-1].set(1e4)}
    twisted = dataclasses.replace(source(), params=params | {"encoder": params["encoder"] | {"first": huge}})
    with pytest.raises(InvalidError, match="int8 costs this model too much; use fp16 or none") as refused:
        export_policy(twisted, tmp_path / "m", quantisation="int8")
    assert refused.value.field == "quantization" and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("measured", "quantisation", "error"),
    [
        (1.1e-4, "none", CorruptDataError),
        (float("nan"), "none", CorruptDataError),
        (2.1e-2, "fp16", InvalidError),
        (float("nan"), "int8", InvalidError),
    ],
)
def test_the_cap_holds_and_nan_is_above_it(measured: float, quantisation: str, error: type[Exception]) -> None:
    with pytest.raises(error, match="differs from the model by"):
        require_parity(measured, quantisation, "it")
    assert require_parity(9e-5, quantisation, "it").measured == 9e-5


def test_a_form_whose_packages_are_missing_is_left_out_or_refused_with_the_command(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert forms.default_forms() == ("jax", "onnx")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert forms.default_forms() == ("jax",)
    with pytest.raises(UnavailableError, match="needs onnxruntime: pip install onnxruntime"):
        forms.choose_forms(["onnx"])
    assert [form.name for form in forms.choose_forms([])] == ["jax"]


def test_stored_weights_are_what_the_exported_step_was_compiled_for(int8: Bundle) -> None:
    with pytest.raises((TypeError, ValueError)):
        floats = flat_params(source().params)
        drive(load_step(int8.read(JAX_STEP), floats, {}), int8.manifest.carry, Inputs.of(int8.golden()))
    assert sorted(load(int8.read(PARAMS))) == list(quantise(flat_params(source().params), "int8"))
