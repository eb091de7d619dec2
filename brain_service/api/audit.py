"""Notes in the audit log what operators ask for, and `GET /audit`, which reads it."""

import asyncio
from typing import Annotated

from fastapi import APIRouter, Query
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from brain_service.api.auth import ACTOR, is_operators
from brain_service.api.bodies import JsonResponse
from brain_service.api.services import ServicesDep
from brain_service.audit import AuditLog
from brain_service.errors import UnavailableError

__all__ = ["Audited", "router"]

router = APIRouter(tags=["audit"])

VERBS = {"DELETE": "delete", "PUT": "put", "PATCH": "patch"}
OWN_VERBS = {"jobs": "cancel"}  # what DELETE means there


@router.get("/audit", operation_id="list_audit")
async def list_audit(
    services: ServicesDep,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    cursor: Annotated[int | None, Query(ge=1, le=2**63 - 1)] = None,
) -> JsonResponse:
    """List what operators did, newest first; pass `next_cursor` back as `cursor` for the next page.

    Raises:
        UnavailableError: the log cannot be read.
    """
    try:
        entries, following = await asyncio.to_thread(services.audit.page, limit, cursor)
    except OSError as error:
        raise UnavailableError(f"the audit log cannot be read: {error.strerror}") from error
    return JsonResponse({"entries": entries, "next_cursor": following})


class Audited:
    """ASGI middleware around the guard: an operator's request is noted, durably, before its answer begins.

    What the guard refuses is noted too: somebody tried.
    """

    def __init__(self, app: ASGIApp, audit: AuditLog) -> None:
        self.app = app
        self._audit = audit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one ASGI connection."""
        if scope["type"] != "http" or not is_operators(scope["method"], scope["path"]):
            await self.app(scope, receive, send)
            return
        noted = False

        async def note(status: int | None) -> None:
            nonlocal noted
            noted = True
            client = scope.get("client")
            via = client[0] if client else "unix socket"
            action, target = _what(scope["method"], scope["path"])
            await asyncio.to_thread(self._audit.append, scope.get(ACTOR) or via, via, action, target, status)

        async def noting(message: Message) -> None:
            if message["type"] == "http.response.start" and not noted:
                await note(message["status"])
            await send(message)

        try:
            await self.app(scope, receive, noting)
        finally:
            if not noted:
                await note(None)


def _what(method: str, path: str) -> tuple[str, str]:
    """Return the action in a word and what it is done to: `POST /models/m1/activate` activates `models/m1`."""
    parts = path.strip("/").split("/")
    if method == "POST":
        return parts[-1], "/".join(parts[:-1])
    return OWN_VERBS.get(parts[0], VERBS.get(method, method.lower())), "/".join(parts)
