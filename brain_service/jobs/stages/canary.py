"""Stage: the bundle, as a robot would load it, on an episode that was lived, against the model it came from.

The export compared numbers in memory; this reads what is on the disk. A bundle that came from elsewhere left its
checkpoint there: its own parameters are the reference then. The golden check of the serving worker follows at
activation.
"""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Float32, UInt8
from safetensors.numpy import load

from brain_service.datasets.access import Steps
from brain_service.datasets.dataset import Dataset, open_dataset
from brain_service.datasets.frames import Frames
from brain_service.errors import CorruptDataError
from brain_service.export.bundle import PARAMS, Bundle
from brain_service.export.forms import FORMS
from brain_service.export.jax_form import model_step
from brain_service.export.parity import Inputs, Stepper, difference, drive
from brain_service.export.policy import flat_params
from brain_service.export.subject import bundle_subject
from brain_service.jobs.context import JobContext
from brain_service.jobs.references import job_dataset
from brain_service.jobs.stages import Outcome
from brain_service.jobs.stages.export import checkpoint_of
from brain_service.training.checkpointing import load_checkpoint

__all__ = ["command", "run"]

MAX_STEPS = 256


def command(context: JobContext) -> str | None:  # noqa: ARG001  every stage is asked
    """Return None: nothing but this job does the same."""
    return None


def run(context: JobContext) -> Outcome:
    """Verify the bundle's files, then compare each form's actions with the checkpoint's over a recorded episode.

    Raises:
        CorruptDataError: a file is damaged, or an action differs by more than the bundle promises, or is not
            finite; the model is not activated.
        UnavailableError: a runtime cannot load its form.
    """
    model_id = str(context.result["model_id"])
    bundle = Bundle.open(context.settings.models_dir / model_id)
    inputs, source = _sequence(context, bundle)
    expected = drive(_reference(context, bundle), bundle.manifest.carry, inputs).action
    differences = {}
    for form, found in _differences(bundle, inputs, expected):
        context.check_stop()
        bound = bundle.manifest.parity[form].bound
        # Written this way round so that NaN, which compares as false, is refused.
        if not found <= bound:
            raise CorruptDataError(
                f"model {model_id} as {form} differs from its checkpoint by {found:.1e} of the action range over "
                f"{source}, its bound is {bound:.0e}; it is not activated: export the checkpoint again",
                model_id=model_id,
            )
        differences[form] = found
    worst = max(differences.values())
    return Outcome(
        f"{len(expected)} steps of {source}: at most {worst:.1e} of the action range from the checkpoint",
        {
            "canary": {
                "steps": len(expected),
                "source": source,
                "difference": worst,
                "differences": differences,
                "bound": bundle.manifest.parity["jax"].bound,
            }
        },
    )


def _reference(context: JobContext, bundle: Bundle) -> Stepper:
    """Return the step that the bundle's forms are held against."""
    if "run" in context.result:
        subject = bundle_subject(bundle, None)
        return model_step(subject.config, subject.normaliser, flat_params(subject.params))
    loaded = load_checkpoint(checkpoint_of(context))
    return model_step(loaded.config, loaded.normaliser, flat_params(loaded.params))


def _differences(
    bundle: Bundle, inputs: Inputs, expected: Float32[np.ndarray, "T H A"]
) -> Iterator[tuple[str, float]]:
    """Run each form of the bundle that can be run here; yields its name and its difference."""
    manifest, params = bundle.manifest, load(bundle.read(PARAMS))
    low, high = (np.asarray(limit, np.float32) for limit in (manifest.action_low, manifest.action_high))
    for name, form in FORMS.items():
        if form.file in manifest.files and not form.missing():
            step = form.load().load_step(bundle.read(form.file), params, manifest.carry)
            yield name, difference(drive(step, manifest.carry, inputs).action, expected, low, high)


def _sequence(context: JobContext, bundle: Bundle) -> tuple[Inputs, str]:
    """Return a held-out episode of the job's dataset, or the golden inputs where the job has none."""
    if "dataset" not in context.result:
        return Inputs.of(bundle.golden()), "the golden sequence"
    dataset = open_dataset(job_dataset(context.settings, context.result))
    split = "val" if "val" in dataset.splits else "train"
    episode = dataset.vectors(split, 0)
    first = episode.is_first.astype(np.float32)
    inputs = Inputs(
        episode.observation[:MAX_STEPS],
        _shifted(episode.action)[:MAX_STEPS],
        _shifted(episode.reward)[:MAX_STEPS],
        first[:MAX_STEPS],
        _images(dataset, split, bundle),
    )
    return inputs, f"{split} episode {dataset.entries(split)[0].episode_id}"


def _images(dataset: Dataset, split: str, bundle: Bundle) -> UInt8[np.ndarray, "T h w C"] | None:
    """Return the images of the split's first episode as the model sees them."""
    image = bundle.manifest.image
    if image is None:
        return None
    span = Steps(0, 0, min(dataset.entries(split)[0].length, MAX_STEPS))
    return Frames(dataset, split, image, cache_bytes=0).window(span)


def _shifted(values: Float32[np.ndarray, "T *n"]) -> Float32[np.ndarray, "T *n"]:
    """Return the values of step t-1 at step t, zeros at the first."""
    return np.concatenate([np.zeros_like(values[:1]), values[:-1]])
