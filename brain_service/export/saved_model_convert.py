"""Child process: `python -m brain_service.export.saved_model_convert BUNDLE FOLDER` writes the SavedModel.

Its last line of output is a JSON object with the versions that made it. Imports JAX and TensorFlow.
"""

import json
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import tensorflow as tf
from jax.experimental import jax2tf
from safetensors.numpy import load

from brain_service.export.bundle import PARAMS, Bundle
from brain_service.export.policy import policy_step_of
from brain_service.export.saved_model import Tensor, signature_inputs, signature_outputs

__all__ = ["convert"]


def convert(bundle: Bundle, folder: Path) -> None:
    """Write the step with its parameters as variables, as they are stored, and the signature `serving_default`.

    Raises:
        CorruptDataError: the bundle's config is not of this version's model.
    """
    policy, manifest = policy_step_of(bundle.manifest), bundle.manifest
    inputs, outputs = signature_inputs(manifest), signature_outputs(manifest)

    def step(params: dict[str, jax.Array], tensors: dict[str, jax.Array]) -> dict[str, jax.Array]:
        carry = tuple(tensors[tensor.name] for tensor in inputs if tensor.part == "carry")
        new, action = policy(
            params,
            carry,
            _joined(tensors, inputs, "observation"),
            _joined(tensors, inputs, "previous_action"),
            tensors["previous_reward"],
            tensors["is_first"],
        )
        named = dict(zip((tensor.name for tensor in outputs if tensor.part == "carry"), new, strict=True))
        start = 0
        for tensor in outputs:
            if tensor.part == "action":
                size = tensor.size // manifest.action_horizon
                named[tensor.name] = action[:, :, start : start + size].reshape(tensor.shape)
                start += size
        return named

    module = tf.Module()
    module.params = {name: tf.Variable(array) for name, array in load(bundle.read(PARAMS)).items()}
    converted = jax2tf.convert(step, with_gradient=False)

    @tf.function(autograph=False)  # type: ignore[untyped-decorator]
    def serve(**tensors: Any) -> Any:
        return converted(module.params, tensors)

    specs = {tensor.name: tf.TensorSpec(tensor.shape, tf.float32, name=tensor.name) for tensor in inputs}
    module.serve = serve
    tf.saved_model.save(module, str(folder), signatures={"serving_default": serve.get_concrete_function(**specs)})


def _joined(tensors: dict[str, jax.Array], inputs: list[Tensor], part: str) -> jax.Array:
    flat = [tensors[tensor.name].reshape(1, tensor.size) for tensor in inputs if tensor.part == part]
    return jnp.concatenate(flat, axis=1)


if __name__ == "__main__":
    convert(Bundle.open(Path(sys.argv[1])), Path(sys.argv[2]))
    sys.stdout.write(json.dumps({"jax": jax.__version__, "tensorflow": tf.__version__}) + "\n")
