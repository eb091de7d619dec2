"""Driving: a session is one robot's recurrent state at the daemon; each observation gets one action."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Any

import httpx

from brain_service.client.acting_stream import AsyncInferStream, InferStream
from brain_service.client.calls import INFER_PATH, Call, Flow, ask, fetch_json, read_object, run, run_async
from brain_service.client.errors import NotFoundError, StaleError, UnreachableError, response_error
from brain_service.client.wire import JsonObject, as_arrays, to_json

__all__ = ["Action", "AsyncSession", "Session", "start_session"]


@dataclass(frozen=True, slots=True)
class Action:
    """An answered action: nested maps of arrays under the names that training saw, and where it came from.

    `state_step` is how many steps the model's state had seen; `timings_us` are the daemon's own, in microseconds.
    """

    action: Mapping[str, Any]
    step: int
    model_id: str
    backend: str
    state_step: int
    timings_us: Mapping[str, float] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


class _Deadline:
    """Counts from the call, so that the way there and back is in it; None never passes."""

    def __init__(self, deadline_ms: float | None) -> None:
        self._deadline_ms = deadline_ms
        self._started_s = time.monotonic()

    def left_s(self) -> float | None:
        """Return the seconds that are left.

        Raises:
            StaleError: none are.
        """
        if self._deadline_ms is None:
            return None
        waited_s = time.monotonic() - self._started_s
        if waited_s * 1000 < self._deadline_ms:
            return self._deadline_ms / 1000 - waited_s
        raise StaleError(
            {
                "title": "Deadline exceeded",
                "status": 504,
                "detail": f"no action within {self._deadline_ms:g} ms of the call; a later one is dropped",
            }
        )


class _Turns:
    """The session's side of the protocol: which step comes next, and whether we know it."""

    def __init__(self, session_id: str, model_id: str) -> None:
        self.session_id = session_id
        self.model_id = model_id
        self.next_step = 0
        self._unsure = False

    def infer(self, asked: JsonObject, deadline_ms: float | None) -> Flow[Action]:
        """Ask for one action.

        After a lost answer the daemon is first asked where the session stands: it may have taken that step, and
        would give its old action for a new observation under the same number.

        Raises:
            StaleError: no answer within `deadline_ms` of this call.
            ClientError: as the daemon answers.
        """
        deadline = _Deadline(deadline_ms)
        if self._unsure:
            info = yield from fetch_json(f"/sessions/{self.session_id}")
            self.next_step, self._unsure = info["next_step"], False
        body = asked | {"session_id": self.session_id, "step": self.next_step, "deadline_ms": deadline_ms}
        call = Call("POST", INFER_PATH, to_json(body), timeout_s=deadline.left_s())
        self._unsure = True
        try:
            response = yield call
        except UnreachableError as error:
            if isinstance(error.__cause__, httpx.TimeoutException):
                deadline.left_s()
                raise
            # A cut connection: the same step with the same body is harmless, and gets the stored answer if any.
            response = yield replace(call, timeout_s=deadline.left_s())
        action = self._read(response)
        deadline.left_s()
        return action

    def reset(self) -> Flow[None]:
        """Begin anew at step 0, on the model that is active now.

        Raises:
            ClientError: as the daemon answers.
        """
        info = read_object((yield from ask(Call("POST", f"/sessions/{self.session_id}/reset"))))
        self.model_id, self.next_step, self._unsure = info["model_id"], info["next_step"], False

    def end(self) -> Flow[None]:
        """End the session; one that is gone already is fine.

        Raises:
            ClientError: as the daemon answers.
        """
        try:
            yield from ask(Call("DELETE", f"/sessions/{self.session_id}", headers={}))
        except NotFoundError:
            return

    def _read(self, response: httpx.Response) -> Action:
        if response.status_code >= 400:
            error = response_error(response)
            if error.next_step is not None:
                self.next_step, self._unsure = error.next_step, False
            raise error
        reply = read_object(response)
        self.next_step, self._unsure = reply["step"] + 1, False
        return Action(
            action=as_arrays(reply["action"]),
            step=reply["step"],
            model_id=reply["model_id"],
            backend=reply["backend"],
            state_step=reply["state_step"],
            timings_us=reply.get("timings_us", {}),
            warnings=tuple(reply.get("warnings", ())),
        )


