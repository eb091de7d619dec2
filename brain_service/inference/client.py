"""The daemon's side of one worker process: start, submit steps, notice death and hanging, stop.

All methods run on the event loop and none of them blocks it. Starting, waiting and reaping go to threads.
"""

import asyncio
import contextlib
import logging
import signal
import socket
import subprocess
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from brain_service.errors import BrainError, CorruptDataError, UnavailableError
from brain_service.inference.backends import BackendEntry
from brain_service.inference.protocol import (
    MAX_MESSAGE_BYTES,
    Done,
    Kind,
    Run,
    decode_document,
    decode_dones,
    encode_run,
)
from brain_service.inference.spawning import spawn, stop

__all__ = ["Ticket", "WorkerClient", "WorkerLostError"]

log = logging.getLogger(__name__)

_WINDOW = 8
"""Steps given to the worker ahead of its answers: enough to keep it busy, few enough that the rest can still
be dropped here when their deadline passes. A worker that computes batches gets as many as its largest one
holds."""

_STOP_GRACE_S = 2.0
_LATE_STEPS = 5
_SLOW_FACTOR = 3.0
"""So many steps in a row that began in time, came after their deadline and took so many times the median measured
at warm-up: the backend is in trouble (a throttled device, a starved process), and not the client's deadline."""

_SECOND_LOOK_S = 0.01
"""Between the first sign of a hang and the end of it."""

_REFUSALS: Mapping[str, type[BrainError]] = {CorruptDataError.slug: CorruptDataError}


class WorkerLostError(UnavailableError):
    """The worker died under a step, or was stopped; another one may take the step, whose state is unchanged."""


class Ticket:
    """One step on its way through the worker.

    `waiter` gives the answer, or the reason why there will be none; the one who waits may give up on it at any
    time. `settled` turns true only when the worker can no longer touch the row. `backend` names who computes it.
    """

    __slots__ = ("_watchers", "backend", "run", "sent_ns", "settled", "waiter")

    def __init__(self, run: Run, waiter: "asyncio.Future[Done]", backend: str) -> None:
        self.run = run
        self.backend = backend
        self.waiter = waiter
        self.sent_ns = 0
        self.settled = False
        self._watchers: list[Callable[[], None]] = []

    def when_settled(self, callback: Callable[[], None]) -> None:
        """Call `callback` once the row is free; at once if it is."""
        if self.settled:
            callback()
        else:
            self._watchers.append(callback)

    def settle(self) -> None:
        """Mark the row as free and tell those who asked for it."""
        self.settled = True
        for callback in self._watchers:
            callback()
        self._watchers.clear()


