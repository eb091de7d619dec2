"""Live sessions over a graceful restart: saved at the stop, restored once their model serves again."""

import asyncio
import logging
import time
from pathlib import Path
from typing import Any

from brain_service.errors import BrainError
from brain_service.inference.served_model import ServedModel
from brain_service.inference.sessions import SessionTable
from brain_service.inference.snapshot import (
    SavedSession,
    read_snapshot,
    remove_snapshot,
    restore,
    save,
    write_snapshot,
)

__all__ = ["SessionKeeper"]

log = logging.getLogger(__name__)


class SessionKeeper:
    """Saves and restores the sessions of one table in `directory`; None keeps nothing."""

    def __init__(self, directory: Path | None, table: SessionTable) -> None:
        self._directory = directory
        self._table = table
        self._waiting: list[SavedSession] = []
        self._problems: list[str] = []
        self._restored = 0
        self._read = False
        if directory is not None:
            table.restoring = "the sessions of before the restart are being restored"

    async def read(self) -> None:
        """Read what the last stop left; until `restore` an unknown session is told to retry."""
        if self._directory is not None:
            self._waiting, self._problems = await asyncio.to_thread(read_snapshot, self._directory)
            for problem in self._problems:
                log.warning("a session is lost: %s", problem)
        self._read = True

    async def restore(self, model: ServedModel | None, *, unclean: bool) -> None:
        """Bring the sessions of `model` back; each of the others is told why it is gone.

        `unclean` tells that the daemon before was killed: what it had saved it took up again and lost.
        """
        if self._directory is not None:
            try:
                # Before the first of them answers: a kill from here on must not bring an old state back.
                await asyncio.to_thread(remove_snapshot, self._directory)
            except OSError as error:
                self._give_up(f"the snapshot cannot be removed ({error})")
        if unclean:
            self._table.lost = "the daemon was killed or lost power, and the sessions of before were lost with it"
        for saved in self._waiting:
            reason = self._obstacle(saved, model) if model is not None else "no model serves"
            if reason is None and model is not None:
                reason = self._bring_back(saved, model)
            if reason is not None:
                self._lose(saved, reason)
        if self._waiting:
            log.info("%d of %d sessions restored", self._restored, len(self._waiting))
        self._waiting = []
        self._table.restoring = None

    async def save(self) -> None:
        """Write the live sessions, and those of before that wait for their model still."""
        if self._directory is None or not self._read:
            return
        sessions = [*self._waiting, *(save(session) for session in self._table.all())]
        if not sessions:
            return
        try:
            await asyncio.to_thread(write_snapshot, self._directory, sessions)
        except OSError as error:
            log.error("%d live sessions are lost: %s cannot be written: %s", len(sessions), self._directory, error)
        else:
            log.info("%d live sessions saved", len(sessions))

    def status(self) -> dict[str, Any]:
        """Return how many sessions came back at this start, and what is wrong with the others."""
        return {"restored": self._restored, "lost": list(self._problems)}

    def _obstacle(self, saved: SavedSession, model: ServedModel) -> str | None:
        if saved.model_id != model.model_id:
            return f"its model was {saved.model_id}, {model.model_id} serves now"
        idle_s = _idle_s(saved)
        if idle_s < 0:
            return "the clock was put back"
        if idle_s > self._table.idle_s:
            return f"it was {idle_s:.0f} s without a step, inference.session_idle_s is {self._table.idle_s:g}"
        return None

    def _bring_back(self, saved: SavedSession, model: ServedModel) -> str | None:
        try:
            session = self._table.create(model, saved.session_id)
            try:
                restore(session, saved, _idle_s(saved))
            except BrainError:
                self._table.end(saved.session_id)
                raise
        except BrainError as error:
            return error.detail
        self._restored += 1
        return None

    def _lose(self, saved: SavedSession, reason: str) -> None:
        self._table.remember(saved.session_id, f"was not restored after the restart ({reason})")
        self._problems.append(f"{saved.session_id}: {reason}")
        log.warning("session %s is not restored: %s", saved.session_id, reason)

    def _give_up(self, reason: str) -> None:
        for saved in self._waiting:
            self._lose(saved, reason)
        self._waiting = []


def _idle_s(saved: SavedSession) -> float:
    return (time.time_ns() - saved.used_ns) / 1e9
