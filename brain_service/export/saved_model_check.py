"""Child process: `python -m brain_service.export.saved_model_check BUNDLE FOLDER` runs the SavedModel once over.

It loads the folder as a user of TensorFlow does, without the model's code, drives it over the bundle's golden
sequence by its signature alone and writes a JSON object: `measured`, as parity, and `step_us`.
"""

import json
import sys
import time
from pathlib import Path
from statistics import median

import numpy as np
import tensorflow as tf
from jaxtyping import Float32

from brain_service.export.bundle import Bundle
from brain_service.export.saved_model import Tensor, signature_inputs, signature_outputs

__all__ = ["check"]


def check(bundle: Bundle, folder: Path) -> dict[str, float]:
    """Return the largest difference to the golden actions, as a share of their range (`measured`), and `step_us`.

    That is the median time of a step in microseconds.
    """
    manifest, golden = bundle.manifest, bundle.golden()
    serve = tf.saved_model.load(str(folder)).signatures["serving_default"]
    inputs, outputs = signature_inputs(manifest), signature_outputs(manifest)
    carry = {tensor.name: np.zeros(tensor.shape, np.float32) for tensor in inputs if tensor.part == "carry"}
    actions, times_s = [], []
    for t in range(len(golden.is_first)):
        feed = {
            **carry,
            **_split(golden.observation[t], inputs, "observation"),
            **_split(golden.previous_action[t], inputs, "previous_action"),
            "previous_reward": golden.previous_reward[t : t + 1],
            "is_first": golden.is_first[t : t + 1],
        }
        begun_s = time.perf_counter()
        answer = {name: value.numpy() for name, value in serve(**_tensors(feed)).items()}
        times_s.append(time.perf_counter() - begun_s)
        carry = {name: answer[name] for name in carry}
        parts = [
            answer[each.name].reshape(manifest.action_horizon, -1) for each in outputs if each.part == "action"
        ]
        actions.append(np.concatenate(parts, axis=1))
    span = np.asarray(manifest.action_high, np.float32) - np.asarray(manifest.action_low, np.float32)
    share = np.abs(np.stack(actions) - golden.action) / np.where(span > 0, span, np.float32(1))
    return {"measured": float(share.max()), "step_us": median(times_s) * 1e6}


def _tensors(feed: dict[str, np.ndarray]) -> dict[str, tf.Tensor]:
    return {name: tf.constant(value) for name, value in feed.items()}


def _split(
    vector: Float32[np.ndarray, "n"], tensors: list[Tensor], part: str
) -> dict[str, Float32[np.ndarray, "..."]]:
    found, start = {}, 0
    for tensor in tensors:
        if tensor.part == part:
            found[tensor.name] = vector[start : start + tensor.size].reshape(tensor.shape)
            start += tensor.size
    return found


if __name__ == "__main__":
    sys.stdout.write(json.dumps(check(Bundle.open(Path(sys.argv[1])), Path(sys.argv[2]))) + "\n")
