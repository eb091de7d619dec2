"""What a run eats: batches made ahead of time, checked, normalised, and placed on the devices."""

import time
from collections.abc import Callable
from typing import cast

import jax
import numpy as np
from jax.sharding import Mesh

from brain_service.datasets.loader import Batch, Dataset, Mode, SequenceLoader
from brain_service.datasets.pipeline import BatchIterator
from brain_service.errors import CorruptDataError, InvalidError
from brain_service.pixels import ImageInput
from brain_service.training.config import TrainConfig
from brain_service.training.normalisation import Normaliser
from brain_service.training.objective import Sequences, normalise_batch
from brain_service.training.sharding import batch_sharding, place, require_divisible

__all__ = ["IMITATED_ROLES", "Feed", "InputClock", "require_finite"]

IMITATED_ROLES = ("expert", "intervention")
CHECKED = ("observation", "action", "previous_action", "reward", "previous_reward")


class Feed:
    """The training split of a dataset as the train step takes it; batch n is a function of dataset, config and n.

    With `image` the batches hold what the model sees of it, as pixels of 8 bits.

    On several hosts each reads its own rows of the batch only.

    Raises:
        InvalidError: there is nothing to imitate, too few episodes for as many streams, or the rows cannot be
            dealt evenly to the devices.
        NotFoundError: the dataset has no `train` split.
    """

    def __init__(
        self,
        dataset: Dataset,
        config: TrainConfig,
        normaliser: Normaliser,
        mesh: Mesh,
        image: ImageInput | None = None,
    ) -> None:
        require_divisible(config.batch_size, mesh)
        self._loader = SequenceLoader(
            dataset,
            "train",
            batch_size=config.batch_size,
            sequence_length=config.sequence_length,
            seed=config.seed,
            roles=IMITATED_ROLES,
            mode=cast(Mode, config.mode),
            host_index=jax.process_index(),
            host_count=jax.process_count(),
            image=image,
        )
        self._first_row = config.batch_size // jax.process_count() * jax.process_index()
        _require_examples(dataset)
        self._normaliser = normaliser
        self._where = batch_sharding(mesh)

    def batch(self, step: int) -> Sequences:
        """Return batch `step`, on the devices.

        Raises:
            CorruptDataError: a record fails its checksum, or a number is NaN or infinite; names the place.
        """
        batch = self._loader.batch(step)
        require_finite(self._loader, batch, step, self._first_row)
        placed: Sequences = place(normalise_batch(batch, self._normaliser), self._where)
        return placed

    def batches(self, start: int) -> BatchIterator[Sequences]:
        """Return the batches of shape `[B, T, ...]` from step `start` on, two made ahead by a thread. Close it."""
        return BatchIterator(self.batch, start)


def require_finite(loader: SequenceLoader, batch: Batch, step: int, first_row: int = 0) -> None:
    """Check the numbers of batch `step` of a loader; `first_row` is what its first row is of all hosts' rows.

    Raises:
        CorruptDataError: one is NaN or infinite; names episode and step.
    """
    for name in CHECKED:
        values = getattr(batch, name)
        if np.isfinite(values).all():
            continue
        row, column = (int(place) for place in np.argwhere(~np.isfinite(values))[0][:2])
        row += first_row
        for piece in loader.pieces(step):
            if piece.row == row and piece.column <= column < piece.column + piece.steps:
                episode = loader.dataset.entries(loader.split)[piece.episode].episode_id
                where = piece.first + column - piece.column
                raise CorruptDataError(
                    f"{name} of episode {episode} is not finite at its step {where}; delete the episode and "
                    "convert again",
                    field=name,
                )
        raise CorruptDataError(f"{name} of batch {step} is not finite", field=name)


def _require_examples(dataset: Dataset) -> None:
    steps = sum(entry.roles.get(role, 0) for entry in dataset.entries("train") for role in IMITATED_ROLES)
    if steps == 0:
        raise InvalidError(
            f"{dataset.location} has no step of a control role {' or '.join(IMITATED_ROLES)} to learn from; "
            "record demonstrations first",
            field="control_role",
        )


class InputClock:
    """How long the devices stood idle for want of a batch.

    Only what they certainly had to wait is left out: where the step before is still running once the batch is
    there, nothing was lost; else the whole time of asking counts. So the figure errs upwards.
    """

    def __init__(self) -> None:
        self.waited_s = 0.0

    def take(self, batches: BatchIterator[Sequences], busy: Callable[[], bool]) -> Sequences:
        """Return the next batch; `busy` tells whether the step before is still running.

        What the devices waited for it is added to `waited_s`.
        """
        asked_s = time.monotonic()
        batch = next(batches)
        if not busy():
            self.waited_s += time.monotonic() - asked_s
        return batch
