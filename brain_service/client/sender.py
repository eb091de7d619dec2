"""The background half of a recorder: brings what the outbox holds to the daemon, whatever happens on the way."""

import asyncio
import contextlib
import logging
import math
import random
from collections.abc import Callable
from typing import Literal

import httpx

from brain_service.client.calls import Call, ask, episode_path, fetch_json, read_object, run_async
from brain_service.client.endpoint import Endpoint
from brain_service.client.errors import (
    BusyError,
    ClientError,
    ConflictError,
    EndedError,
    LostStepsError,
    ProblemError,
    RejectedError,
    TimedOutError,
    is_passing,
)
from brain_service.client.links import Link, NoStreamError, PostLink, StreamLink
from brain_service.client.outbox import Outbox
from brain_service.client.parts import Ended, part_body, part_ids
from brain_service.client.spool import Spool
from brain_service.client.wire import JsonObject, renumber, to_json

__all__ = ["Sender", "Transport"]

log = logging.getLogger(__name__)

Transport = Literal["stream", "post"]

MAX_BATCH_STEPS = 256
MAX_BATCH_BYTES = 1024 * 1024
LINGER_S = 0.01  # how often the sender looks for steps while they come
QUIET_S = 1.0  # without a step for so long it sleeps until one rings
FIRST_BACKOFF_S = 0.05
MAX_BACKOFF_S = 1.0


