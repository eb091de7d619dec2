"""A checkpoint becomes a bundle: parameters, the step compiled to StableHLO, golden vectors, manifest."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export
from jaxtyping import Float32
from safetensors.numpy import save

from brain_service.errors import CorruptDataError
from brain_service.export.bundle import GOLDEN, JAX_STEP, PARAMS, Golden, Manifest, Parity, write_bundle
from brain_service.export.manifest import PARITY_CAP
from brain_service.export.policy import PolicyStep, flat_params, make_policy_step
from brain_service.model.config import CoreModelConfig
from brain_service.model.core import init_params
from brain_service.model.state import carry_shapes
from brain_service.spec import EpisodeSpec
from brain_service.training.checkpointing import load_checkpoint
from brain_service.training.normalisation import Normaliser

__all__ = ["PolicySource", "export_jax", "export_policy"]

GOLDEN_STEPS = 64
GOLDEN_RESET = 40
"""The golden sequence begins an episode here a second time: a form that forgets to reset the state must fail."""

PLATFORMS = ("cpu", "cuda", "tpu")


@dataclass(frozen=True)
class PolicySource:
    """All that a bundle is made from: the model, its parameters and scales, and the features it was trained on."""

    config: CoreModelConfig
    params: Mapping[str, Any]
    normaliser: Normaliser
    spec: EpisodeSpec
    control_period_s: float | None


def export_jax(
    checkpoint_dir: str | Path,
    models_dir: str | Path,
    *,
    step: int | None = None,
    evaluation: Mapping[str, Any] | None = None,
    source_run: str = "",
    untrained: bool = False,
) -> Path:
    """Export a checkpoint (the newest, or that of `step`) and return the bundle's folder.

    With `untrained` the parameters are fresh ones in place of the trained: the baseline that a closed-loop
    comparison needs. `evaluation` and `source_run` are recorded in the manifest.

    Raises:
        NotFoundError: there is no checkpoint.
        CorruptDataError: it cannot be restored, or the compiled step does not give the model's numbers.
        UnavailableError: the bundle cannot be written.
    """
    loaded = load_checkpoint(checkpoint_dir, step)
    params = init_params(loaded.config, jax.random.key(0)) if untrained else loaded.params
    # An episode of one step has no period; none is recorded, so that none is warned about.
    period_s = loaded.control_period_s if loaded.control_period_s > 0 else None
    source = PolicySource(loaded.config, params, loaded.normaliser, loaded.spec, period_s)
    return export_policy(
        source, Path(models_dir), evaluation=evaluation, source_run=source_run or Path(checkpoint_dir).name
    )


def export_policy(
    source: PolicySource,
    models_dir: Path,
    *,
    evaluation: Mapping[str, Any] | None = None,
    source_run: str = "",
) -> Path:
    """Write the bundle of a model in memory and return its folder.

    Raises:
        CorruptDataError: the compiled step does not give the model's numbers.
        UnavailableError: the bundle cannot be written.
    """
    config, normaliser = source.config, source.normaliser
    params = flat_params(source.params)
    policy_step = make_policy_step(config, normaliser)
    golden = _record_golden(jax.jit(policy_step), params, config, normaliser)
    compiled = _compile(policy_step, params, config)
    parity = Parity(_measure_parity(compiled, params, config, normaliser, golden), PARITY_CAP["none"])
    if not parity.measured <= parity.bound:
        raise CorruptDataError(
            f"the compiled step differs from the model by {parity.measured:.2e} of the action range, "
            f"the bound is {parity.bound:.0e}; this is a fault of the compiler: try another jax version"
        )
    draft = Manifest(
        config=config.to_dict(),
        spec=source.spec,
        action_low=tuple(normaliser.action_low.tolist()),
        action_high=tuple(normaliser.action_high.tolist()),
        normalisation={name: tuple(values) for name, values in normaliser.to_dict().items()},
        carry=carry_shapes(config),
        action_horizon=config.action_horizon,
        control_period_s=source.control_period_s,
        parity={"jax": parity},
        source_run=source_run,
        evaluation=evaluation,
    )
    files = {PARAMS: save(params), JAX_STEP: compiled, GOLDEN: golden.to_bytes()}
    return models_dir / write_bundle(models_dir, draft, files)


def _compile(
    policy_step: PolicyStep, params: Mapping[str, np.ndarray[Any, np.dtype[Any]]], config: CoreModelConfig
) -> bytes:
    # Any number of rows: a worker compiles it for one, and for batches of several sessions.
    (rows,) = export.symbolic_shape("rows")

    def shape(*sizes: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((rows, *sizes), jnp.float32)

    exported = export.export(jax.jit(policy_step), platforms=PLATFORMS)(
        {name: jax.ShapeDtypeStruct(array.shape, array.dtype) for name, array in params.items()},
        tuple(shape(size) for size in carry_shapes(config).values()),
        shape(config.obs_dim),
        shape(config.action_dim),
        shape(),
        shape(),
    )
    return bytes(exported.serialize())


def _record_golden(
    policy_step: PolicyStep,
    params: Mapping[str, np.ndarray[Any, np.dtype[Any]]],
    config: CoreModelConfig,
    normaliser: Normaliser,
) -> Golden:
    """Draw a sequence from the training data's mean and spread and run the model over it, actions fed back."""
    rng = np.random.default_rng(0)
    T, D, A = GOLDEN_STEPS, config.obs_dim, config.action_dim
    noise = rng.standard_normal((T, D)).astype(np.float32)
    rewards = rng.standard_normal(T).astype(np.float32)
    golden = Golden(
        observation=normaliser.observation_mean + normaliser.observation_std * noise,
        previous_action=np.zeros((T, A), np.float32),
        previous_reward=normaliser.reward_mean + normaliser.reward_std * rewards,
        is_first=np.zeros(T, np.float32),
        action=np.zeros((T, config.action_horizon, A), np.float32),
    )
    golden.is_first[[0, GOLDEN_RESET]] = 1.0
    golden.action[:] = _run(policy_step, params, config, golden, feed_back=True)
    return golden


def _measure_parity(
    compiled: bytes,
    params: Mapping[str, np.ndarray[Any, np.dtype[Any]]],
    config: CoreModelConfig,
    normaliser: Normaliser,
    golden: Golden,
) -> float:
    step = jax.jit(export.deserialize(bytearray(compiled)).call)
    actions = _run(step, params, config, golden, feed_back=False)
    span = normaliser.action_high - normaliser.action_low
    return float((np.abs(actions - golden.action) / np.where(span > 0, span, np.float32(1))).max())


def _run(
    policy_step: PolicyStep,
    params: Mapping[str, np.ndarray[Any, np.dtype[Any]]],
    config: CoreModelConfig,
    golden: Golden,
    *,
    feed_back: bool,
) -> Float32[np.ndarray, "T H A"]:
    """Return the actions over the golden inputs; `feed_back` writes each action as the next previous one."""
    carry: tuple[Any, ...] = tuple(np.zeros((1, size), np.float32) for size in carry_shapes(config).values())
    actions = np.zeros_like(golden.action)
    for t in range(len(actions)):
        if feed_back and t > 0:
            golden.previous_action[t] = actions[t - 1, 0]
        now = slice(t, t + 1)
        carry, action = policy_step(
            params,
            carry,
            golden.observation[now],
            golden.previous_action[now],
            golden.previous_reward[now],
            golden.is_first[now],
        )
        actions[t] = np.asarray(action)[0]
    return actions
