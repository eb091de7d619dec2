"""The calibration set for Hailo's compiler: what the device will be fed, over recorded episodes.

The compiler chooses each tensor's scale from it. The state is the model's own, fed back step by step through whole
episodes: states drawn at random would calibrate for what never comes. Imports `onnxruntime`: for jobs only.
"""

import io
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import onnxruntime
from jaxtyping import Float32

from brain_service.datasets.dataset import Dataset
from brain_service.errors import InvalidError
from brain_service.export.bundle import Golden
from brain_service.export.hailo_names import Names, Stream
from brain_service.export.manifest import Manifest

__all__ = ["MIN_SAMPLES", "HostedGraph", "calibration_bytes", "calibration_set", "measure_parity"]

MIN_SAMPLES = 1024
"""What the compiler's makers recommend; with 128 samples its optimiser has been seen to lose most of a model."""

Row = Float32[np.ndarray, "n"]


class HostedGraph:
    """The graph for the device with the host's arithmetic at its ends, in float32 on this machine."""

    def __init__(self, graph: bytes, names: Names) -> None:
        self.names = names
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])

    def run(self, values: Mapping[str, Row]) -> tuple[dict[str, Row], dict[str, Row]]:
        """Run one step on values by role, in raw units; return what the device is fed, and the results by role."""
        fed = {stream.role: _hosted(stream, values[stream.role]) for stream in self.names.inputs}
        feed = {stream.tensor: fed[stream.role][None] for stream in self.names.inputs}
        found = self._session.run([stream.tensor for stream in self.names.outputs], feed)
        results = {s.role: _hosted(s, array) for s, array in zip(self.names.outputs, found, strict=True)}
        return fed, results


def calibration_set(
    graph: HostedGraph, dataset: Dataset, manifest: Manifest, samples: int = MIN_SAMPLES
) -> dict[str, Float32[np.ndarray, "N n"]]:
    """Return at least `samples` steps of what the device is fed, by role, shape `[N, n]`, from the train split.

    Whole episodes, spread evenly over the split.

    Raises:
        InvalidError: the dataset's features are not the bundle's, or it holds too few steps.
    """
    if dataset.spec.to_json() != manifest.spec.to_json():
        raise InvalidError(
            f"{dataset.location}: its features are not those of model {manifest.model_id}; "
            "calibrate with the dataset that the model was trained on",
            field="calibration_dataset",
        )
    lengths = dataset.lengths("train")
    if lengths.sum() < samples:
        raise InvalidError(
            f"{dataset.location}: its train split has {lengths.sum()} steps, calibration needs {samples}; "
            "record more episodes and convert again",
            field="calibration_dataset",
        )
    fed: dict[str, list[Row]] = {stream.role: [] for stream in graph.names.inputs}
    count = 0
    for index in _spread(len(lengths)):
        if count >= samples:
            break
        for inputs in _drive(graph, dataset, index, manifest):
            count += 1
            for role, values in inputs.items():
                fed[role].append(values)
    return {role: np.stack(rows) for role, rows in fed.items()}


def calibration_bytes(calibration: Mapping[str, Float32[np.ndarray, "N n"]], names: Names) -> bytes:
    """Return the bytes of the `.npz` that the compiler reads: by layer, in its own layout [N, 1, 1, n]."""
    layers = {stream.role: stream.layer for stream in names.inputs}
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **{layers[role]: rows[:, None, None, :] for role, rows in calibration.items()})  # type: ignore[arg-type]
    return buffer.getvalue()


def measure_parity(graph: HostedGraph, golden: Golden, manifest: Manifest) -> float:
    """Return the largest difference to the golden actions, state fed back, as a share of the action range."""
    span = np.asarray(manifest.action_high, np.float32) - np.asarray(manifest.action_low, np.float32)
    span[span == 0.0] = 1.0
    state: dict[str, Row] = _fresh(manifest)
    worst = 0.0
    for t, expected in enumerate(golden.action):
        _, results = graph.run(
            state
            | {
                "observation": golden.observation[t],
                "previous_action": golden.previous_action[t],
                "previous_reward": golden.previous_reward[t : t + 1],
                "is_first": golden.is_first[t : t + 1],
            }
        )
        action = results.pop("action").reshape(expected.shape)
        worst = max(worst, float((np.abs(action - expected) / span).max()))
        state = results
    return worst


def _drive(graph: HostedGraph, dataset: Dataset, index: int, manifest: Manifest) -> Iterator[dict[str, Row]]:
    episode = dataset.vectors("train", index)
    state = _fresh(manifest)
    for t in range(len(episode)):
        before = t - 1
        values = state | {
            "observation": episode.observation[t],
            "previous_action": episode.action[before] if t else np.zeros(manifest.action_size, np.float32),
            "previous_reward": episode.reward[before:t] if t else np.zeros(1, np.float32),
            "is_first": np.asarray([t == 0], np.float32),
        }
        fed, results = graph.run(values)
        del results["action"]
        state = results
        yield fed


def _fresh(manifest: Manifest) -> dict[str, Row]:
    return {name: np.zeros(size, np.float32) for name, size in manifest.carry.items()}


def _hosted(stream: Stream, values: np.ndarray[Any, np.dtype[Any]]) -> Row:
    flat = np.array(values, np.float32).reshape(-1)
    for step in stream.host:
        step.apply(flat)
    return flat


def _spread(count: int) -> Iterator[int]:
    """Yield 0..count-1 so that any first part of it is spread evenly."""
    seen: set[int] = set()
    stride = count
    while stride:
        for index in range(0, count, stride):
            if index not in seen:
                seen.add(index)
                yield index
        stride //= 2