class Sender:
    """One recording's way to the daemon. `wake` may be called from any thread, the rest on the loop of `run`.

    `accepted_through` and `durable_through` are the highest step indices that the daemon accepted and has on its
    medium (-1: none); a power cut of the daemon's computer can lower the first, never the second. `failure` is the
    error that made it give up, `trouble` what last went wrong and may pass, `refused_end` why the daemon did not
    end the episode in the way that `finish` asked for. `episode_ids` are the recording's episodes, the last of
    them takes steps; all indices here are the recording's.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        http: httpx.AsyncClient,
        create_body: JsonObject,
        outbox: Outbox,
        *,
        transport: Transport = "stream",
        resumed: bool = False,
    ) -> None:
        self.outbox = outbox
        self.accepted_through = self.durable_through = outbox.first_index - 1
        self._done: Ended | None = None
        self.ended: Ended | None = None  # the same, once the spool is gone too
        self.failure: ClientError | None = None
        self.trouble: ClientError | None = None
        self.refused_end: ProblemError | None = None
        self._first_body = create_body
        self._endpoint = endpoint
        self._http = http
        self._transport = transport
        self._resumed = resumed
        self._begin_part([0] if outbox.spool is None else [0, *outbox.spool.continued_at])
        self._end_body: bytes | None = None
        self._troubles = 0
        self._batch_limit = MAX_BATCH_STEPS
        self._loop = asyncio.get_running_loop()
        self._more = asyncio.Event()
        self._pulse = asyncio.Event()
        self._idle = False
        self._last_taken_s = 0.0

    def _begin_part(self, first_indices: list[int]) -> None:
        """Turn to the recording's latest episode, given the first step of each."""
        self._first_indices, self._base = first_indices, first_indices[-1]
        count = len(first_indices)
        self.episode_ids = part_ids(self._first_body["episode_id"], count)
        self.episode_id = self.episode_ids[-1]
        self._path = episode_path(self.episode_id)
        self._create_body = to_json(part_body(self._first_body, count))
        self._posting = PostLink(self._http, self.episode_id)
        streaming = StreamLink(self._endpoint, self._http, self.episode_id)
        self._preferred: Link = streaming if self._transport == "stream" else self._posting
        self._link: Link = self._preferred
        self._created = self._settled = False
        self._may_exist = self._resumed or count > 1
        self._single_through = -1

    # --- the recorder's side

    def wake(self) -> None:
        """Tell the sender that the outbox holds a new step; from any thread, and cheap while it is busy."""
        if self._idle:
            self._idle = False
            self._loop.call_soon_threadsafe(self._more.set)

    def finish(self, body: bytes) -> None:
        """End the episode with this JSON body once every step of the outbox is accepted."""
        self._end_body, self.refused_end = body, None
        self._more.set()

    @property
    def ending(self) -> bool:
        """Whether `finish` was called."""
        return self._end_body is not None

    def stop(self) -> None:
        """Take note that nobody sends any more, once `run` was cancelled; what is on disk stays."""
        self.ended = self._done
        if self.failure is None and self.ended is None:
            self.failure = EndedError(f"the client of episode {self.episode_id} is closed; the step was not taken")
            self.outbox.close(self.failure)
        self._notify()

    async def until_ended(self, timeout_s: float | None, what: str) -> Ended:
        """Wait until the episode has ended as `finish` asked.

        Raises:
            ProblemError: it cannot end in that way; `finish` may ask for another.
            TimedOutError: not within `timeout_s` seconds.
            ClientError: the sender gave up.
        """
        await self.until(lambda: self.ended is not None or self.refused_end is not None, timeout_s, what)
        if self.refused_end is not None:
            raise self.refused_end
        assert self.ended is not None
        return self.ended

    async def until(self, done: Callable[[], bool], timeout_s: float | None, what: str) -> None:
        """Wait until `done()`, asked whenever something changes.

        Raises:
            TimedOutError: not within `timeout_s` seconds.
            ClientError: the sender gave up.
        """
        try:
            async with asyncio.timeout(timeout_s):
                while not done():
                    if self.failure is not None:
                        raise self.failure
                    await self._pulse.wait()
        except TimeoutError as error:
            waiting = self.outbox.next_index - 1 - self.durable_through
            trouble = "" if self.trouble is None else f"; last trouble: {self.trouble.detail}"
            raise TimedOutError(
                f"{what} of {self.episode_id} did not happen within {timeout_s} s: of {self.outbox.next_index} "
                f"steps {self.accepted_through + 1} are accepted, {waiting} are not durable{trouble}"
            ) from error

    # --- the background

    async def run(self) -> None:
        """Work until the episode has ended or the daemon refuses for good."""
        while self.ended is None and self.failure is None:
            try:
                await self._go()
            except ClientError as error:
                await self._consider(error)
            except Exception as error:
                # The sender's own boundary: whoever waits for it is told why it ended.
                log.exception("the sender of episode %s failed", self.episode_id)
                self.failure = ClientError(f"unexpected {type(error).__name__} while sending: {error}")
        self._notify()

    async def _go(self) -> None:
        if not self._created:
            await self._create()
        if not self._settled:
            await self._settle()
        if self._settled:
            await self._link.deliver(self)
            await self._end()
        if self._done is not None:
            reason = EndedError(f"episode {self.episode_id} has ended; the step was not taken")
            await asyncio.to_thread(self.outbox.close, reason, Spool.remove)
            self.ended = self._done

    async def _create(self) -> None:
        headers = {"Content-Type": "application/json", "Idempotency-Key": self.episode_id}
        call = Call("POST", "/episodes", self._create_body, headers=headers)
        try:
            await run_async(self._http, ask(call))
        except ConflictError:
            if not self._may_exist:
                raise
        except ClientError as error:
            # Without an answer it may have been created: then a repeat that finds it is ours.
            self._may_exist = self._may_exist or not isinstance(error, BusyError)
            raise
        else:
            self._settled = not self._may_exist
        self._created = True

    async def _settle(self) -> None:
        """Ask the daemon what it has, and go on from there."""
        summary = await run_async(self._http, fetch_json(self._path))
        steps: int = self._base + summary["steps"]
        state: str = summary["state"]
        if state in ("open", "recovered"):
            self._check_nothing_is_lost(steps)
        if state == "recovered":
            await self._go_on_elsewhere(steps)
        elif state != "open":
            if steps < self.outbox.next_index or self._end_body is None:
                raise EndedError(
                    f"episode {self.episode_id} has ended as {state} with {steps} steps; {self.outbox.next_index} "
                    "were recorded. Start another one"
                )
            self._note(steps - 1, steps - 1)
            self._done = Ended(steps, steps - 1, state, self.episode_ids)
        else:
            # What it has beyond our last acknowledgement is sent again: it takes our own steps for what they are,
            # and refuses them where another client wrote under their indices.
            known = max(self._base, min(steps, self.accepted_through + 1))
            self.outbox.rewind(known)
            self._settled = True
            durable_through = min(known - 1, self._base + summary["durable_through"])
            self._note(known - 1, max(self.durable_through, durable_through))

    def _check_nothing_is_lost(self, steps: int) -> None:
        if steps <= self.durable_through or steps < self.outbox.first_index:
            raise LostStepsError(
                f"the daemon has {steps} steps of episode {self.episode_id}, but called "
                f"{self.durable_through + 1} durable; those before {self.outbox.first_index} are kept nowhere else"
            )
        if steps > self.outbox.next_index and not self._resumed:
            raise EndedError(
                f"the daemon has {steps} steps of episode {self.episode_id}, only {self.outbox.next_index} were "
                "recorded here: another client writes it; start another one"
            )

    async def _go_on_elsewhere(self, steps: int) -> None:
        """Go on in another episode with what follows these steps: the daemon closed this one meanwhile."""
        self.outbox.rewind(steps)
        self.trouble, self._troubles = None, 0
        self._note(steps - 1, steps - 1)
        while steps >= self.outbox.next_index and not self.ending:
            await self.wait()
        if steps >= self.outbox.next_index:
            self._done = Ended(steps, steps - 1, "recovered", self.episode_ids)
            return
        first_indices = [*self._first_indices, steps]
        if self.outbox.spool is not None:
            await asyncio.to_thread(self.outbox.spool.keep_continued, first_indices[1:])
        log.warning("the daemon closed episode %s; another one goes on from step %d", self.episode_id, steps)
        self._begin_part(first_indices)

    async def _end(self) -> None:
        try:
            response = await run_async(self._http, ask(Call("POST", f"{self._path}/end", self._end_body)))
        except ProblemError as error:
            if is_passing(error):
                raise
            # The way it was to end is wrong, not what was recorded: it can be asked to end in another way.
            self.refused_end, self._end_body = error, None
            self._notify()
            return
        answer = read_object(response)
        steps: int = self._base + answer["steps"]
        if steps < self.outbox.next_index:
            raise LostStepsError(
                f"episode {self.episode_id} ended with {steps} of {self.outbox.next_index} steps: the daemon's "
                "computer lost the rest before it was durable"
            )
        summary = await run_async(self._http, fetch_json(self._path))
        self._note(steps - 1, self._base + answer["durable_through"])
        self._done = Ended(steps, self.durable_through, summary["state"], self.episode_ids)

    async def _consider(self, error: ClientError) -> None:
        """Wait and go on where an error passes; otherwise give up."""
        self._settled = False
        unaccepted = self.outbox.cursor - 1 - self.accepted_through
        if isinstance(error, NoStreamError):
            log.info("episode %s goes by POST: %s", self.episode_id, error.detail)
            self._link = self._posting
        elif is_passing(error) or self._is_gap(error):
            await self._pause(error)
            self._link = self._preferred  # what came back may carry what its predecessor did not
        elif isinstance(error, ProblemError) and unaccepted > 0 and self.accepted_through >= self._single_through:
            # One wrong step refuses its whole batch: first bring those before it home, one by one. And an episode
            # that was ended elsewhere refuses every step: settling anew tells.
            self._single_through = self.outbox.cursor - 1
            if error.status == 413:
                self._batch_limit = max(1, self._batch_limit // 2)
        else:
            await self._give_up(error)

    def _is_gap(self, error: ClientError) -> bool:
        """Tell whether the daemon has fewer steps than it had accepted: it came back from a power cut."""
        expected = error.next_step_index if isinstance(error, ConflictError) else None
        return expected is not None and expected < self.accepted_steps

    async def _pause(self, error: ClientError) -> None:
        self._troubles += 1
        if self.trouble is None:
            log.warning("episode %s waits: %s", self.episode_id, error.detail)
        self.trouble = error
        most_s = min(MAX_BACKOFF_S, FIRST_BACKOFF_S * 2 ** min(self._troubles, 10))
        delay_s = random.uniform(most_s / 2, most_s)  # noqa: S311  (jitter, no secret)
        asked_s = error.retry_after_s if isinstance(error, ProblemError) else None
        await asyncio.sleep(delay_s if asked_s is None else asked_s + delay_s / 10)

    async def _give_up(self, error: ClientError) -> None:
        log.error("episode %s is given up after step %d: %s", self.episode_id, self.accepted_through, error.detail)
        if isinstance(error, RejectedError) and self._created:
            # Nothing can follow: what was accepted is to be a whole episode, not one that is open for ever.
            with contextlib.suppress(ClientError):
                await run_async(self._http, ask(Call("POST", f"{self._path}/end", b"{}")))
        self.failure = error
        for_good = isinstance(error, RejectedError | ConflictError | EndedError | LostStepsError)
        await asyncio.to_thread(self.outbox.close, error, Spool.set_aside if for_good else Spool.close)

    # --- the link's side (Feed)

    async def take(self) -> tuple[int, list[bytes]]:
        """Return the index of the last of the next steps to send, and the steps; none: nothing to send now."""
        if self.outbox.untidy:
            await asyncio.to_thread(self.outbox.tidy)
        if self.outbox.needs_loading:
            await asyncio.to_thread(self.outbox.load)
        single = self.accepted_through < self._single_through
        steps = self.outbox.take(1 if single else self._batch_limit, MAX_BATCH_BYTES)
        if steps:
            self._last_taken_s = self._loop.time()
        after = self.outbox.cursor - self._base
        if self._base:
            steps = [renumber(step, index) for index, step in enumerate(steps, after - len(steps))]
        return after - 1, steps

    async def wait(self, timeout_s: float | None = None, *, room: bool = True) -> bool:
        """Wait for acknowledgements, the end or (with `room` for them) steps; False after `timeout_s` seconds.

        While steps come the sender looks for them by itself: a bell costs the thread that records more than all
        else it does for a step, since it must then share Python's lock at that very moment.
        """
        give_up_s = math.inf if timeout_s is None else self._loop.time() + timeout_s
        while not self._more.is_set():
            now_s = self._loop.time()
            self._idle = room and now_s - self._last_taken_s > QUIET_S  # set before the look: then a step rings
            if room and self.outbox.ready:
                break
            if now_s >= give_up_s:
                return False
            pause_s = min(give_up_s - now_s, LINGER_S if room and not self._idle else math.inf)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(None if pause_s == math.inf else pause_s):
                    await self._more.wait()
        self._idle = False
        self._more.clear()
        return True

    def acknowledge(self, accepted_through: int, durable_through: int) -> None:
        """Take in what the daemon said, as far as it is about steps that were sent."""
        accepted_through = min(self._base + accepted_through, self.outbox.cursor - 1)
        durable_through = min(self._base + durable_through, accepted_through)
        if self.trouble is not None:
            log.info("episode %s goes on after step %d", self.episode_id, accepted_through)
        self.trouble, self._troubles = None, 0
        self._note(max(self.accepted_through, accepted_through), max(self.durable_through, durable_through))
        self._more.set()

    @property
    def accepted_steps(self) -> int:
        """How many steps of the episode the daemon has accepted."""
        return self.accepted_through + 1 - self._base

    @property
    def finishing(self) -> bool:
        """Whether the episode is to end and every step is accepted."""
        return self._end_body is not None and self.accepted_through >= self.outbox.next_index - 1

    @property
    def all_durable(self) -> bool:
        """Whether there is nothing more to learn about the steps sent so far."""
        return self.durable_through == self.accepted_through

    def _note(self, accepted_through: int, durable_through: int) -> None:
        self.accepted_through, self.durable_through = accepted_through, durable_through
        self.outbox.release(accepted_through, durable_through)
        self._notify()

    def _notify(self) -> None:
        self._pulse.set()
        self._pulse = asyncio.Event()
