"""`WS /infer/stream`: `POST /infer` over one connection.

A text message is its JSON body, a binary one the same in msgpack; each gets one answer in its own form, in order.
An error is the problem document (it has `status`, an answer has not), and the connection stays open: after it the
session's next step is still `next_step`, here or on any other connection.
"""

from starlette.types import Receive, Scope, Send

from brain_service.api.acting import InferBody, act
from brain_service.api.bodies import decode, decode_msgpack, encode_json, encode_msgpack
from brain_service.api.conversation import Frame, Incoming, converse
from brain_service.api.services import Services
from brain_service.errors import BrainError

__all__ = ["serve_infer_stream"]


async def serve_infer_stream(services: Services, scope: Scope, receive: Receive, send: Send) -> None:
    """Accept the connection and answer it until it ends."""
    await receive()
    await send({"type": "websocket.accept"})
    await converse(scope, receive, send, _Stream(services), services.settings.capture.max_step_bytes)


class _Stream:
    """Answers bodies of `/infer`."""

    def __init__(self, services: Services) -> None:
        self._services = services

    async def answer(self, message: Incoming) -> Frame:
        """Return the action as `POST /infer` answers it.

        Raises:
            BrainError: as `POST /infer`.
        """
        read = decode_msgpack if message.binary else decode
        reply = await act(self._services, read(message.body, InferBody), message.received_ns)
        return encode_msgpack(reply) if message.binary else encode_json(reply).decode()

    def refusal(self, message: Incoming, error: BrainError) -> Frame:
        """Return the problem document."""
        document = error.problem()
        return encode_msgpack(document) if message.binary else encode_json(document).decode()
