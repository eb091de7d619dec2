"""Actions from models: the router, its sessions, and the worker processes that run the models.

The daemon process holds the router and the sessions' hidden state; JAX and every other runtime live in
worker processes (`python -m brain_service.inference.worker`), reached over a socket pair and shared memory.
"""

from typing import TYPE_CHECKING

from brain_service.lazy import lazy_names

if TYPE_CHECKING:
    from brain_service.inference.calls import InferReply, InferRequest, SessionInfo
    from brain_service.inference.router import InferenceRouter

__all__ = ["InferReply", "InferRequest", "InferenceRouter", "SessionInfo"]

__getattr__ = lazy_names(
    __name__,
    {
        "InferReply": "calls",
        "InferRequest": "calls",
        "InferenceRouter": "router",
        "SessionInfo": "calls",
    },
)
