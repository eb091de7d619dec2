"""The backends of one model, in order of preference: which one computes, which stands by, and what failed.

The first in order that is up computes. When it dies, hangs or is too slow the next one that is up takes over at
once: all workers map the same memory. A keeper in the background starts what is missing, tries what has failed
again after a rest, and replaces a worker that leaks. A backend that comes up beside live sessions gets none of
them before its moves were measured (`divergence`).
"""

import asyncio
import contextlib
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from brain_service.errors import BrainError, CorruptDataError, UnavailableError
from brain_service.export.bundle import Bundle
from brain_service.inference.arena import Row
from brain_service.inference.backends import BACKENDS, BackendEntry
from brain_service.inference.client import WorkerLostError
from brain_service.inference.cpu_choice import Choice, ChoiceFile, choose
from brain_service.inference.divergence import Divergence, measure_divergence, switch_bound
from brain_service.inference.engine import Engine, Launch
from brain_service.settings import InferenceSettings

__all__ = ["Crew"]

log = logging.getLogger(__name__)

_POLL_S = 2.0
_TRAPPED_S = 1.0
_HANG_STEPS = 20
"""A worker is not given up before so many times its own step has passed."""

_CPU_PACKAGES = {"jax-cpu": "jax", "onnx-cpu": "onnxruntime"}


