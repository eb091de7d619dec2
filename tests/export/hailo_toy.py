"""The toy model of `tests.inference.toy` as an ONNX graph, in a bundle, with a dataset to calibrate it."""

import os
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from brain_service.episodes.reader import Episode
from brain_service.export.bundle import GOLDEN, ONNX_MODEL, PARAMS, Bundle, write_bundle
from brain_service.export.hailo import HailoOptions, export_hailo
from brain_service.export.manifest import Manifest, Parity
from tests.datasets.samples import START_NS
from tests.datasets.written import write_version
from tests.inference.toy import LIMIT, SPEC, Reference, toy_golden

FAKES = Path(__file__).resolve().parents[1] / "fakes"
PROJECT = FAKES.parents[1]
ARCH = {"4.20": "hailo8l", "4.23": "hailo8l", "5.2": "hailo10h"}
"""A device of each version of HailoRT that the stand-in behaves as."""


def toy_graph(scale: float = 1.0) -> bytes:
    """Return the toy's step: what `tests.inference.toy` computes in JAX, as a graph with normalised ends."""
    constants = {
        "one": np.float32(1.0), "row": np.asarray([1, 1], np.int64), "half": np.float32(0.5),
        "from": np.asarray([0], np.int64), "to": np.asarray([2], np.int64), "axis": np.asarray([1], np.int64),
        "tenth": np.float32(0.1), "hundredth": np.float32(0.01), "thousandth": np.float32(0.001),
        "scale": np.full(2, scale / LIMIT, np.float32), "low": np.float32(-1), "high": np.float32(1),
        "minus": np.float32(-1), "limit": np.full(2, LIMIT, np.float32), "chunk": np.asarray([1, 2, 2], np.int64),
        "zero": np.float32(0), "three": np.asarray([2.0, 2.0, 2.0], np.float32),
        "unit": np.asarray([0.5, 0.5, 0.5], np.float32),
    }  # fmt: skip
    plan = (
        # An observation scaled on its way in, as a normaliser does it.
        ("Mul", ("observation", "unit"), "scaled"), ("Sub", ("scaled", "zero"), "centred"),
        ("Mul", ("centred", "three"), "again"), ("Slice", ("again", "from", "to", "axis"), "joints"),
        ("Sub", ("one", "is_first"), "keep_flat"), ("Reshape", ("keep_flat", "row"), "keep"),
        ("Mul", ("keep", "total"), "kept"), ("Mul", ("half", "kept"), "faded"),
        ("Add", ("faded", "joints"), "sum"),
        ("Mul", ("keep", "count"), "counted"), ("Add", ("counted", "one"), "counting"),
        ("Mul", ("keep", "previous_action"), "before"), ("Mul", ("before", "tenth"), "a"),
        ("Reshape", ("previous_reward", "row"), "reward"), ("Mul", ("keep", "reward"), "rewarded"),
        ("Mul", ("rewarded", "hundredth"), "b"), ("Mul", ("counting", "thousandth"), "c"),
        ("Add", ("sum", "a"), "sum_a"), ("Add", ("sum_a", "b"), "sum_b"), ("Add", ("sum_b", "c"), "raw"),
        ("Mul", ("raw", "scale"), "normal"), ("Clip", ("normal", "low", "high"), "first"),
        ("Mul", ("first", "minus"), "second"), ("Concat", ("first", "second"), "both"),
        ("Reshape", ("both", "chunk"), "shaped"), ("Mul", ("shaped", "limit"), "wide"),
        ("Add", ("sum", "zero"), "next_total"), ("Add", ("counting", "zero"), "next_count"),
        ("Add", ("wide", "zero"), "action"),
    )  # fmt: skip
    nodes = [
        helper.make_node(op, inputs, [output], **({"axis": 1} if op == "Concat" else {}))
        for op, inputs, output in plan
    ]
    inputs = {
        "total": (1, 2), "count": (1, 1), "observation": (1, 3), "previous_action": (1, 2),
        "previous_reward": (1,), "is_first": (1,),
    }  # fmt: skip
    outputs = {"next_total": (1, 2), "next_count": (1, 1), "action": (1, 2, 2)}
    graph = helper.make_graph(
        nodes,
        "step",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in outputs.items()],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString())


def write_toy(models_dir: Path, scale: float = 1.0, graph: bytes | None = None) -> Path:
    """Write a bundle of the toy with its ONNX form alone, and return its folder."""
    draft = Manifest(
        config={"toy": True},
        spec=SPEC,
        action_low=(-LIMIT, -LIMIT),
        action_high=(LIMIT, LIMIT),
        normalisation={},
        carry={"total": 2, "count": 1},
        action_horizon=2,
        control_period_s=None,
        parity={"onnx": Parity(measured=0.0, bound=1e-4)},
    )
    files = {
        PARAMS: np.full(2, scale, np.float32).tobytes(),
        ONNX_MODEL: toy_graph(scale) if graph is None else graph,
        GOLDEN: toy_golden(scale).to_bytes(),
    }
    return models_dir / write_bundle(models_dir, draft, files)


def write_recordings(folder: Path, episodes: int = 48, steps: int = 32) -> Path:
    """Write a dataset of the toy driven at random, and return its version's folder."""
    rng = np.random.default_rng(3)
    found = []
    for index in range(episodes):
        observation = rng.uniform(-1, 1, (steps, 3)).astype(np.float32)
        reward = rng.uniform(-1, 1, steps).astype(np.float32)
        reference = Reference()
        action = np.stack([reference.step(row)[0] for row in observation])
        found.append(
            Episode(
                episode_id=f"e{index}",
                metadata={},
                spec=SPEC,
                observation={"arm/joints": observation[:, :2], "load": observation[:, 2]},
                action={"gripper": action[:, 0], "velocity": action[:, 1:]},
                reward=reward,
                is_terminal=np.arange(steps) == steps - 1,
                timestamp_ns=START_NS + 20_000_000 * np.arange(steps, dtype=np.int64),
                control_role=["expert"] * steps,
                executed_action=None,
                final_observation=None,
                end="terminated",
            )
        )
    return write_version(folder, found)


def install_compiler(folder: Path) -> Path:
    """Write a `hailo` program into `folder`: the stand-in for the Dataflow Compiler."""
    folder.mkdir(parents=True, exist_ok=True)
    program = folder / "hailo"
    program.write_text(
        f'#!/bin/sh\nPYTHONPATH="{PROJECT}" exec "{sys.executable}" -m tests.fakes.hailo_compiler "$@"\n'
    )
    program.chmod(0o755)
    return program


@dataclass(frozen=True)
class CompiledToys:
    """A compiled toy for each device of the profiles, in a folder of its own."""

    root: Path
    recordings: Path

    def bundle(self, profile: str) -> Bundle:
        (path,) = (
            each for each in (self.root / ARCH[profile]).iterdir() if each.is_dir() and not each.is_symlink()
        )
        return Bundle.open(path)


def compile_toys(root: Path) -> CompiledToys:
    """Compile the toy once for each device; the compiler is on the path only meanwhile."""
    recordings = write_recordings(root / "recordings")
    before = os.environ["PATH"]
    os.environ["PATH"] = f"{install_compiler(root / 'bin').parent}:{before}"
    try:
        for arch in sorted(set(ARCH.values())):
            options = HailoOptions(arch=arch, calibration_dataset=recordings)
            assert export_hailo(write_toy(root / "compiled" / arch), options).compiled
    finally:
        os.environ["PATH"] = before
    return CompiledToys(root / "compiled", recordings)
