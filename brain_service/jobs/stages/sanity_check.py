"""Stage: does this machine train the model at all?"""

import shlex

from brain_service.errors import BrainError
from brain_service.jobs.context import JobContext
from brain_service.jobs.params import SanityCheckParams
from brain_service.jobs.references import dataset_path
from brain_service.jobs.stages import Outcome
from brain_service.training.sanity import SanityOptions, sanity_check

__all__ = ["command", "run"]


def command(context: JobContext) -> str:
    """Return the command line's check with the same sizes."""
    options = _options(context)
    words = ["brain", "sanity-check", "--preset", options.preset]
    for flag, value in (
        ("--rlds-dir", options.rlds_dir),
        ("--obs-dim", options.obs_dim),
        ("--action-dim", options.action_dim),
        ("--max-steps", options.max_steps),
        ("--batch-size", options.batch_size),
        ("--sequence-length", options.sequence_length),
        ("--image", options.image),
        ("--image-size", options.image_size),
    ):
        words += [flag, str(value)] if value is not None else []
    return shlex.join(words)


def run(context: JobContext) -> Outcome:
    """Run the check; its report is in the result, or in the problem's `report` where it fails.

    Raises:
        BrainError: a check did not pass; names it.
        NotFoundError: there is no such dataset.
    """
    report = sanity_check(
        _options(context), on_progress=lambda done, total: context.report(done / total), stop=context.check_stop
    )
    for line in report.lines():
        context.say(line)
    if not report.passed:
        raise BrainError(f"the sanity check failed: {report.failures()}", report=report.to_json())
    return Outcome(report.summary(), {"sanity_check": report.to_json()})


def _options(context: JobContext) -> SanityOptions:
    params = context.params
    assert isinstance(params, SanityCheckParams)
    return SanityOptions(
        rlds_dir=None if params.dataset is None else dataset_path(context.settings, params.dataset),
        obs_dim=params.obs_dim,
        action_dim=params.action_dim,
        preset=params.preset,
        max_steps=params.max_steps,
        batch_size=params.batch_size,
        sequence_length=params.sequence_length,
        image=params.image,
        image_size=params.image_size,
    )
