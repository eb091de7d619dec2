"""Bodies on their way into the log: taken in order, answered without a thread waiting for the medium.

Calls that wait for the same episode go to its log in one write; what they get back is told to their event loop in
one wake-up.

Two lanes. What is small and usual is done by one thread, the capture thread, one call after the other: a hand-over
to a pool costs several times what such a step does. What takes longer (a large body, a log that has to be opened
first, an episode that another thread is at) is done by a few threads of their own, and what follows it for the
same episode waits there too, so that the order of an episode is kept and the others go on.
"""

import asyncio
import contextlib
import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from typing import Protocol

import msgspec

from brain_service.episodes.answers import Appended, Ingested, Taken
from brain_service.episodes.durable_mark import WhenDurable
from brain_service.episodes.wire import BodyKind, body_kind
from brain_service.errors import BrainError, UnavailableError

__all__ = ["Ingest", "Ingested", "Taker"]

_SMALL_BYTES = 64 * 1024
# From here on a body is read with pauses, for others to have the interpreter.
_LONG_BYTES = 256 * 1024
_SLOW_THREADS = 4
# How much is looked at together: no more than a few milliseconds of steps.
_TOGETHER = 64
_TOGETHER_BYTES = 256 * 1024
# Of the room for what waits, as much as one episode may take, so that one robot shuts out no other.
_SHARE = 0.5
# What a waiting body costs beside its bytes.
_BODY_BYTES = 512
_RETRY_AFTER_S = 0.25


class Taker(Protocol):
    """An open episode, as `EpisodeWriter` is one."""

    answers_when_durable: bool

    @property
    def durable_through(self) -> int:
        """Highest step index on the medium."""

    def take(self, bodies: Sequence[bytes], kind: BodyKind, *, considerate: bool = False) -> Taken:
        """Append bodies in order."""

    def take_now(self, bodies: Sequence[bytes], kind: BodyKind) -> Taken | None:
        """Append bodies in order unless another thread is at it."""

    def when_durable(self, step_index: int, call: WhenDurable) -> None:
        """Have `call` called once the step is on the medium."""


