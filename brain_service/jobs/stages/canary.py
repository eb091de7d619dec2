"""Stage: the bundle, as a robot would load it, on an episode that was lived, against the model it came from.

The export compared numbers in memory; this reads what is on the disk. The golden check of the serving worker
follows at activation.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import export
from jaxtyping import Float32
from safetensors.numpy import load

from brain_service.datasets.dataset import open_dataset
from brain_service.errors import CorruptDataError
from brain_service.export.bundle import JAX_STEP, PARAMS, Bundle
from brain_service.export.policy import PolicyStep, flat_params, make_policy_step
from brain_service.jobs.context import JobContext
from brain_service.jobs.references import job_dataset
from brain_service.jobs.stages import Outcome
from brain_service.jobs.stages.export import checkpoint_of
from brain_service.training.checkpointing import load_checkpoint

__all__ = ["command", "run"]

MAX_STEPS = 256


class Sequence(NamedTuple):
    """What a policy is fed over T steps: raw units, in the order of its arguments."""

    observation: Float32[np.ndarray, "T D"]
    previous_action: Float32[np.ndarray, "T A"]
    previous_reward: Float32[np.ndarray, "T"]
    is_first: Float32[np.ndarray, "T"]


def command(context: JobContext) -> str | None:  # noqa: ARG001  every stage is asked
    """Return None: nothing but this job does the same."""
    return None


def run(context: JobContext) -> Outcome:
    """Verify the bundle's files, then compare its actions with the checkpoint's over a recorded episode.

    Raises:
        CorruptDataError: a file is damaged, or an action differs by more than the bundle promises, or is not
            finite; the model is not activated.
    """
    model_id = str(context.result["model_id"])
    bundle = Bundle.open(context.settings.models_dir / model_id)
    sequence, source = _sequence(context, bundle)
    served = _drive(
        jax.jit(export.deserialize(bytearray(bundle.read(JAX_STEP))).call),
        load(bundle.read(PARAMS)),
        bundle,
        sequence,
    )
    loaded = load_checkpoint(checkpoint_of(context))
    trained = _drive(
        jax.jit(make_policy_step(loaded.config, loaded.normaliser)), flat_params(loaded.params), bundle, sequence
    )
    span = np.asarray(bundle.manifest.action_high) - np.asarray(bundle.manifest.action_low)
    difference = float((np.abs(served - trained) / np.where(span > 0, span, 1.0)).max())
    bound = bundle.manifest.parity["jax"].bound
    # Written this way round so that NaN, which compares as false, is refused.
    if not difference <= bound:
        raise CorruptDataError(
            f"model {model_id} differs from its checkpoint by {difference:.1e} of the action range over {source}, "
            f"its bound is {bound:.0e}; it is not activated: export the checkpoint again",
            model_id=model_id,
        )
    return Outcome(
        f"{len(served)} steps of {source}: at most {difference:.1e} of the action range from the checkpoint",
        {"canary": {"steps": len(served), "source": source, "difference": difference, "bound": bound}},
    )


def _sequence(context: JobContext, bundle: Bundle) -> tuple[Sequence, str]:
    """Return a held-out episode of the job's dataset, or the golden inputs where the job has none."""
    if "dataset" not in context.result:
        golden = bundle.golden()
        return Sequence(*(getattr(golden, name) for name in Sequence._fields)), "the golden sequence"
    dataset = open_dataset(job_dataset(context.settings, context.result))
    split = "val" if "val" in dataset.splits else "train"
    episode = dataset.vectors(split, 0)
    first = episode.is_first.astype(np.float32)
    sequence = Sequence(
        episode.observation[:MAX_STEPS],
        _shifted(episode.action)[:MAX_STEPS],
        _shifted(episode.reward)[:MAX_STEPS],
        first[:MAX_STEPS],
    )
    return sequence, f"{split} episode {dataset.entries(split)[0].episode_id}"


def _shifted(values: Float32[np.ndarray, "T *n"]) -> Float32[np.ndarray, "T *n"]:
    """Return the values of step t-1 at step t, zeros at the first."""
    return np.concatenate([np.zeros_like(values[:1]), values[:-1]])


def _drive(
    step: PolicyStep, params: Mapping[str, Any], bundle: Bundle, sequence: Sequence
) -> Float32[np.ndarray, "T H A"]:
    """Run a policy step over the sequence, its carry fed back."""
    carry: tuple[Any, ...] = tuple(np.zeros((1, size), np.float32) for size in bundle.manifest.carry.values())
    actions = []
    for t in range(len(sequence.is_first)):
        carry, action = step(params, carry, *(values[t : t + 1] for values in sequence))
        actions.append(np.asarray(action)[0])
    return np.stack(actions)
