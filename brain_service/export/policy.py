"""The policy step: CoreModel with normalisation and action limits inside, raw units in and out.

The one function that every form of a bundle is compiled from. It imports JAX: for jobs and workers only.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from jax import Array
from jaxtyping import Float32, Shaped

from brain_service.errors import CorruptDataError
from brain_service.export.manifest import Manifest
from brain_service.export.quantise import dequantise
from brain_service.model.config import CoreModelConfig
from brain_service.model.core import step as model_step
from brain_service.model.signals import StepInputs
from brain_service.model.state import Carry
from brain_service.training.normalisation import Normaliser
from brain_service.trees import unflatten

__all__ = ["PolicyStep", "flat_params", "make_policy_step", "policy_step_of"]

PolicyStep = Callable[..., tuple[tuple[Array, ...], Array]]
"""`(params, carry, observation [B, D], previous_action [B, A], previous_reward [B], is_first [B], image?)` to
`(carry, actions [B, H, A])`. A model that sees takes the image as well, [B, h, w, C], values 0 to 255.

`params` maps slash-joined names to arrays, float32 or as `quantise` stores them; `carry` is a tuple of arrays
[B, n]; all else is float32, and observation, action and reward are in raw units. Actions lie within the limits. A
row whose `is_first` is 1 starts afresh.
"""


def flat_params(params: Mapping[str, Any]) -> dict[str, np.ndarray[Any, np.dtype[Any]]]:
    """Return nested parameters under slash-joined names, sorted, as NumPy arrays of unchanged shape."""
    found: dict[str, np.ndarray[Any, np.dtype[Any]]] = {}

    def visit(node: Mapping[str, Any], path: str) -> None:
        for name, child in node.items():
            if isinstance(child, Mapping):
                visit(child, f"{path}{name}/")
            else:
                found[f"{path}{name}"] = np.asarray(child)

    visit(params, "")
    return dict(sorted(found.items()))


def make_policy_step(config: CoreModelConfig, normaliser: Normaliser) -> PolicyStep:
    """Build the policy step of a model with these scales; see `PolicyStep`.

    Matrix products are float32 wherever it is traced, so that a bundle gives the same numbers everywhere.
    """
    config = replace(config, compute_dtype="float32")

    def policy_step(
        params: dict[str, Array],
        carry: tuple[Array, ...],
        observation: Float32[Array, "B D"],
        previous_action: Float32[Array, "B A"],
        previous_reward: Float32[Array, "B"],
        is_first: Float32[Array, "B"],
        image: Shaped[Array, "B h w C"] | None = None,
    ) -> tuple[tuple[Array, ...], Float32[Array, "B H A"]]:
        inputs = StepInputs(
            normaliser.observation(observation),  # type: ignore[arg-type]
            normaliser.action(previous_action),  # type: ignore[arg-type]
            normaliser.reward(previous_reward),  # type: ignore[arg-type]
            is_first,
            image,
        )
        new, outputs = model_step(unflatten(dequantise(params)), config, Carry(*carry), inputs)
        return tuple(new), normaliser.raw_action(outputs.action_mean)  # type: ignore[return-value]

    return policy_step


def policy_step_of(manifest: Manifest) -> PolicyStep:
    """Rebuild the policy step from a bundle's config and normalisation.

    Raises:
        CorruptDataError: the manifest's config or normalisation is not of this version's model.
    """
    try:
        config = CoreModelConfig.from_dict(manifest.config)
    except (ValueError, TypeError) as error:
        raise CorruptDataError(f"model {manifest.model_id}: config: {error}") from error
    return make_policy_step(config, Normaliser.from_dict(manifest.normalisation))