def start_session() -> Flow[_Turns]:
    """Start a session at the zero state of the active model.

    Raises:
        ClientError: as the daemon answers.
    """
    info = read_object((yield from ask(Call("POST", "/sessions", b"{}"))))
    return _Turns(info["session_id"], info["model_id"])


def _asked(
    observation: Mapping[str, Any],
    reward: float | None,
    executed_action: Mapping[str, Any] | None,
    record: str | None,
) -> JsonObject:
    return {"observation": observation, "reward": reward, "executed_action": executed_action, "record": record}


class _Driven:
    """What both kinds of session tell of themselves."""

    def __init__(self, turns: _Turns) -> None:
        self._turns = turns

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.session_id} at step {self.next_step}>"

    @property
    def session_id(self) -> str:
        """The daemon's name for it."""
        return self._turns.session_id

    @property
    def model_id(self) -> str:
        """The model that it began with."""
        return self._turns.model_id

    @property
    def next_step(self) -> int:
        """The step that the next observation is."""
        return self._turns.next_step


class Session(_Driven):
    """A session of a `BrainClient`; as a context manager it ends itself."""

    def __init__(self, http: httpx.Client | InferStream, turns: _Turns) -> None:
        super().__init__(turns)
        self._http = http

    def infer(
        self,
        observation: Mapping[str, Any],
        reward: float | None = None,
        *,
        executed_action: Mapping[str, Any] | None = None,
        deadline_ms: float | None = None,
        record: str | None = None,
    ) -> Action:
        """Return the action for one observation. `reward` and `executed_action` are those of the step before.

        Without a reward the model reads the mean of its training.

        `deadline_ms` counts from this call, and the action of a late answer is dropped; None leaves it to the
        daemon's own setting. `record` is the id of an episode into which the daemon writes the step.

        Raises:
            StaleError: no answer in time.
            BusyError: no model can answer now; the state has not moved.
            RejectedError: the observation does not fit the model; `field` names where.
            ConflictError: the session is gone, or another one drives it.
            UnreachableError: no answer; the next call finds out whether the step was taken.
            EncodeError: a value has no JSON form.
        """
        return run(
            self._http, self._turns.infer(_asked(observation, reward, executed_action, record), deadline_ms)
        )

    def reset(self) -> None:
        """Begin anew at step 0, on the model that is active now.

        Raises:
            ClientError: as the daemon answers.
        """
        run(self._http, self._turns.reset())

    def end(self) -> None:
        """End the session and free its state; one that is gone already is fine.

        Raises:
            ClientError: as the daemon answers.
        """
        try:
            run(self._http, self._turns.end())
        finally:
            if isinstance(self._http, InferStream):
                self._http.drop()

    def __enter__(self) -> "Session":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()


class AsyncSession(_Driven):
    """A session of an `AsyncBrainClient`; as an async context manager it ends itself."""

    def __init__(self, http: httpx.AsyncClient | AsyncInferStream, turns: _Turns) -> None:
        super().__init__(turns)
        self._http = http

    async def infer(
        self,
        observation: Mapping[str, Any],
        reward: float | None = None,
        *,
        executed_action: Mapping[str, Any] | None = None,
        deadline_ms: float | None = None,
        record: str | None = None,
    ) -> Action:
        """Return the action for one observation, as `Session.infer`.

        Raises:
            ClientError: as `Session.infer`.
        """
        asked = _asked(observation, reward, executed_action, record)
        return await run_async(self._http, self._turns.infer(asked, deadline_ms))

    async def reset(self) -> None:
        """Begin anew at step 0, on the model that is active now.

        Raises:
            ClientError: as the daemon answers.
        """
        await run_async(self._http, self._turns.reset())

    async def end(self) -> None:
        """End the session and free its state; one that is gone already is fine.

        Raises:
            ClientError: as the daemon answers.
        """
        try:
            await run_async(self._http, self._turns.end())
        finally:
            if isinstance(self._http, AsyncInferStream):
                await self._http.drop()

    async def __aenter__(self) -> "AsyncSession":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.end()
