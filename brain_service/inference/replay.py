"""Recorded policy steps computed again: the same inputs through the same models, state fed back from its start.

Each step runs in a worker process of the backend that answered it, in the bucket and place that the record names;
then its action must be the recorded one bit for bit. On another backend, or where a bucket is not to be had, it
must lie within the bundle's parity bound. A state is known from step 0 of a session on, and over a change of
backend, which moved it along. Where a session was rebuilt on another model, so it is here, from as many inputs.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from brain_service.errors import BrainError, CorruptDataError, InvalidError, UnavailableError
from brain_service.export.bundle import Bundle, Manifest
from brain_service.image_header import is_reference
from brain_service.inference.arena import Arena, Layout, Row
from brain_service.inference.backends import BACKENDS, BackendEntry
from brain_service.inference.client import WorkerClient
from brain_service.inference.golden import action_span
from brain_service.inference.protocol import PROTOCOL_VERSION, Status
from brain_service.pixels import ImageInput
from brain_service.spec import check_values, from_vector, to_vector
from brain_service.trees import flatten

if TYPE_CHECKING:
    from jaxtyping import Float32, UInt8

__all__ = ["RecordedStep", "ReplayedStep", "replay_steps"]

Outcome = Literal["equal", "within", "differs", "skipped"]

_START_S = 300.0
_STEP_S = 60.0
_FAR_NS = 2**63


@dataclass(frozen=True, slots=True)
class RecordedStep:
    """A step of an episode that a policy took, as its record holds it."""

    step_index: int
    observation: Mapping[str, Any]
    action: Mapping[str, Any]
    reward: float | None
    """Of the action, None where the next step was asked for without it."""
    model_id: str
    backend: str
    state_step: int
    bucket: int
    row: int

    @staticmethod
    def of(record: Mapping[str, Any]) -> "RecordedStep | None":
        """Read a step's log record; None where no policy chose the action.

        Raises:
            CorruptDataError: what it says of the policy cannot be.
        """
        metadata = record.get("step_metadata") or {}
        policy = metadata.get("policy")
        if not isinstance(policy, Mapping):
            return None
        index: int = metadata["step_index"]
        numbers: list[Any] = [policy.get("state_step"), policy.get("bucket", 1), policy.get("row", 0)]
        names: list[Any] = [policy.get("model_id"), policy.get("backend")]
        if not all(type(n) is int and n >= 0 for n in numbers) or not all(type(n) is str for n in names):
            raise CorruptDataError(f"step {index}: policy {dict(policy)!r} does not name model, backend and state")
        reward = record["reward"] if policy.get("reward_given", True) else None
        return RecordedStep(index, record["observation"], record["action"], reward, *names, *numbers)


@dataclass(frozen=True, slots=True)
class ReplayedStep:
    """What became of a recorded step.

    `equal`: the same bits. `within`: not the same bits, which were not to be expected either (`reason` says why),
    and no farther off than `bound`. `differs`: else. `skipped`: the state before it is not known. `difference` is
    the largest of the action, as a share of its range.
    """

    step_index: int
    state_step: int
    model_id: str
    recorded_backend: str
    backend: str | None
    bucket: int | None
    row: int | None
    outcome: Outcome
    difference: float | None = None
    bound: float | None = None
    reason: str | None = None


@dataclass
class _Model:
    """A model's one row of state, and the workers that run it, one a backend."""

    path: Path
    manifest: Manifest
    arena: Arena
    row: Row
    workers: dict[str, WorkerClient] = field(default_factory=dict)
    slot: int = 0

    def begin(self) -> None:
        self.row.clear()
        self.slot = 0


async def replay_steps(
    steps: Sequence[RecordedStep],
    models_dir: Path,
    cache_dir: Path,
    backend: str | None = None,
    on_worker: Callable[[str], None] = lambda _: None,
    read_image: Callable[[str], bytes] | None = None,
) -> AsyncIterator[ReplayedStep]:
    """Compute recorded steps again, in their order, and yield what became of each.

    All run on `backend` where that is given. `on_worker` is told what is about to be loaded. `read_image` returns
    the file that a step refers to, as `<sha256>.png`.

    Raises:
        InvalidError: there is no backend of that name.
        NotFoundError: a model's bundle is not in `models_dir`.
        CorruptDataError: a bundle does not verify, or a step is not one of its model's.
        UnavailableError: a backend cannot run a bundle here.
    """
    if backend is not None:
        find_backend(backend)
    async with AsyncExitStack() as stack:
        replay = _Replay(steps, models_dir, cache_dir, backend, on_worker, read_image, stack)
        for number in range(len(steps)):
            yield await replay.step(number)