class WorkerClient:
    """A running worker. Made by `start`.

    `on_lost(worker, reason)` is called once if it dies unasked, `on_slow(worker, reason)` each time that too many
    steps in a row were late by its own fault. `hang_s` may be changed at any time: a worker that owes an answer
    for so long is killed.
    """

    def __init__(
        self,
        process: "subprocess.Popen[bytes]",
        sock: socket.socket,
        hang_s: float,
        max_queued: int,
        on_lost: "Callable[[WorkerClient, str], None]",
        on_slow: "Callable[[WorkerClient, str], None]",
    ) -> None:
        self.alive = True
        self.report: dict[str, Any] = {}
        self.hang_s = hang_s
        self.dropped = 0
        self._window = _WINDOW
        self._max_queued = max_queued
        self._kill_reason: str | None = None
        self._late = 0
        self._suspect: Ticket | None = None
        self._process = process
        self._socket = sock
        self._on_lost = on_lost
        self._on_slow = on_slow
        self._loop = asyncio.get_running_loop()
        self._loaded: asyncio.Future[dict[str, Any]] = self._loop.create_future()
        self._sequence = 0
        self._in_flight: dict[int, Ticket] = {}
        self._queue: deque[Ticket] = deque()
        self._progress_ns = time.monotonic_ns()
        self._watchdog: asyncio.TimerHandle | None = None
        self._reaper: asyncio.Task[int] | None = None
        self._loop.add_reader(sock.fileno(), self._on_readable)

    @property
    def pid(self) -> int:
        """Process id of the worker."""
        return self._process.pid

    @property
    def backend(self) -> str:
        """Name of the backend in answers, as the worker reports it."""
        return str(self.report["backend"])

    @property
    def step_us(self) -> float:
        """Median step over the golden sequence in microseconds."""
        return float(self.report["step_us"])

    @property
    def busy(self) -> bool:
        """Whether it owes an answer."""
        return bool(self._in_flight or self._queue)

    @classmethod
    async def start(
        cls,
        entry: BackendEntry,
        order: Mapping[str, Any],
        memory_fd: int,
        *,
        timeout_s: float,
        hang_s: float,
        max_queued: int,
        on_lost: "Callable[[WorkerClient, str], None]",
        on_slow: "Callable[[WorkerClient, str], None]",
    ) -> "WorkerClient":
        """Start a process, give it its LOAD `order` and the arena, and return when it is warm and checked.

        Raises:
            CorruptDataError: the bundle does not verify or fails the golden check.
            UnavailableError: the process died, its runtime failed, or it took longer than `timeout_s`.
        """
        spawning = asyncio.ensure_future(asyncio.to_thread(spawn, entry, order, memory_fd))
        try:
            process, sock = await asyncio.shield(spawning)
        except asyncio.CancelledError:
            process, sock = await spawning
            sock.close()
            await asyncio.to_thread(stop, process, 0.0)
            raise
        client = cls(process, sock, hang_s, max_queued, on_lost, on_slow)
        async with contextlib.AsyncExitStack() as undo:
            undo.push_async_callback(client.close, grace_s=0.0)
            try:
                async with asyncio.timeout(timeout_s):
                    client.report = await client._loaded
            except TimeoutError as error:
                raise UnavailableError(
                    f"{entry.name}: the worker was not ready within {timeout_s} s; "
                    "see its log, or raise inference.worker_start_timeout_s"
                ) from error
            undo.pop_all()
        return client

    def submit(self, row: int, read_slot: int, deadline_ns: int, bucket: int = 0, place: int = 0) -> Ticket:
        """Ask for one step of `row`; the answer, or the loss of the worker, comes through the ticket.

        The caller writes the row's request before and touches the row only after the ticket is settled. Of more
        than `max_queued` steps that wait for the worker the oldest is dropped: its observation is the stalest.
        `bucket` and `place` are for a replay; see `Run`.

        Raises:
            WorkerLostError: the worker is gone.
        """
        if not self.alive:
            raise WorkerLostError("the inference worker is gone and being started again; retry this step")
        self._sequence += 1
        run = Run(self._sequence, row, read_slot, deadline_ns, bucket, place)
        ticket = Ticket(run, self._loop.create_future(), self.backend)
        self._queue.append(ticket)
        self._pump()
        if len(self._queue) > self._max_queued:
            self._drop_oldest()
        return ticket

    def kill(self, reason: str) -> None:
        """End the process at once; its death is then noticed as any other."""
        if self.alive:
            log.error("killing inference worker %d: %s", self.pid, reason)
            self._kill_reason = reason
            self._process.send_signal(signal.SIGKILL)

    async def close(self, grace_s: float = _STOP_GRACE_S) -> None:
        """Stop the worker: it exits when its socket closes, or is killed after `grace_s`."""
        if self.alive:
            self._detach()
            await asyncio.to_thread(stop, self._process, grace_s)
            self._settle_all("the inference worker was stopped")
        if self._reaper is not None:
            await self._reaper

    def _pump(self) -> None:
        while self._queue and len(self._in_flight) < self._window:
            ticket = self._queue.popleft()
            if ticket.waiter.done():
                ticket.settle()
                continue
            try:
                self._socket.send(encode_run(ticket.run))
            except BlockingIOError:
                self._queue.appendleft(ticket)
                return
            except OSError:
                # The reader sees the closed socket too and settles what is in flight, this one with it.
                log.debug("inference worker %d: cannot send", self.pid)
            ticket.sent_ns = time.monotonic_ns()
            self._in_flight[ticket.run.sequence] = ticket
            if self._watchdog is None:
                self._watch(self.hang_s)

    def _drop_oldest(self) -> None:
        ticket = self._queue.popleft()
        if not ticket.waiter.done():
            self.dropped += 1
            ticket.waiter.set_exception(
                UnavailableError(
                    f"dropped as the oldest of more than {self._max_queued} steps that wait for one worker; the "
                    "state is unchanged, send the step again with a fresh observation (inference.max_queued_steps)"
                )
            )
        ticket.settle()

    def _on_readable(self) -> None:
        try:
            message = self._socket.recv(MAX_MESSAGE_BYTES)
        except BlockingIOError:
            return
        except OSError:
            message = b""
        if not message:
            self._lose(f"the inference worker {self._kill_reason or 'died'}")
        elif not self._loaded.done():
            self._on_report(message)
        elif message[0] == Kind.TELEMETRY:
            self._on_telemetry(message)
        elif message[0] == Kind.WARMED:
            self._on_warmed(message)
        else:
            self._on_dones(message)

    def _on_report(self, message: bytes) -> None:
        try:
            kind, document = decode_document(message)
        except CorruptDataError as error:
            self._loaded.set_exception(error)
            return
        if kind == Kind.LOADED:
            self._loaded.set_result(document)
        else:
            refusal = _REFUSALS.get(str(document.get("slug")), UnavailableError)
            self._loaded.set_exception(refusal(str(document.get("detail"))))

    def _on_telemetry(self, message: bytes) -> None:
        try:
            _, self.report["telemetry"] = decode_document(message)
        except CorruptDataError as error:
            self.kill(f"sent what is no telemetry: {error}")

    def _on_warmed(self, message: bytes) -> None:
        try:
            _, document = decode_document(message)
            self._window = max(_WINDOW, *map(int, document["cost_in_steps"]))
        except (CorruptDataError, KeyError, ValueError) as error:
            self.kill(f"sent what is no report: {error}")
            return
        self.report |= {"batches": document}
        self._pump()

    def _on_dones(self, message: bytes) -> None:
        try:
            answered = [(done, self._in_flight.pop(done.sequence)) for done in decode_dones(message)]
        except (CorruptDataError, KeyError) as error:
            self.kill(f"sent what is not an answer: {error}")
            return
        self._progress_ns = time.monotonic_ns()
        for done, ticket in answered:
            if not ticket.waiter.done():
                ticket.waiter.set_result(done)
            ticket.settle()
        if self._queue:
            self._pump()
        # The steps of a batch take their time together: the last one speaks for all.
        done, ticket = answered[-1]
        if done.end_ns <= ticket.run.deadline_ns:
            self._late = 0
        elif done.end_ns - done.start_ns > _SLOW_FACTOR * 1e3 * self.step_us * done.bucket:
            self._count_late((done.end_ns - done.start_ns) / 1e3)

    def _count_late(self, took_us: float) -> None:
        self._late += 1
        if self._late == _LATE_STEPS:
            self._late = 0
            self._on_slow(
                self,
                f"{_LATE_STEPS} steps in a row timed out, the last after {took_us:.0f} us in place of the "
                f"{self.step_us:.0f} us measured at warm-up",
            )

    def _watch(self, delay_s: float) -> None:
        self._watchdog = self._loop.call_later(delay_s, self._check_progress)

    def _check_progress(self) -> None:
        self._watchdog = None
        if not self._in_flight or not self.alive:
            return
        oldest = next(iter(self._in_flight.values()))
        idle_s = (time.monotonic_ns() - max(oldest.sent_ns, self._progress_ns)) / 1e9
        if idle_s >= self.hang_s and self._suspect is not oldest:
            # After a stall of our own the answer may lie in the socket: look there first.
            self._suspect = oldest
            self._watch(_SECOND_LOOK_S)
        elif idle_s >= self.hang_s:
            self.kill(f"gave no answer for {idle_s:.2f} s and was killed")
        else:
            self._watch(self.hang_s - idle_s)

    def _lose(self, reason: str) -> None:
        # The kernel closes a process's sockets after its memory map, so from here on no row is written to.
        self._detach()
        self._reaper = self._loop.create_task(asyncio.to_thread(self._process.wait))
        self._reaper.add_done_callback(lambda task: log.warning("%s: exit code %d", reason, task.result()))
        self._settle_all(reason)
        if self._loaded.done():
            self._on_lost(self, reason)
        else:
            self._loaded.set_exception(UnavailableError(f"{reason} while it loaded the model; see its log"))

    def _detach(self) -> None:
        self.alive = False
        self._loop.remove_reader(self._socket.fileno())
        self._socket.close()
        if self._watchdog is not None:
            self._watchdog.cancel()

    def _settle_all(self, reason: str) -> None:
        tickets = [*self._in_flight.values(), *self._queue]
        self._in_flight.clear()
        self._queue.clear()
        for ticket in tickets:
            if not ticket.waiter.done():
                ticket.waiter.set_exception(WorkerLostError(f"{reason}; the state is unchanged, retry this step"))
            ticket.settle()
