"""`record` of `/infer`: what the policy did becomes an episode, without the action waiting for it.

The reward and the executed action of step t arrive with request t + 1, so each session holds one answered step
back until then; ending the session or the episode writes it with reward 0. Steps carry `control_role: policy`:
imitation never trains on them.

What cannot be recorded (full medium, ended episode) never keeps an action back: the session's next answer carries
a warning, and `/health` counts the steps.
"""

import asyncio
import contextlib
import logging
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import numpy as np

from brain_service.episodes.schema import StepIn
from brain_service.episodes.store import EpisodeStore
from brain_service.errors import BrainError, UnavailableError
from brain_service.inference.calls import InferReply, InferRequest

__all__ = ["Recorder"]

log = logging.getLogger(__name__)

# A medium that stalls for so long loses recordings, not the daemon's memory.
MAX_WAITING_STEPS = 4096
MAX_WAITING_BYTES = 64 * 1024**2
# Appended at once: under durability `step` a flush is shared by all that arrived during the one before.
_TOGETHER = 64
_NUMBER_BYTES = 32
_REMEMBERED_LOSSES = 4096


@dataclass(frozen=True)
class _Held:
    episode_id: str
    observation: Mapping[str, Any]
    reply: InferReply
    timestamp_ns: int

    def step(self, reward: float | None, executed_action: Mapping[str, Any] | None) -> StepIn:
        # What the next step was computed with is told by what is absent too: a replay must do the same.
        untold = {"reward_given": False} if reward is None else {}
        return StepIn(
            observation=dict(self.observation),
            action=dict(self.reply.action),
            reward=reward or 0.0,
            timestamp_ns=self.timestamp_ns,
            control_role="policy",
            executed_action=dict(executed_action) if executed_action is not None else None,
            policy={
                "model_id": self.reply.model_id,
                "backend": self.reply.backend,
                "state_step": self.reply.state_step,
                "bucket": self.reply.bucket,
                "row": self.reply.row,
                **untold,
            },
        )


@dataclass(frozen=True)
class _Waiting:
    session_id: str
    episode_id: str
    step: StepIn
    size_bytes: int