class Crew:
    """Engines of one model. All methods but the constructor belong to one event loop."""

    def __init__(
        self, bundle: Bundle, settings: InferenceSettings, cache_dir: Path, launch: Launch, spare_row: Row
    ) -> None:
        """`spare_row` is a row of the sessions' memory that no session uses."""
        self.backend = ""
        self.warnings: tuple[str, ...] = ()
        self.last_error: str | None = None
        self.engines: list[Engine] = []
        self._active = True
        self._bundle = bundle
        self._settings = settings
        self._launch = launch
        self._spare_row = spare_row
        self._absent: dict[str, str] = {}
        self._moves: list[Divergence] = []
        self._choices = ChoiceFile(cache_dir, bundle.manifest.model_id, _CPU_PACKAGES)
        self._choice: Choice | None = None
        self._undecided = False
        self._recorded = False
        self._current: Engine | None = None
        self._changed = asyncio.Event()
        self._keeper: asyncio.Task[None] | None = None

    @property
    def current(self) -> Engine | None:
        """The engine that computes the next step; None while all are down."""
        return self._current

    async def start(self) -> None:
        """Start engines in order until one is up; the keeper sees to the rest.

        Raises:
            CorruptDataError: none is, and the bundle is to blame.
            UnavailableError: none is; the message names each with its reason.
        """
        await asyncio.to_thread(self._muster)
        for engine in list(self.engines):
            if self._current is None and engine.obstacle is None and not engine.starts:
                await self._start(engine)
        if self._current is None:
            raise self._refusal()
        self._keeper = asyncio.get_running_loop().create_task(self._keep())

    def set_active(self, active: bool) -> None:
        """Take what the active model gets, or be content with what keeps answers coming.

        That is a standby, and devices that belong to one process. They are let go of only once another backend is
        up: sessions that finish on this model move there.
        """
        self._active = active
        self._changed.set()

    @property
    def _wanted(self) -> int:
        """How many engines are kept up."""
        return 1 + (self._active and self._settings.standby)

    @property
    def _usable(self) -> list[Engine]:
        """The engines that this model may have, in order."""
        shared = [engine for engine in self.engines if self._active or not engine.entry.exclusive]
        return shared if any(engine.obstacle is None for engine in shared) else self.engines

    async def close(self) -> None:
        """Stop every worker."""
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
        await asyncio.gather(*(engine.close() for engine in self.engines))

    def status(self) -> dict[str, Any]:
        """Return who computes and who stands by, their figures, and the decision on every backend."""
        current = self._current
        figures = current.status() if current else {}
        standby = [engine.name for engine in self._up() if engine is not current]
        return {
            "backend": self.backend,
            "standby": standby[0] if standby else None,
            "worker_pid": figures.get("worker_pid"),
            "worker_restarts": sum(max(0, engine.starts - 1) for engine in self.engines),
            "golden_parity": figures.get("golden_parity"),
            "step_us": figures.get("step_us"),
            "load_s": figures.get("load_s"),
            "telemetry": figures.get("telemetry"),
            "batches": figures.get("batches"),
            "dropped_steps": figures.get("dropped_steps"),
            "last_error": self.last_error,
            "moves": [move.to_json() for move in self._moves],
            "why": [
                {
                    "device": engine.entry.device,
                    "backend": engine.name,
                    "used": engine is current,
                    "reason": self._reason(engine),
                }
                | engine.status()
                for engine in self.engines
            ]
            + [
                {"device": device, "backend": device, "used": False, "reason": reason}
                for device, reason in self._absent.items()
            ],
        }

    def _muster(self) -> None:
        """Find what can run here, in order; blocking."""
        for device in self._settings.backends:
            entries = [entry for entry in BACKENDS.values() if entry.device == device]
            if not entries:
                self._absent[device] = "this version has no backend for it"
            self.engines += [
                Engine(entry, self._obstacle(entry), self._launch, self._on_change, self._on_slow)
                for entry in entries
            ]
        if all(engine.obstacle is None for engine in self._cpu()) and len(self._cpu()) > 1:
            runtime = self._settings.cpu_runtime
            # Set by hand: nothing is measured, and what an earlier start measured stays on file.
            self._recorded = runtime != "measured"
            self._choice = Choice(f"{runtime}-cpu", {}) if self._recorded else self._choices.read()
            self._undecided = self._choice is None
            self._prefer()

    def _obstacle(self, entry: BackendEntry) -> str | None:
        manifest = self._bundle.manifest
        if entry.form not in manifest.files or entry.parity not in manifest.parity:
            return f"the bundle holds no {entry.form}; export the checkpoint for {entry.name}"
        return entry.probe()

    def _cpu(self) -> list[Engine]:
        return [engine for engine in self.engines if engine.entry.name in _CPU_PACKAGES]

    def _up(self) -> list[Engine]:
        return [engine for engine in self.engines if engine.up]

    async def _start(self, engine: Engine) -> None:
        if not (self._undecided and engine in self._cpu()):
            await engine.start()
            return
        # One after the other: each is measured while the other rests.
        for each in self._cpu():
            if each.due:
                await each.start()
        self._undecided = False
        await self._compare()
        self._prefer()
        self._on_change(None)

    async def _compare(self) -> None:
        """Hold the steps of the two CPU backends against each other once both are up, for the next start."""
        step_us = {engine.entry.name: engine.worker.step_us for engine in self._cpu() if engine.worker}
        if self._recorded or len(step_us) < len(_CPU_PACKAGES):
            return
        self._recorded = True
        fresh = choose(step_us, self._choice.backend if self._choice else None)
        # What serves does not move to the other for speed alone: that comes with the next start or activation.
        chosen = self._choice.backend if self._choice else fresh.backend
        self._choice = Choice(chosen, step_us)
        await asyncio.to_thread(self._choices.write, fresh)

    def _prefer(self) -> None:
        """Put the chosen CPU backend before the other, both in the place of the device in the order."""
        if self._choice is not None:
            chosen, cpu = self._choice.backend, self._cpu()
            at = self.engines.index(cpu[0])
            rest = [engine for engine in self.engines if engine not in cpu]
            cpu.sort(key=lambda engine: engine.entry.name != chosen)
            self.engines = [*rest[:at], *cpu, *rest[at:]]

    async def _keep(self) -> None:
        while True:
            self._changed.clear()
            try:
                if not await self._mend():
                    await self._watch_memory()
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(self._nap_s()):
                            await self._changed.wait()
            except Exception:
                # The keeper must outlive what nobody foresaw: without it no worker would ever start again.
                log.exception("the keeper of model %s failed", self._bundle.manifest.model_id)
                await asyncio.sleep(_TRAPPED_S)

    async def _mend(self) -> bool:
        """Do the one thing that is most needed; tell whether there was one."""
        engine = self._next_start()
        if engine is not None:
            await self._start(engine)
            await self._compare()
            return True
        untried = [engine for engine in self._up() if not engine.cleared]
        if untried:
            await self._clear(untried[0])
            return True
        kept = [engine for engine in self._usable if engine.up][: self._wanted]
        for engine in self._up() if kept else ():
            if engine not in kept:
                engine.stop()
        return False

    def _next_start(self) -> Engine | None:
        due = [engine for engine in self._usable if engine.due]
        if not self._up():
            # What never failed comes first: the one that did may take long to fail again.
            return min(due, key=lambda engine: engine.breaker.failures > 0, default=None)
        wanted = self._wanted
        for engine in self._usable:
            if wanted == 0:
                break
            if engine.up:
                wanted -= 1
            elif engine in due:
                return engine
        return None

    async def _clear(self, engine: Engine) -> None:
        """Let sessions move to and from an engine, if what a move changes is within its bound."""
        current, manifest = self._current, self._bundle.manifest
        if current is None or current is engine or current.worker is None or engine.worker is None:
            engine.cleared = True
            self._on_change(None)
            return
        workers = (current.worker, engine.worker)
        try:
            golden = await asyncio.to_thread(self._bundle.golden)
            measured = await measure_divergence(workers, self._spare_row, golden, manifest)
        except WorkerLostError:
            return
        except BrainError as error:
            log.error("%s: %s", engine.name, error.detail)
            measured = float("nan")
        bound = switch_bound(manifest, (current.entry.parity, engine.entry.parity))
        move = Divergence((current.name, engine.name), measured, bound)
        self._moves.append(move)
        engine.cleared = move.within
        if not move.within:
            engine.obstacle = (
                f"a session that moves between {current.name} and {engine.name} would see its actions change by "
                f"{measured:.2e} of their range, the bound is {bound:.2e}"
            )
            engine.stop()
        self._on_change(None)

    async def _watch_memory(self) -> None:
        limit_bytes = self._settings.worker_memory_bytes
        for engine in self._up() if limit_bytes is not None else ():
            reason = await engine.leak(limit_bytes or 0)
            if reason is not None:
                self.last_error = reason
                await engine.replace(reason)

    def _nap_s(self) -> float:
        return min([_POLL_S, *(engine.breaker.wait_s or _POLL_S for engine in self.engines)])

    def _on_change(self, failure: str | None) -> None:
        """Choose who computes from now on; runs between two steps, as everything on the event loop does."""
        self.last_error = failure or self.last_error
        up = self._up()
        cleared = [engine for engine in up if engine.cleared]
        self._current = next(iter(cleared or up), None)
        if self._current is not None:
            self._current.served = True
            self.backend = self._current.name
        self.warnings = tuple(self._stand_ins())
        for engine in up:
            assert engine.worker is not None
            hang_s = self._settings.worker_hang_s
            if len(up) > 1:
                patience_s = max(self._settings.failover_s, _HANG_STEPS * engine.worker.step_us / 1e6)
                hang_s = min(hang_s, patience_s)
            engine.worker.hang_s = hang_s
        self._changed.set()

    def _on_slow(self, engine: Engine, reason: str) -> None:
        # A slow answer is better than none.
        if len(self._up()) > 1:
            engine.give_up(reason)

    def _stand_ins(self) -> Sequence[str]:
        if self._current is None:
            return ()
        before = self.engines[: self.engines.index(self._current)]
        return [
            f"backend {self._current.name} stands in for {engine.name}: {engine.breaker.reason}"
            for engine in before
            if engine.served and engine.breaker.reason
        ]

    def _reason(self, engine: Engine) -> str:
        breaker = engine.breaker
        if engine.obstacle is not None:
            return engine.obstacle
        measured = f"; {self._choice.reason}" if self._choice and engine in self._cpu() else ""
        if engine is self._current:
            return f"first in order that passed{measured}"
        if engine.up:
            return f"stands by{measured}"
        if breaker.state != "closed":
            when = f"is tried again in {breaker.wait_s:.1f} s" if breaker.wait_s else "is being tried again"
            return f"failed {breaker.failures} times, the last: {breaker.reason}; it {when}"
        return f"not started: {self.backend or 'none'} serves{measured}"

    def _refusal(self) -> BrainError:
        model_id = self._bundle.manifest.model_id
        why = [f"{device}: {reason}" for device, reason in self._absent.items()]
        why += [
            f"{engine.name}: {engine.error.detail if engine.error else engine.obstacle}" for engine in self.engines
        ]
        errors = [engine.error for engine in self.engines if engine.error is not None]
        kind = CorruptDataError if any(isinstance(e, CorruptDataError) for e in errors) else UnavailableError
        refusal = kind(f"no backend runs model {model_id}: {'; '.join(why)}")
        refusal.__cause__ = errors[-1] if errors else None
        return refusal
