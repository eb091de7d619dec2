"""Checkpoints of a run: `<run>/<step>/` with parameters, optimiser state and a JSON item that explains them.

A checkpoint stands alone: model config, feature spec, normalisation and control period are in it. Orbax makes a
step appear whole or not at all; a hash over every array, kept in the JSON item, finds a flipped bit.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from brain_service.errors import BrainError, CorruptDataError, InvalidError, NotFoundError, UnavailableError
from brain_service.model.config import CoreModelConfig
from brain_service.model.core import Params, init_params
from brain_service.spec import EpisodeSpec
from brain_service.training.normalisation import Normaliser
from brain_service.training.step import TrainState

__all__ = ["Checkpoints", "LoadedCheckpoint", "load_checkpoint"]

SCHEMA = "continuon-brain/checkpoint/1"
ITEMS = ("params", "opt_state", "meta")

# What Orbax and TensorStore raise for a missing, truncated or damaged file.
DAMAGE = (OSError, ValueError, KeyError, TypeError, RuntimeError)


@dataclass(frozen=True)
class LoadedCheckpoint:
    """Everything needed to evaluate or export one checkpoint; `meta` is its whole JSON item."""

    config: CoreModelConfig
    params: Params
    normaliser: Normaliser
    spec: EpisodeSpec
    control_period_s: float
    step: int
    meta: Mapping[str, Any]


class Checkpoints:
    """The checkpoints under one run's folder; a context manager. Saving blocks until the step is on disk."""

    def __init__(self, folder: Path, keep: int | None = None) -> None:
        self.folder = folder.absolute()
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep, create=keep is not None, enable_async_checkpointing=False
        )
        self._manager = ocp.CheckpointManager(self.folder, item_names=ITEMS, options=options)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: object) -> None:
        self._manager.close()

    def steps(self) -> list[int]:
        """Return the steps that are completely on disk, in order."""
        return sorted(self._manager.all_steps())

    def save(self, state: TrainState, meta: Mapping[str, Any]) -> None:
        """Write the state at its step, and drop the oldest beyond `keep`.

        Raises:
            UnavailableError: the medium is full or read-only.
        """
        hashes = {"params": tree_digest(state.params), "opt_state": tree_digest(state.opt_state)}
        arguments = ocp.args.Composite(
            params=ocp.args.StandardSave(state.params),
            opt_state=ocp.args.StandardSave(state.opt_state),
            meta=ocp.args.JsonSave({**meta, "schema": SCHEMA, "sha256": hashes}),
        )
        try:
            self._manager.save(int(state.step), args=arguments, force=True)
        except OSError as error:
            raise UnavailableError(
                f"checkpoint {self.folder / str(int(state.step))}: {error}; make room, then start the run again"
            ) from error

    def meta(self, step: int) -> dict[str, Any]:
        """Return the JSON item of one step.

        Raises:
            CorruptDataError: it is missing, unreadable or of another schema.
        """
        try:
            meta: dict[str, Any] = self._manager.restore(
                step, args=ocp.args.Composite(meta=ocp.args.JsonRestore())
            )["meta"]
        except DAMAGE as error:
            raise CorruptDataError(f"checkpoint {self.folder / str(step)}: meta: {error}") from error
        if not isinstance(meta, dict) or meta.get("schema") != SCHEMA:
            raise CorruptDataError(f"checkpoint {self.folder / str(step)}: meta is not of schema {SCHEMA}")
        return meta

    def restore(self, step: int, item: str, like: Any) -> Any:
        """Return the `params` or `opt_state` of one step, in the structure of `like`, after checking its hash.

        Raises:
            CorruptDataError: a file is missing or damaged, or the hash does not hold.
        """
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        expected = self.meta(step)["sha256"][item]
        try:
            tree = self._manager.restore(
                step, args=ocp.args.Composite(**{item: ocp.args.StandardRestore(abstract)})
            )[item]
        except DAMAGE as error:
            raise CorruptDataError(f"checkpoint {self.folder / str(step)}: {item}: {error}") from error
        if (found := tree_digest(tree)) != expected:
            raise CorruptDataError(
                f"checkpoint {self.folder / str(step)}: {item} has SHA-256 {found[:12]}, not {expected[:12]}; "
                "a bit has flipped on disk, use another step"
            )
        return tree

    def discard(self, step: int) -> None:
        """Delete one step, so that it can be written again."""
        self._manager.delete(step)


def tree_digest(tree: Any) -> str:
    """Return the SHA-256 over names, dtypes, shapes and bytes of all arrays of a tree."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        array = np.ascontiguousarray(leaf)
        digest.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}\n".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def load_checkpoint(path: str | Path, step: int | None = None) -> LoadedCheckpoint:
    """Load one step of a run's folder, or the newest that verifies.

    Raises:
        NotFoundError: there is no checkpoint, or not that step.
        CorruptDataError: the step, or every step, fails its hash or cannot be read.
        InvalidError: the checkpoint's config is not one that this version knows.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise NotFoundError(f"no checkpoints at {folder}; train first (POST /train or `brain train`)")
    with Checkpoints(folder) as checkpoints:
        steps = checkpoints.steps()
        if not steps or (step is not None and step not in steps):
            wanted = "any checkpoint" if step is None else f"step {step}"
            raise NotFoundError(
                f"{folder} does not hold {wanted}; it has {', '.join(map(str, steps)) or 'none'}; train first"
            )
        damaged: BrainError | None = None
        for candidate in reversed(steps) if step is None else [step]:
            try:
                return _load(checkpoints, candidate)
            except CorruptDataError as error:
                damaged = damaged or error
    assert damaged is not None  # the loop ran at least once
    raise damaged


def _load(checkpoints: Checkpoints, step: int) -> LoadedCheckpoint:
    meta = checkpoints.meta(step)
    try:
        config = CoreModelConfig.from_dict(meta["model"])
    except (ValueError, TypeError) as error:
        raise InvalidError(f"checkpoint {checkpoints.folder / str(step)}: model: {error}") from error
    like = jax.eval_shape(lambda: init_params(config, jax.random.key(0)))
    return LoadedCheckpoint(
        config=config,
        params=checkpoints.restore(step, "params", like),
        normaliser=Normaliser.from_dict(meta["normalisation"]),
        spec=EpisodeSpec.from_json(meta["spec"]),
        control_period_s=float(meta["control_period_s"]),
        step=step,
        meta=meta,
    )