def find_backend(name: str) -> BackendEntry:
    """Return a backend by its name in answers; a marker as `(simulated)` is left out.

    Raises:
        InvalidError: this version has none of that name.
    """
    entry = BACKENDS.get(name.split(" (")[0])
    if entry is None:
        raise InvalidError(f"no backend {name!r}; this version has {', '.join(BACKENDS)}", field="backend")
    return entry


class _Replay:
    def __init__(
        self,
        steps: Sequence[RecordedStep],
        models_dir: Path,
        cache_dir: Path,
        backend: str | None,
        on_worker: Callable[[str], None],
        read_image: Callable[[str], bytes] | None,
        stack: AsyncExitStack,
    ) -> None:
        self._steps = steps
        self._models_dir = models_dir
        self._cache_dir = cache_dir
        self._backend = backend
        self._on_worker = on_worker
        self._read_image = read_image
        self._stack = stack
        self._models: dict[str, _Model] = {}
        # Why the state after the step before is not known, and why it may be off by some bits.
        self._unknown: str | None = "the recording begins in the middle of a session"
        self._inexact: str | None = None

    async def step(self, number: int) -> ReplayedStep:
        """Compute step `number`, whose predecessors were computed before."""
        step = self._steps[number]
        before = self._steps[number - 1] if number else None
        model = await self._model(step.model_id)
        if step.state_step == 0:
            model.begin()
            self._unknown = self._inexact = None
        elif before is not None and step.model_id != before.model_id:
            await self._rebuild(number, model)
        elif before is not None and step.state_step != before.state_step + 1:
            self._unknown = f"the steps between state step {before.state_step} and {step.state_step} are missing"
        if self._unknown is not None:
            return _skipped(step, f"{self._unknown}; what follows is known again from a reset on")
        return await self._compare(number, model)

    async def _compare(self, number: int, model: _Model) -> ReplayedStep:
        step = self._steps[number]
        entry = find_backend(self._backend or step.backend)
        first = step.state_step == 0
        action, bucket = await self._run(number, model, entry, first, step.bucket, step.row)
        spec = model.manifest.spec.action
        recorded = to_vector(check_values(flatten(step.action, "action"), spec, "action"), spec)
        difference = float(np.max(np.abs(action - recorded) / action_span(model.manifest), initial=0.0))
        if entry.name != step.backend.split(" (")[0]:
            # From here on this backend's state is fed back.
            self._inexact = f"recorded on {step.backend}"
        elif bucket != step.bucket:
            self._inexact = f"recorded in a batch of {step.bucket}, which {entry.name} does not compute here"
        bound = max(b for b in (self._bound(model, entry.name), self._bound(model, step.backend)) if b is not None)
        if action.tobytes() == recorded.tobytes():
            outcome: Outcome = "equal"
        elif self._inexact is not None and difference <= bound:
            outcome = "within"
        else:
            outcome = "differs"
        return ReplayedStep(
            step_index=step.step_index,
            state_step=step.state_step,
            model_id=step.model_id,
            recorded_backend=step.backend,
            backend=entry.name,
            bucket=bucket,
            row=step.row if bucket == step.bucket else 0,
            outcome=outcome,
            difference=difference,
            bound=bound if self._inexact is not None else 0.0,
            reason=self._inexact,
        )

    async def _rebuild(self, number: int, model: _Model) -> None:
        """Feed a session's last inputs to the model that it moved to; it answered none of them."""
        step = self._steps[number]
        first = number - step.state_step
        whole = first >= 0 and all(
            later.state_step == earlier.state_step + 1 or later.model_id != earlier.model_id
            for earlier, later in zip(self._steps[first:number], self._steps[first + 1 : number], strict=False)
        )
        if not whole:
            self._unknown = f"the {step.state_step} inputs that the state was rebuilt from are not all recorded"
            return
        model.begin()
        entry = find_backend(self._backend or step.backend)
        for earlier in range(first, number):
            await self._run(earlier, model, entry, earlier == first, 1, 0)
        self._unknown = None
        self._inexact = f"the state was rebuilt on {step.model_id} from {step.state_step} inputs"

    async def _run(
        self, number: int, model: _Model, entry: BackendEntry, first: bool, bucket: int, place: int
    ) -> "tuple[Float32[np.ndarray, 'A'], int]":
        """Compute one step and return its action [A] and the bucket that was used."""
        step, before = self._steps[number], self._steps[number - 1] if number else None
        spec, row = model.manifest.spec, model.row
        observation = {path: f for path, f in spec.observation.items() if f.dtype != "image"}
        D, A = model.manifest.observation_size, model.manifest.action_size
        try:
            given = flatten(step.observation, "observation")
            values = {path: value for path, value in given.items() if path in observation}
            row.request[0, :D] = to_vector(check_values(values, observation, "observation"), observation)
            row.request[0, D:] = 0.0
            if model.manifest.image is not None:
                image = self._image(given, model.manifest.image)
                model.arena.layout.image_of(row.request[0])[...] = image
            row.request[0, D + A + 1] = first
            if not first and before is not None:
                previous = check_values(flatten(before.action, "action"), spec.action, "action")
                row.request[0, D : D + A] = to_vector(previous, spec.action)
                told = model.manifest.usual_reward if before.reward is None else before.reward
                row.request[0, D + A] = told
        except InvalidError as error:
            raise CorruptDataError(
                f"step {step.step_index} is none of model {step.model_id}: {error.detail}"
            ) from error
        worker = await self._worker(model, entry)
        if bucket > 1 and bucket not in worker.report["buckets"]:
            bucket, place = 1, 0
        ticket = worker.submit(row.index, model.slot, _FAR_NS, bucket, place)
        async with asyncio.timeout(_STEP_S):
            done = await ticket.waiter
        if done.status is not Status.OK:
            raise UnavailableError(f"step {step.step_index}: {entry.name} gave {done.status.name.lower()} numbers")
        model.slot = 1 - model.slot
        chunk = row.response.reshape(model.manifest.action_horizon, A)
        return to_vector(from_vector(chunk[0], spec.action), spec.action), bucket

    def _image(self, given: Mapping[str, Any], image: ImageInput) -> "UInt8[np.ndarray, 'h w C']":
        """Return what the model saw of a recorded step's image.

        Raises:
            InvalidError: the step has none, or it is another than the model's.
        """
        value = given.get(image.path)
        if isinstance(value, str) and is_reference(value) and self._read_image is not None:
            value = self._read_image(value.removeprefix("images/"))
        if not isinstance(value, bytes):
            raise InvalidError(f"observation/{image.path}: no image, found {type(value).__name__}")
        return image.pixels(value)

    async def _model(self, model_id: str) -> _Model:
        model = self._models.get(model_id)
        if model is None:
            bundle = await asyncio.to_thread(Bundle.open, self._models_dir / model_id)
            arena = Arena.create(Layout.of(bundle.manifest), 1)
            self._stack.callback(arena.close)
            model = _Model(bundle.path, bundle.manifest, arena, arena.row(0))
            self._models[model_id] = model
        return model

    async def _worker(self, model: _Model, entry: BackendEntry) -> WorkerClient:
        worker = model.workers.get(entry.name)
        if worker is None:
            of_model = [step for step in self._steps if step.model_id == model.manifest.model_id]
            order = {
                "protocol": PROTOCOL_VERSION,
                "bundle": str(model.path),
                "backend": entry.name,
                "module": entry.module,
                "parity": entry.parity,
                "capacity": model.arena.capacity,
                "cache_dir": str(self._cache_dir),
                "buckets": sorted({step.bucket for step in of_model} - {1}),
            }
            if self._bound(model, entry.name) is None:
                raise UnavailableError(f"model {model.manifest.model_id} has no {entry.form} for {entry.name}")
            self._on_worker(f"loading {model.manifest.model_id} on {entry.name}")
            worker = await WorkerClient.start(
                entry,
                order,
                model.arena.fd,
                timeout_s=_START_S,
                hang_s=_STEP_S,
                max_queued=1,
                on_lost=lambda *_: None,
                on_slow=lambda *_: None,
            )
            self._stack.push_async_callback(worker.close)
            model.workers[entry.name] = worker
        return worker

    def _bound(self, model: _Model, backend: str) -> float | None:
        try:
            entry = find_backend(backend)
        except BrainError:
            return None
        parity = model.manifest.parity.get(entry.parity)
        return None if parity is None else parity.bound


def _skipped(step: RecordedStep, reason: str) -> ReplayedStep:
    return ReplayedStep(
        step_index=step.step_index,
        state_step=step.state_step,
        model_id=step.model_id,
        recorded_backend=step.backend,
        backend=None,
        bucket=None,
        row=None,
        outcome="skipped",
        reason=reason,
    )
