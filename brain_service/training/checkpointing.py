"""Checkpoints of a run: `<run>/<step>/` with parameters, optimiser state and a JSON item that explains them.

A checkpoint stands alone: model config, feature spec, normalisation and control period are in it. A thread writes
it: Orbax makes a step appear whole or not at all; a seal, written last, holds a stamp of every file, so that a
flipped bit or a lost file is found before anything is decoded. A step without a seal does not count, and older
ones go only after the seal: a kill at any instant leaves one that does.

On several hosts every process takes part in every call; the first one seals and deletes. A checkpoint is restored
on any number of hosts and devices.
"""

import contextlib
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from jax.sharding import SingleDeviceSharding

from brain_service.datasets.storage import GCS
from brain_service.errors import BrainError, CorruptDataError, InvalidError, NotFoundError, UnavailableError
from brain_service.model.config import CoreModelConfig
from brain_service.model.core import Params, init_params
from brain_service.pixels import ImageInput
from brain_service.spec import EpisodeSpec
from brain_service.training.checkpoint_store import open_store
from brain_service.training.hosts import everyone, is_first, meet
from brain_service.training.normalisation import Normaliser
from brain_service.training.step import TrainState

__all__ = ["Checkpoints", "LoadedCheckpoint", "load_checkpoint"]

SCHEMA = "continuon-brain/checkpoint/1"
UNREACHED = ("UNAVAILABLE", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED", "ABORTED")
"""What TensorStore says in its ValueErrors when a bucket does not answer."""
ITEMS = ("params", "opt_state", "carry", "meta")
IN_A_RUN = "checkpoints"
"""Where the output directory of the cloud's trainer has them."""


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
    image: ImageInput | None = None


class Checkpoints:
    """The checkpoints under one run's folder; a context manager that leaves once the last one is sealed.

    The folder is a local path or `gs://bucket/path`. With `keep` it is made where it is missing, what a kill left
    unfinished is deleted (on a bucket: once it is written anew), and at most so many steps stay in it, not
    counting the `best` of the last save.

    Raises:
        UnavailableError: the folder cannot be made or read.
        ForbiddenError: these credentials may not read the bucket.
    """

    def __init__(self, folder: str | Path, keep: int | None = None) -> None:
        self._store = open_store(folder)
        self.folder = self._store.location
        self._remote = self.folder.startswith(GCS)
        self._keep = keep
        self._stale: set[int] = set()
        self._writing: Future[None] | None = None
        # One thread of ours around Orbax's blocking save, instead of its several: every failure then has one place
        # to come out, and the seal follows the data in one sequence.
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="checkpoint-writer")
        options = ocp.CheckpointManagerOptions(
            create=False,
            enable_async_checkpointing=False,
            # Naming the processes keeps Orbax off the devices: its other barrier is a collective, and from this
            # thread it would meet the train step's.
            multiprocessing_options=ocp.options.MultiprocessingOptions(active_processes=everyone()),
        )
        try:
            if keep is not None:
                if is_first():
                    self._store.prepare()
                meet("checkpoints")
                self._stale = self._store.leftovers()
            self._manager = ocp.CheckpointManager(self.folder, item_names=ITEMS, options=options)
        except (OSError, ValueError) as error:
            raise UnavailableError(f"checkpoint directory {self.folder}: {error}; choose another one") from error

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            self.wait()
        except UnavailableError:
            if kind is None:
                raise
        finally:
            self._writer.shutdown()
            self._manager.close()

    def steps(self) -> list[int]:
        """Return the sealed steps, in order."""
        return [step for step in self._store.steps() if step not in self._stale]

    def step_dir(self, step: int) -> str:
        """Return where one step lies."""
        return f"{self.folder}/{step}"

    def save(self, state: TrainState, meta: Mapping[str, Any], *, best: int | None = None) -> None:
        """Have the state written at its step; returns once it is copied, before it is on the medium.

        Where the save before is still being written, that is waited for. Once the step is sealed, the oldest
        beyond `keep` go, except the step `best`.

        Raises:
            UnavailableError: the medium is full or read-only; it was the save before that failed.
        """
        self.wait()
        # A copy: the next train step writes its result over the state's own buffers.
        copied = jax.tree.map(jnp.copy, state)
        self._writing = self._writer.submit(self._write, copied, dict(meta), best)

    def wait(self) -> None:
        """Wait until what was saved is on the medium and sealed.

        Raises:
            UnavailableError: the medium is full or read-only; what was sealed before is still there.
        """
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def _write(self, state: TrainState, meta: Mapping[str, Any], best: int | None) -> None:
        step = int(state.step)
        items = {
            "params": ocp.args.StandardSave(state.params),
            "opt_state": ocp.args.StandardSave(state.opt_state),
            "meta": ocp.args.JsonSave({**meta, "schema": SCHEMA}),
        }
        if state.carry:
            items["carry"] = ocp.args.StandardSave(state.carry)
        try:
            self._make_way(step)
            self._manager.save(step, args=ocp.args.Composite(**items), force=True)
            if is_first():
                # Only one lists and decides: what the others would see depends on how far it is.
                self._seal(step)
                self._retire(step, best)
            meet("sealed")
        except (OSError, ValueError) as error:  # TensorStore reports a full medium as a ValueError
            advice = "check the bucket" if self._remote else "make room"
            raise UnavailableError(
                f"checkpoint {self.step_dir(step)}: {error}; {advice}, then start the run again"
            ) from error

    def _seal(self, step: int) -> None:
        self._store.seal(step)

    def _make_way(self, step: int) -> None:
        """Delete what an earlier attempt left at this step without a seal, or damaged."""
        if step not in self._stale:
            return
        if is_first():
            self._store.delete(step)
        self._stale.discard(step)
        meet("made way")
        self._manager.reload()

    def _retire(self, step: int, best: int | None) -> None:
        """Delete the steps beyond `keep`, newer ones not counted: they are of an attempt that is made again."""
        if not self._keep:
            return
        counted = [kept for kept in self.steps() if kept <= step]
        kept = counted[-self._keep :]
        for old in sorted({*counted, *(stale for stale in self._stale if stale < kept[0])} - {*kept, best}):
            self._store.delete(old)

    def verify(self, step: int) -> None:
        """Hold every file of one step against its seal; see `CheckpointStore` for what that proves.

        Raises:
            CorruptDataError: a file is missing, was added or differs; names it.
            UnavailableError: the bucket cannot be reached.
        """
        self._store.verify(step)

    def meta(self, step: int) -> dict[str, Any]:
        """Return the JSON item of one step.

        Raises:
            CorruptDataError: it is missing, unreadable or of another schema.
        """
        meta: dict[str, Any] = self._restore(step, "meta", ocp.args.JsonRestore())
        if meta.get("schema") != SCHEMA:
            raise CorruptDataError(f"checkpoint {self.step_dir(step)}: meta is not of schema {SCHEMA}")
        return meta

    def restore(self, step: int, item: str, like: Any, where: Any = None) -> Any:
        """Return the `params`, `opt_state` or `carry` of one verified step, in the structure and shapes of `like`.

        `where` holds the sharding of each leaf; by default all go to this process's first device, whatever mesh
        they were saved from.

        Raises:
            CorruptDataError: the item is not of that structure.
        """
        if where is None:
            here = SingleDeviceSharding(jax.local_devices()[0])
            where = jax.tree.map(lambda _: here, like)
        abstract = jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), like, where
        )
        return self._restore(step, item, ocp.args.StandardRestore(abstract))

    def _restore(self, step: int, item: str, how: Any) -> Any:
        try:
            return self._manager.restore(step, args=ocp.args.Composite(**{item: how}))[item]
        except (OSError, ValueError, KeyError) as error:
            # A step that could not be fetched is not a damaged one, which would be passed over.
            if self._remote and (isinstance(error, OSError) or any(word in str(error) for word in UNREACHED)):
                raise UnavailableError(
                    f"checkpoint {self.step_dir(step)}: {item}: {error}; start the run again"
                ) from error
            raise CorruptDataError(f"checkpoint {self.step_dir(step)}: {item}: {error}") from error

    def pass_over(self, step: int) -> None:
        """Have a step that does not verify no longer count: deleted, or on a bucket left until it is replaced."""
        if is_first() and self._store.pass_over(step):
            self._manager.reload()
        self._stale.add(step)
        meet("passed over")