class Recorder:
    """Appends answered steps in order, from one background task; use it as an async context manager."""

    def __init__(self, store: EpisodeStore) -> None:
        self._store = store
        self._held: dict[str, _Held] = {}
        self._queue: asyncio.Queue[_Waiting] = asyncio.Queue(MAX_WAITING_STEPS)
        self._waiting_bytes = 0
        self._unsettled: Counter[str] = Counter()
        self._settled = asyncio.Condition()
        self._task: asyncio.Task[None] | None = None
        # What a session's next answer has to say: steps lost since the last one, and why.
        self._losses: dict[str, tuple[int, str]] = {}
        self.failed_steps = 0
        self.last_error = ""

    async def __aenter__(self) -> "Recorder":
        self._task = asyncio.create_task(self._append_all())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for session_id in list(self._held):
            self.release(session_id)
        await self._wait_settled()
        assert self._task is not None
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task

    def answered(self, episode_id: str | None, request: InferRequest, reply: InferReply) -> tuple[str, ...]:
        """Take note of an answered action; a repeated answer changes nothing. Never waits.

        With `episode_id` None the step before is still completed, and this one is not recorded. Returns the
        warnings that this answer is to carry: steps of the session that were not recorded, and why.
        """
        held = self._held.get(request.session_id)
        if held is not None and reply.step == held.reply.step:
            return ()
        if held is not None:
            del self._held[request.session_id]
            follows = reply.step == held.reply.step + 1
            step = held.step(request.reward, request.executed_action) if follows else held.step(0.0, None)
            self._enqueue(request.session_id, held.episode_id, step)
        if episode_id is not None:
            self._held[request.session_id] = _Held(episode_id, request.observation, reply, time.time_ns())
        steps, reason = self._losses.pop(request.session_id, (0, ""))
        return (f"not recorded: {steps} steps; {reason}",) if steps else ()

    def release(self, session_id: str) -> None:
        """Queue the step that this session holds back, if any: it ends, or begins anew."""
        self._losses.pop(session_id, None)
        held = self._held.pop(session_id, None)
        if held is not None:
            self._enqueue(session_id, held.episode_id, held.step(0.0, None))

    async def finish(self, episode_id: str) -> None:
        """Write all that belongs to this episode; call it before the episode ends."""
        for session_id, held in list(self._held.items()):
            if held.episode_id == episode_id:
                self.release(session_id)
        await self._wait_settled(episode_id)

    def _enqueue(self, session_id: str, episode_id: str, step: StepIn) -> None:
        size_bytes = _size_bytes(step.observation)
        if self._queue.full() or self._waiting_bytes + size_bytes > MAX_WAITING_BYTES:
            waiting = f"{self._queue.qsize()} steps of {self._waiting_bytes} bytes"
            self._fail(session_id, episode_id, UnavailableError(f"{waiting} wait for the medium already"))
            return
        self._waiting_bytes += size_bytes
        self._unsettled[episode_id] += 1
        self._queue.put_nowait(_Waiting(session_id, episode_id, step, size_bytes))

    def _fail(self, session_id: str, episode_id: str, error: BrainError) -> None:
        self.failed_steps += 1
        self.last_error = error.detail
        lost, _ = self._losses.pop(session_id, (0, ""))
        self._losses[session_id] = lost + 1, f"{error.slug}: episode {episode_id}: {error.detail}"
        if len(self._losses) > _REMEMBERED_LOSSES:
            # Of a session that ended before its last step was refused.
            del self._losses[next(iter(self._losses))]
        log.warning("step not recorded", extra={"episode_id": episode_id, "reason": error.detail})

    async def _wait_settled(self, episode_id: str | None = None) -> None:
        """Wait until nothing of an episode, or of any, waits to be written."""
        async with self._settled:
            await self._settled.wait_for(
                lambda: not (self._unsettled if episode_id is None else self._unsettled[episode_id])
            )

    async def _append_all(self) -> None:
        while True:
            taken = [await self._queue.get()]
            while len(taken) < _TOGETHER and not self._queue.empty():
                taken.append(self._queue.get_nowait())
            by_episode: dict[str, list[_Waiting]] = {}
            for waiting in taken:
                by_episode.setdefault(waiting.episode_id, []).append(waiting)
            await asyncio.gather(*(self._append(episode_id, steps) for episode_id, steps in by_episode.items()))
            self._waiting_bytes -= sum(waiting.size_bytes for waiting in taken)
            async with self._settled:
                for episode_id, steps in by_episode.items():
                    self._unsettled[episode_id] -= len(steps)
                    if not self._unsettled[episode_id]:
                        del self._unsettled[episode_id]
                self._settled.notify_all()

    async def _append(self, episode_id: str, steps: Sequence[_Waiting]) -> None:
        """Append steps of one episode; where one of them is refused, each by itself."""
        try:
            await self._store.run(self._store.append, episode_id, [waiting.step for waiting in steps])
        except BrainError as error:
            if len(steps) == 1 or isinstance(error, UnavailableError):
                for waiting in steps:
                    self._fail(waiting.session_id, episode_id, error)
                return
            for waiting in steps:
                await self._append(episode_id, [waiting])
        except Exception as error:
            # A defect met by one step must not end the recording of all.
            log.exception("unexpected error", extra={"episode_id": episode_id})
            for waiting in steps:
                self._fail(waiting.session_id, episode_id, BrainError(str(error)))


def _size_bytes(tree: Any) -> int:
    """Return about how much memory a decoded value takes, without looking at every number."""
    if isinstance(tree, Mapping):
        return sum(map(_size_bytes, tree.values()))
    if isinstance(tree, list) and tree and isinstance(tree[0], list):
        return sum(map(_size_bytes, tree))
    if isinstance(tree, np.ndarray):
        return tree.nbytes
    return (
        len(tree)
        if isinstance(tree, str | bytes)
        else _NUMBER_BYTES * (len(tree) if isinstance(tree, list) else 1)
    )
