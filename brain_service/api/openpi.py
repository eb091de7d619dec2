"""`WS /`: openpi's websocket policy protocol, so that a robot with `openpi-client` is driven as it is.

The daemon first sends a map that describes the model. Then each binary message is an observation and gets one
reply: `actions` [H, A] float32, the same by name, and `server_timing`. Every array of a reply has the horizon H
first, since openpi's chunk broker slices them all alike. An error is a text message, the problem document: that it
is text is how openpi's clients know it. The session is as before it.

The connection is the session: it begins at the zero state and ends with the connection. The model's memory counts
one step a message, and its a_{t-1} is the first action of the reply before.

Source: openpi's `WebsocketPolicyServer` and `WebsocketClientPolicy` (openpi-client 0.1).
"""

import contextlib
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from starlette.types import Receive, Scope, Send

import brain_service
from brain_service.api.acting import answer_step, end_session
from brain_service.api.conversation import Frame, Incoming, converse
from brain_service.api.msgpack_numpy import pack, unpack
from brain_service.api.openpi_names import match_observation
from brain_service.api.problems import encode_problem, refuse_websocket
from brain_service.api.services import Services
from brain_service.errors import BrainError, ConflictError, InvalidError, MalformedError, NotFoundError
from brain_service.export.manifest import Manifest
from brain_service.inference.calls import InferReply, InferRequest, SessionInfo
from brain_service.observation import check_observation
from brain_service.spec import FeatureSpec, from_vector
from brain_service.trees import unflatten

__all__ = ["serve_openpi"]

_NUMBER = (int, float, np.number)
_OWN_KEYS: Mapping[str, tuple[type, ...]] = {
    "reset": (bool, np.bool_),
    "reward": _NUMBER,
    "deadline_ms": _NUMBER,
    "record": (str,),
}
"""Members of a message that are ours unless the model has a feature of that very path, and what they may be."""

_WANTED = {"reset": "truth value", "reward": "number", "deadline_ms": "number", "record": "episode id"}


async def serve_openpi(services: Services, scope: Scope, receive: Receive, send: Send) -> None:
    """Start a session for the connection and answer it until it ends; without a model the handshake is refused."""
    try:
        session = await services.router.create_session()
    except BrainError as error:
        await refuse_websocket(error, receive, send)
        return
    robot = _Robot(services, session.session_id)
    try:
        await receive()
        await send({"type": "websocket.accept"})
        await send({"type": "websocket.send", "bytes": pack(robot.describe(session))})
        await converse(scope, receive, send, robot, services.settings.capture.max_step_bytes)
    except OSError:
        return  # it left before it was greeted
    finally:
        with contextlib.suppress(NotFoundError):
            await end_session(services, robot.session_id)


class _Robot:
    """Answers one robot's observations from the connection's own session."""

    def __init__(self, services: Services, session_id: str) -> None:
        self.session_id = session_id
        self._services = services
        self._last_total_ms: float | None = None

    def describe(self, session: SessionInfo) -> dict[str, Any]:
        """Return what a client is told of its session and the model: names, dtypes, shapes, horizon, period."""
        manifest = self._services.router.manifest(session.session_id)
        return {
            "server": "continuon-brain",
            "version": brain_service.__version__,
            "session_id": session.session_id,
            "model_id": session.model_id,
            "backend": session.backend,
            **manifest.spec.to_json(),
            "action_horizon": manifest.action_horizon,
            "action_size": manifest.action_size,
            "control_period_s": manifest.control_period_s,
        }

    async def answer(self, message: Incoming) -> Frame:
        """Return the actions for one observation; for `reset` alone, what a new connection is told.

        Raises:
            MalformedError: no msgpack map.
            InvalidError: a key belongs to no feature, or a value does not fit; the session is unchanged.
            BrainError: as `InferenceRouter.infer`.
        """
        if not message.binary:
            raise MalformedError("send the observation as a binary message, a msgpack map; this one is text")
        given = unpack(message.body)
        if not isinstance(given, dict) or not all(isinstance(name, str) for name in given):
            raise InvalidError("send a map of named values", field="observation")
        own = self._take_own(given)
        resetting = bool(own.get("reset", False))
        # A step that starts anew is held against the model that is active now.
        manifest = self._services.router.manifest() if resetting else self._manifest()
        spec, seen = manifest.spec, manifest.image.path if manifest.image else None
        observation, warnings = match_observation(given, spec.observation, seen)
        asked = InferRequest(
            session_id=self.session_id,
            observation=observation,
            reward=float(own["reward"]) if "reward" in own else None,
            deadline_ms=float(own["deadline_ms"]) if "deadline_ms" in own else None,
            received_ns=message.received_ns,
        )
        if resetting:
            asked.check()  # all of it before the old state is gone
            if observation:
                check_observation(observation, spec.observation, seen)
            session = await self._reset()
            if not observation:
                return pack(self.describe(session))
            asked = replace(asked, session_id=session.session_id)
        reply = await answer_step(self._services, asked, own.get("record"))
        return pack(self._reply(reply, spec.action, warnings))

    def refusal(self, message: Incoming, error: BrainError) -> Frame:  # noqa: ARG002 - the same for every message
        """Return the problem document as text."""
        return encode_problem(error.problem()).decode()

    def _manifest(self) -> Manifest:
        """Return the manifest of the session's model.

        Raises:
            ConflictError: the session was evicted or ended by somebody else.
        """
        try:
            return self._services.router.manifest(self.session_id)
        except NotFoundError as error:
            raise ConflictError(
                f"{error.detail}; on this connection a message with reset: true begins another"
            ) from error

    def _take_own(self, message: dict[str, Any]) -> dict[str, Any]:
        """Take those members out of a message that are ours and no feature of the model.

        Raises:
            InvalidError: one of them is of a wrong kind.
        """
        features: FeatureSpec = {}
        with contextlib.suppress(NotFoundError):
            features = self._services.router.manifest(self.session_id).spec.observation
        own = {name: message.pop(name) for name in _OWN_KEYS if name in message and name not in features}
        for name, value in own.items():
            if not isinstance(value, _OWN_KEYS[name]) or (_OWN_KEYS[name] is _NUMBER and isinstance(value, bool)):
                raise InvalidError(f"{name}: {str(value)[:50]!r} is no {_WANTED[name]}", field=name)
        return own

    async def _reset(self) -> SessionInfo:
        """Begin anew, with another session where the old one was evicted or ended."""
        try:
            session = await self._services.router.reset_session(self.session_id)
        except NotFoundError:
            session = await self._services.router.create_session()
        self._services.recorder.release(self.session_id)
        self.session_id = session.session_id
        self._last_total_ms = None
        return session

    def _reply(self, reply: InferReply, spec: FeatureSpec, warnings: tuple[str, ...]) -> dict[str, Any]:
        timing = {f"{name}_ms": value / 1e3 for name, value in reply.timings_us.items() if name != "compute"}
        timing["infer_ms"] = reply.timings_us["compute"] / 1e3
        if self._last_total_ms is not None:
            timing["prev_total_ms"] = self._last_total_ms
        self._last_total_ms = timing["total_ms"]
        rows = [from_vector(row, spec) for row in reply.chunk]
        return {
            "actions": reply.chunk,
            "action": unflatten({path: np.stack([np.asarray(row[path]) for row in rows]) for path in rows[0]}),
            "server_timing": timing,
            "step": reply.step,
            "model_id": reply.model_id,
            "backend": reply.backend,
            "state_step": reply.state_step,
            "warnings": [*reply.warnings, *warnings],
        }
