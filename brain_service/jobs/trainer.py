"""Who trains in a job: decided when it is asked for, or else when it starts to train, and kept with it."""

from collections.abc import Mapping
from typing import Any

from brain_service.errors import InvalidError, UnavailableError
from brain_service.hardware.detection import Machine
from brain_service.hardware.trainers import TrainerChoice, TrainerOption, select_trainer
from brain_service.jobs.params import TrainParams
from brain_service.settings import Settings

__all__ = ["UNDECIDED", "choose_trainer"]

UNDECIDED: Mapping[str, Any] = {
    "trainer": None,
    "reason": "JAX and PyTorch are still being asked whether they compute here; the job decides when it trains",
    "alternatives": [],
}
"""What a job says of its trainer where the runtimes did not answer in time."""


def choose_trainer(params: TrainParams, settings: Settings) -> TrainerChoice:
    """Return who trains. Blocking: it may ask the runtimes.

    Raises:
        InvalidError: the trainer that was asked for is not usable here, or not at this target.
        UnavailableError: none was asked for, and none is usable.
    """
    if params.target != "local":
        return _away(params)
    try:
        return select_trainer(
            settings.learning.prefer_jax, forced=params.trainer, machine=Machine(cache_dir=settings.cache_dir)
        )
    except UnavailableError as error:
        if params.trainer == "auto":
            raise
        raise InvalidError(error.detail, field="trainer") from error


def _away(params: TrainParams) -> TrainerChoice:
    if params.trainer == "pytorch":
        raise InvalidError(
            f"target {params.target!r} trains with JAX alone; choose trainer 'auto' or 'jax', or target 'local'",
            field="trainer",
        )
    pytorch = TrainerOption("pytorch", False, "it trains on this machine alone (target 'local')")
    return TrainerChoice("jax", f"target {params.target!r} trains with JAX", (pytorch,))
