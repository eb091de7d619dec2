"""What a run is made of (data, model, mesh), what its checkpoints say of it, and how it goes on from one."""

import logging
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
from jax.sharding import Mesh

from brain_service.datasets.loader import Dataset
from brain_service.errors import CorruptDataError, InvalidError
from brain_service.model.config import CoreModelConfig
from brain_service.model.core import Params
from brain_service.pixels import choose_image
from brain_service.spec import vector_size
from brain_service.training.checkpointing import Checkpoints
from brain_service.training.config import TrainConfig
from brain_service.training.feed import Feed
from brain_service.training.held_out import HeldOutLoss, Standing
from brain_service.training.hosts import agree
from brain_service.training.normalisation import Normaliser
from brain_service.training.sharding import place
from brain_service.training.step import TrainState, abstract_state, init_state, state_sharding

__all__ = ["Run"]

log = logging.getLogger(__name__)

FREE = {"keep", "checkpoint_every", "log_every"}
"""Settings that do not change what is learned: a run may go on with others."""

CHOSEN = {"image", "image_size"}
"""Settings of which only what they come to with this dataset has to be the same."""


class Run:
    """The parts of one training run. All that can be wrong with them is found here, before anything is written.

    Raises:
        InvalidError: the dataset holds nothing to imitate, its figures are not finite, or it does not fit the
            settings or the mesh.
        NotFoundError: the dataset has no `train` split.
    """

    def __init__(self, dataset: Dataset, folder: str | Path, config: TrainConfig, mesh: Mesh) -> None:
        self.folder = folder
        self.config = config
        self.mesh = mesh
        choices = config.model_config(1, 1).action_choices
        self.normaliser = Normaliser.from_statistics(dataset.statistics, choices)
        self.image = choose_image(dataset.spec.observation, config.image, config.image_size)
        self.feed = Feed(dataset, config, self.normaliser, mesh, self.image)
        self.model: CoreModelConfig = config.model_config(
            vector_size(dataset.spec.observation), vector_size(dataset.spec.action), self.image
        )
        self._held_out = (
            HeldOutLoss(dataset, self.model, self.normaliser, mesh, self.image) if config.evaluate_every else None
        )
        self._dataset = dataset

    @cached_property
    def _identity(self) -> dict[str, Any]:
        manifest = self._dataset.manifest
        return {
            "model": self.model.to_dict(),
            "train": self.config.to_dict(),
            "normalisation": self.normaliser.to_dict(),
            "spec": self._dataset.spec.to_json(),
            "image": self.image.to_json() if self.image else None,
            "control_period_s": self._dataset.control_period_s,
            "dataset": {
                "name": manifest.name,
                "version": manifest.version,
                "source_digest": manifest.source_digest,
            },
        }

    def meta(self, standing: Standing) -> dict[str, Any]:
        """Return the JSON item of a checkpoint: what the run is, and how its held-out loss went so far."""
        return {**self._identity, "held_out": standing.to_json()}

    def held_out_loss(self, params: Params) -> float:
        """Return the loss of a step on held-out episodes; for runs with `evaluate_every`."""
        assert self._held_out is not None
        return self._held_out(params)

    def resume(self, checkpoints: Checkpoints) -> tuple[TrainState, Standing, int | None]:
        """Return the state to go on from, its standing and its step (None: a fresh state).

        Damaged checkpoints that are met on the way are passed over, with a warning that names the file. On this
        machine they are deleted.

        Raises:
            InvalidError: the newest intact checkpoint is of another run, or of another version of the model.
        """
        for step in reversed(checkpoints.steps()):
            try:
                checkpoints.verify(step)
                meta = checkpoints.meta(step)
            except CorruptDataError as error:
                log.warning("a damaged checkpoint is passed over", extra={"reason": error.detail})
                checkpoints.pass_over(step)
                continue
            self._require_same_run(meta, step)
            agree(f"going on from step {step}")
            return self._restore(checkpoints, step), Standing.from_json(meta.get("held_out")), step
        agree("beginning anew")
        return init_state(self.model, self.config, self.mesh), Standing(), None

    def _restore(self, checkpoints: Checkpoints, step: int) -> TrainState:
        like = abstract_state(self.model, self.config)
        # Placed as a fresh state is, it runs through the very same program, and so gives the same bits.
        where = state_sharding(like, self.mesh)
        try:
            params = checkpoints.restore(step, "params", like.params, where.params)
            opt_state = checkpoints.restore(step, "opt_state", like.opt_state, where.opt_state)
            carry = checkpoints.restore(step, "carry", like.carry, where.carry) if like.carry else ()
        except CorruptDataError as error:
            # Its hashes hold, so it is whole, and was written by code with another model or optimiser.
            raise InvalidError(
                f"{error.detail}; another version of this program wrote it: go on with that version, or give this "
                "run a checkpoint directory of its own"
            ) from error
        return TrainState(place(np.int32(step), where.step), params, opt_state, carry)

    def _require_same_run(self, meta: Mapping[str, Any], step: int) -> None:
        ours, theirs = cast(dict[str, Any], self._identity["train"]), meta.get("train", {})
        default = TrainConfig().to_dict()
        for name in sorted(ours.keys() - FREE - CHOSEN - {"model"}):
            # What a checkpoint of an older version does not name had the default's effect.
            before = theirs.get(name, default[name])
            if ours[name] != before:
                raise InvalidError(
                    f"checkpoint {self.folder}/{step} was made with {name} {before!r}, not {ours[name]!r}; "
                    "give this run a checkpoint directory of its own",
                    field=name,
                )
        for part in ("image", "model", "spec", "normalisation", "dataset"):
            if meta.get(part) != self._identity[part]:
                raise InvalidError(
                    f"checkpoint {self.folder}/{step} was made with another {part}"
                    f"{_difference(meta.get(part), self._identity[part])}; "
                    "give this run a checkpoint directory of its own",
                    field=part,
                )


def _difference(before: Any, now: Any) -> str:
    """Name the first keys in which two mappings differ, for a message."""
    if not isinstance(before, Mapping) or not isinstance(now, Mapping):
        return ""
    names = sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))
    return f" ({', '.join(names[:4])})" if names else ""