class _Replies:
    """Answers on their way to one event loop; those that are ready together share one wake-up."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._ready: deque[tuple[asyncio.Future[Ingested], Ingested | Exception]] = deque()
        self._woken = False

    def put(self, future: "asyncio.Future[Ingested]", found: Ingested | Exception) -> None:
        """Answer a call; from any thread."""
        self._ready.append((future, found))
        # Read after the answer is in place: whoever resets it looks for answers afterwards.
        if not self._woken:
            self._woken = True
            # A loop that has closed meanwhile listens no more.
            with contextlib.suppress(RuntimeError):
                self.loop.call_soon_threadsafe(self._deliver)

    def _deliver(self) -> None:
        self._woken = False
        while self._ready:
            future, found = self._ready.popleft()
            if future.done():
                continue
            if isinstance(found, Ingested):
                future.set_result(found)
            else:
                future.set_exception(found)


class _Call(msgspec.Struct):
    episode_id: str
    bodies: Sequence[bytes]
    kind: BodyKind
    size_bytes: int
    cost_bytes: int
    future: "asyncio.Future[Ingested]"
    replies: _Replies

    @property
    def is_small(self) -> bool:
        """Whether the capture thread does it."""
        return self.size_bytes <= _SMALL_BYTES

    def goes_with(self, other: "_Call") -> bool:
        """Whether both can be one write."""
        return self.kind == other.kind and self.is_small and other.is_small


class Ingest:
    """The lanes of a store. `submit` runs on event loops and never blocks; all else happens on threads of its own.

    `known` returns an episode that is open already, `find` opens it if need be (it may block and raises what a
    request should be answered), `noted` is told how each call ended.
    """

    def __init__(
        self,
        known: Callable[[str], Taker | None],
        find: Callable[[str], Taker],
        noted: Callable[[BrainError | None], None],
        max_queued_bytes: int,
    ) -> None:
        self._known = known
        self._find = find
        self._noted = noted
        self._max_queued_bytes = max_queued_bytes
        self._queue: SimpleQueue[_Call | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._queued_bytes = 0
        self._queued_of: dict[str, int] = {}
        self._slow: dict[str, deque[_Call]] = {}
        self._replies: dict[asyncio.AbstractEventLoop, _Replies] = {}
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="capture", daemon=True)
        self._pool = ThreadPoolExecutor(_SLOW_THREADS, thread_name_prefix="capture-slow")

    @property
    def queued_bytes(self) -> int:
        """Bytes of bodies that wait to be written."""
        return self._queued_bytes

    def start(self) -> None:
        """Start the capture thread."""
        self._thread.start()

    def close(self) -> None:
        """Finish what waits and stop; later calls are refused."""
        with self._lock:
            self._closing = True
        self._queue.put(None)
        if self._thread.ident is not None:
            self._thread.join()
        self._pool.shutdown()

    def submit(self, episode_id: str, bodies: Sequence[bytes], content_type: str) -> "asyncio.Future[Ingested]":
        """Queue bodies of one episode; every refusal comes through the future as well."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Ingested] = loop.create_future()
        size_bytes = sum(map(len, bodies))
        cost_bytes = size_bytes + _BODY_BYTES * (len(bodies) + 1)
        with self._lock:
            refusal = self._refusal(episode_id, cost_bytes)
            if refusal is None:
                self._queued_bytes += cost_bytes
                self._queued_of[episode_id] = self._queued_of.get(episode_id, 0) + cost_bytes
                call = _Call(
                    episode_id,
                    bodies,
                    body_kind(content_type),
                    size_bytes,
                    cost_bytes,
                    future,
                    self._replies_of(loop),
                )
                # Under the lock, so that nothing comes behind the mark that ends the queue.
                self._queue.put(call)
        if refusal is not None:
            future.set_result(Ingested(None, 0, refusal))
        return future

    def _refusal(self, episode_id: str, cost_bytes: int) -> UnavailableError | None:
        if self._closing:
            return UnavailableError("the daemon is shutting down; resend to the next one", retry_after_s=1.0)
        mine, limit = self._queued_of.get(episode_id, 0), self._max_queued_bytes
        if self._queued_bytes + cost_bytes > limit or (mine and mine + cost_bytes > _SHARE * limit):
            return UnavailableError(
                f"{self._queued_bytes} bytes of steps wait for the medium already, {mine} of this episode; the "
                f"limit is max_queued_bytes = {limit}, for one episode half of it; resend later",
                retry_after_s=_RETRY_AFTER_S,
            )
        return None

    def _replies_of(self, loop: asyncio.AbstractEventLoop) -> _Replies:
        found = self._replies.get(loop)
        if found is None:
            self._replies = {known: it for known, it in self._replies.items() if not known.is_closed()}
            found = self._replies[loop] = _Replies(loop)
        return found

    def _run(self) -> None:
        ended = False
        while not ended:
            call = self._queue.get()
            calls = []
            room_bytes = _TOGETHER_BYTES
            while call is not None:
                calls.append(call)
                room_bytes -= call.size_bytes
                if len(calls) == _TOGETHER or room_bytes <= 0 or self._queue.empty():
                    break
                call = self._queue.get()
            ended = call is None
            for run in _runs(calls) if len(calls) > 1 else [calls] * len(calls):
                self._do(run)

    def _do(self, run: Sequence[_Call]) -> None:
        """See to calls of one episode that are one write, or hand them to the slow lane."""
        while run and not self._wait_behind(run):
            try:
                answered = self._do_now(run)
            except Exception as error:  # noqa: BLE001 - a defect met in one call must not end the thread for all
                for call in run:
                    self._settle(call, error)
                return
            if not answered:
                with self._lock:
                    self._slow[run[0].episode_id] = deque(run[1:])
                self._pool.submit(self._do_slowly, run[0])
                return
            run = run[answered:]

    def _do_now(self, run: Sequence[_Call]) -> int:
        """Do calls up to the first that meets an error and return how many; 0 if they need the slow lane."""
        taker = self._known(run[0].episode_id) if run[0].is_small else None
        taken = (
            None if taker is None else taker.take_now([body for call in run for body in call.bodies], run[0].kind)
        )
        if taker is None or taken is None:
            return 0
        place = 0
        for number, call in enumerate(run, start=1):
            mine = taken.appended[place : place + len(call.bodies)]
            place += len(call.bodies)
            met_error = len(mine) < len(call.bodies)
            self._answer(call, taker, mine, taken.error if met_error else None)
            if met_error:
                return number
        return len(run)

    def _wait_behind(self, run: Sequence[_Call]) -> bool:
        """Queue calls behind the slow one of their episode; False if there is none."""
        if run[0].episode_id not in self._slow:
            return False
        with self._lock:
            waiting = self._slow.get(run[0].episode_id)
            if waiting is not None:
                waiting.extend(run)
            return waiting is not None

    def _do_slowly(self, call: _Call) -> None:
        following: _Call | None = call
        while following is not None:
            call = following
            try:
                taker = self._find(call.episode_id)
                taken = taker.take(call.bodies, call.kind, considerate=call.size_bytes > _LONG_BYTES)
                self._answer(call, taker, taken.appended, taken.error)
            except BrainError as error:
                self._settle(call, Ingested(None, 0, error))
            except Exception as error:  # noqa: BLE001 - as in `_do`, and the calls behind it have to go on
                self._settle(call, error)
            with self._lock:
                waiting = self._slow[call.episode_id]
                following = waiting.popleft() if waiting else None
                if following is None:
                    del self._slow[call.episode_id]

    def _answer(self, call: _Call, taker: Taker, accepted: Sequence[Appended], error: BrainError | None) -> None:
        if not accepted or not taker.answers_when_durable:
            self._settle(call, Ingested(accepted[-1] if accepted else None, len(accepted), error))
            return
        last = accepted[-1]

        def answer(refused: BrainError | None) -> None:
            if refused is not None:
                call.replies.put(call.future, Ingested(None, 0, refused))
                return
            durable = Appended(last.step_index, taker.durable_through, last.accepted)
            call.replies.put(call.future, Ingested(durable, len(accepted), error))

        self._release(call)
        self._noted(error)
        taker.when_durable(last.step_index, answer)

    def _settle(self, call: _Call, found: Ingested | Exception) -> None:
        self._release(call)
        if isinstance(found, Ingested):
            self._noted(found.error)
        call.replies.put(call.future, found)

    def _release(self, call: _Call) -> None:
        """Give back the room of a call, once: a defect behind its answer settles it again."""
        with self._lock:
            cost_bytes, call.cost_bytes = call.cost_bytes, 0
            self._queued_bytes -= cost_bytes
            left_bytes = self._queued_of.get(call.episode_id, 0) - cost_bytes
            if left_bytes > 0:
                self._queued_of[call.episode_id] = left_bytes
            else:
                self._queued_of.pop(call.episode_id, None)


def _runs(calls: Iterable[_Call]) -> list[list[_Call]]:
    """Return the calls by episode, in their order, together with those that can be one write."""
    by_episode: dict[str, list[list[_Call]]] = {}
    for call in calls:
        mine = by_episode.setdefault(call.episode_id, [])
        if mine and call.goes_with(mine[-1][0]):
            mine[-1].append(call)
        else:
            mine.append([call])
    return [run for mine in by_episode.values() for run in mine]
