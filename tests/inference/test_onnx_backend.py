"""ONNX Runtime behind the worker's interface: the toy's numbers, and graphs that do not fit refused."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from brain_service.errors import CorruptDataError, UnavailableError
from brain_service.export.bundle import ONNX_MODEL, Bundle
from brain_service.inference.arena import Layout
from brain_service.inference.backends.onnx import load
from tests.inference.toy import Reference, build_toy, toy_graph, toy_observation

Change = Callable[[onnx.ModelProto], None]


@pytest.fixture(scope="module")
def graph() -> bytes:
    return toy_graph(1.0)


def bundle_of(folder: Path, graph: bytes) -> Bundle:
    return Bundle.open(folder / build_toy(folder, graph=graph))


def test_it_gives_the_models_numbers_with_state_fed_back_and_reset(graph: bytes, tmp_path: Path) -> None:
    bundle = bundle_of(tmp_path, graph)
    policy = load(bundle, Layout.of(bundle.manifest), tmp_path)
    assert policy.buckets == (1,)
    carry = [np.zeros((1, 3), np.float32), np.zeros((1, 3), np.float32)]
    request, response = np.zeros((1, 7), np.float32), np.zeros((1, 4), np.float32)
    rng, reference = np.random.default_rng(1), Reference()
    for t in range(60):
        first = t in (0, 31)
        reference = Reference() if first else reference
        observation, reward = toy_observation(rng), float(rng.uniform(-1, 1))
        request[0] = np.concatenate([observation, reference.previous, [reward, first]])
        policy.run(carry[t % 2], request, carry[1 - t % 2], response)
        expected = reference.step(observation, reward)
        np.testing.assert_allclose(response.reshape(2, 2), expected, rtol=0, atol=1e-6)
        np.testing.assert_allclose(carry[1 - t % 2][0], [*reference.total, reference.count], atol=1e-6)


def rename_input(model: onnx.ModelProto) -> None:
    model.graph.input[0].name = "other"


def widen_input(model: onnx.ModelProto) -> None:
    model.graph.input[2].type.tensor_type.shape.dim[1].dim_value = 4


def free_batch(model: onnx.ModelProto) -> None:
    model.graph.input[2].type.tensor_type.shape.dim[0].dim_param = "batch"


def rename_output(model: onnx.ModelProto) -> None:
    for node in model.graph.node:
        for index, name in enumerate(node.output):
            node.output[index] = "deed" if name == "action" else name
    for output in model.graph.output:
        output.name = "deed" if output.name == "action" else output.name


@pytest.mark.parametrize("change", [rename_input, widen_input, free_batch, rename_output])
def test_a_graph_that_does_not_fit_its_manifest_is_refused(graph: bytes, tmp_path: Path, change: Change) -> None:
    model = onnx.load_from_string(graph)
    change(model)
    bundle = bundle_of(tmp_path, model.SerializeToString())
    with pytest.raises((CorruptDataError, UnavailableError), match=ONNX_MODEL):
        load(bundle, Layout.of(bundle.manifest), tmp_path)


@pytest.mark.parametrize("data", [b"no graph", b"\x08\x08" * 40])
def test_bytes_that_are_no_graph_are_refused_by_name(tmp_path: Path, data: bytes) -> None:
    bundle = bundle_of(tmp_path, data)
    with pytest.raises(UnavailableError, match=ONNX_MODEL):
        load(bundle, Layout.of(bundle.manifest), tmp_path)


def test_its_worker_imports_no_jax() -> None:
    code = "import sys, brain_service.inference.worker, brain_service.inference.backends.onnx; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = {name.split(".")[0] for name in done.stdout.split()}
    assert "onnxruntime" in loaded
    assert not loaded & {"jax", "jaxlib", "flax", "orbax", "tensorflow", "torch", "pydantic"}
