"""Adapters merged into their base: a checkpoint like any other, which evaluation, export and serving take.

The normal writer writes it, so it appears whole or not at all: a step without its seal, written last, does not
count. Base and adapters are only read.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp

from brain_service.errors import CorruptDataError, InvalidError
from brain_service.training.checkpointing import Checkpoints
from brain_service.training.config import TrainConfig
from brain_service.training.step import TrainState
from brain_service.training.torch_lora.adapters import load_adapters, merged_params
from brain_service.training.torch_lora.base import LoraBase
from brain_service.training.torch_lora.config import LoraConfig
from brain_service.training.torch_lora.document import AdapterDocument, read_document
from brain_service.training.torch_lora.parameters import to_torch

__all__ = ["merge_adapters", "require_place"]


def merge_adapters(adapters_dir: Path, base: LoraBase, checkpoint_dir: Path) -> int:
    """Write the merged model as a checkpoint of its own run and return its step.

    Where that step is there already, whole and of these adapters, nothing is written.

    Raises:
        NotFoundError: there are no adapters.
        InvalidError: they were trained for another base or other shapes, or another model's checkpoints are there.
        CorruptDataError: a file's hash does not hold.
        UnavailableError: the medium is full or read-only; no checkpoint that counts is left.
    """
    document = read_document(adapters_dir)
    require_place(checkpoint_dir, base)
    with Checkpoints(checkpoint_dir, keep=1) as checkpoints:
        if _is_there(checkpoints, document):
            return document.steps
        model = to_torch(base.params, base.config)
        load_adapters(adapters_dir, model, base_sha256=base.sha256)
        state = TrainState(jnp.asarray(document.steps, jnp.int32), merged_params(model), {"none": jnp.zeros(())})
        checkpoints.save(state, _meta(document, base))
    return document.steps


def require_place(checkpoint_dir: Path, base: LoraBase) -> None:
    """Check that a merged model takes the place of nothing but what adapters of the same base were merged into.

    Raises:
        InvalidError: checkpoints of a training, or of another base's adapters, are there. They stay.
    """
    if not checkpoint_dir.is_dir():
        return
    with Checkpoints(checkpoint_dir) as checkpoints:
        for step in checkpoints.steps():
            try:
                merged = checkpoints.meta(step).get("adapters") or {}
            except CorruptDataError:
                continue
            if merged.get("base_sha256") != base.sha256:
                raise InvalidError(
                    f"{checkpoint_dir} holds another model's checkpoint (step {step}), which the merged one would "
                    "take the place of; give the run a name of its own, or merge into another folder",
                    field="run",
                )


def _is_there(checkpoints: Checkpoints, document: AdapterDocument) -> bool:
    for step in checkpoints.steps():
        try:
            checkpoints.verify(step)
            merged = checkpoints.meta(step).get("adapters") or {}
        except CorruptDataError:
            checkpoints.pass_over(step)
            continue
        if step == document.steps and merged.get("sha256") == document.sha256:
            return True
        checkpoints.pass_over(step)
    return False


def _meta(document: AdapterDocument, base: LoraBase) -> Mapping[str, Any]:
    """Return the checkpoint's JSON item: as a training writes it, and where the parameters come from."""
    config = LoraConfig.from_dict(document.extra["config"])
    train: TrainConfig = config.train_config()
    return {
        "model": base.config.to_dict(),
        "train": train.to_dict(),
        "normalisation": base.normaliser.to_dict(),
        "spec": base.spec.to_json(),
        "control_period_s": document.extra["control_period_s"],
        "dataset": document.extra["dataset"],
        "adapters": document.provenance(),
    }
