"""Feeds systemd's watchdog from the event loop, and only while a restart would mend nothing.

The daemon is well when
- its event loop turns: the messages come from a task on it, so a blocked loop sends none;
- capture moves: no flush is stuck in our own code. One that waits for the medium (the kernel's state `D`) is no
  reason: a restart mends no card, cannot even end such a process, and would take inference along;
- the router's background tasks live and its housekeeping comes round.

A model that fails, a full disk and a dead job runner are for `/health`: they have remedies of their own, and a
restart would cost the robot its sessions.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterator

from brain_service.api.notify import Notifier

__all__ = ["Obstacle", "extending", "feed_watchdog"]

log = logging.getLogger(__name__)

STATUS_INTERVAL_S = 5.0
EXTEND_INTERVAL_S = 2.0
EXTENSION_S = 10.0

Obstacle = Callable[[], str]
"""Tells what no longer moves and only a restart would mend; nothing while all is well. It must not block."""


async def feed_watchdog(
    notifier: Notifier, watchdog_s: float | None, obstacle: Obstacle, status: Callable[[], str]
) -> None:
    """Feed the watchdog at half its interval while `obstacle` has nothing to tell; keep the status in words.

    Runs until cancelled. `status` is asked at least every five seconds; it must not block.
    """
    loop = asyncio.get_running_loop()
    half_s = STATUS_INTERVAL_S if watchdog_s is None else watchdog_s / 2
    due_s, told = loop.time(), ""
    while True:
        reason = obstacle()
        if reason != told and reason:
            log.error("the watchdog is not fed any more", extra={"reason": reason})
        told = reason
        if not reason and loop.time() >= due_s:
            due_s = loop.time() + half_s
            if watchdog_s is not None:
                notifier.alive()
        notifier.status(f"stuck: {reason}" if reason else status())
        await asyncio.sleep(max(0.0, min(STATUS_INTERVAL_S, due_s - loop.time())) if not reason else half_s / 4)


@contextlib.contextmanager
def extending(notifier: Notifier, limit_s: float) -> Iterator[None]:
    """For a block on the event loop, ask for more time as long as the loop turns, up to `limit_s` altogether."""
    task = asyncio.create_task(_extend(notifier, limit_s)) if notifier.listened_to else None
    try:
        yield
    finally:
        if task is not None:
            task.cancel()


async def _extend(notifier: Notifier, limit_s: float) -> None:
    loop = asyncio.get_running_loop()
    end_s = loop.time() + limit_s - EXTENSION_S
    while loop.time() < end_s:
        notifier.extend(EXTENSION_S)
        # It has come this far: whether the watchdog runs during a stop is systemd's affair.
        notifier.alive()
        await asyncio.sleep(EXTEND_INTERVAL_S)