def load_checkpoint(path: str | Path, step: int | None = None) -> LoadedCheckpoint:
    """Load one step of a run's folder; by default the best by held-out loss where the run looked, else the newest.

    The output directory of the cloud's trainer, which holds such a folder, does as well. What does not verify is
    passed over for the newest that does.

    Raises:
        NotFoundError: there is no checkpoint, or not that step.
        CorruptDataError: the step, or every step, fails its hash or cannot be read.
        InvalidError: the checkpoint's config is not one that this version knows.
    """
    store = open_store(f"{str(path).rstrip('/')}/{IN_A_RUN}")
    if store.exists():
        path = store.location
    elif not open_store(path).exists():
        raise NotFoundError(f"no checkpoints at {path}; train first (POST /train or `brain train`)")
    with Checkpoints(path) as checkpoints:
        steps = checkpoints.steps()
        if not steps or (step is not None and step not in steps):
            wanted = "any checkpoint" if step is None else f"step {step}"
            raise NotFoundError(
                f"{path} does not hold {wanted}; it has {', '.join(map(str, steps)) or 'none'}; train first"
            )
        damaged: BrainError | None = None
        for candidate in _by_preference(checkpoints) if step is None else [step]:
            try:
                checkpoints.verify(candidate)
                return _load(checkpoints, candidate)
            except CorruptDataError as error:
                damaged = damaged or error
    assert damaged is not None  # the loop ran at least once
    raise damaged


def _by_preference(checkpoints: Checkpoints) -> list[int]:
    """Return the steps, newest first, behind the one that the newest intact one calls the best."""
    steps = checkpoints.steps()[::-1]
    for step in steps:
        with contextlib.suppress(CorruptDataError):
            checkpoints.verify(step)
            best = (checkpoints.meta(step).get("held_out") or {}).get("best_step")
            return sorted(steps, key=lambda candidate: candidate != best)
    return steps


def _load(checkpoints: Checkpoints, step: int) -> LoadedCheckpoint:
    meta = checkpoints.meta(step)
    try:
        config = CoreModelConfig.from_dict(meta["model"])
    except (ValueError, TypeError) as error:
        raise InvalidError(f"checkpoint {checkpoints.step_dir(step)}: model: {error}") from error
    like = jax.eval_shape(lambda: init_params(config, jax.random.key(0)))
    return LoadedCheckpoint(
        config=config,
        params=checkpoints.restore(step, "params", like),
        normaliser=Normaliser.from_dict(meta["normalisation"]),
        spec=EpisodeSpec.from_json(meta["spec"]),
        control_period_s=float(meta["control_period_s"]),
        step=step,
        meta=meta,
        image=ImageInput.from_json(meta["image"]) if meta.get("image") else None,
    )
