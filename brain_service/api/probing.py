"""Runs what asks the machine's runtimes off the event loop, in two threads of its own.

Such a question takes seconds, and a minute where a driver hangs: in the threads that everything else shares, a few
of them would hold up the writing of steps.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import ParamSpec, TypeVar

__all__ = ["in_probe_thread"]

P = ParamSpec("P")
T = TypeVar("T")

_POOL = ThreadPoolExecutor(2, thread_name_prefix="probe")


async def in_probe_thread(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Return what the function returns; its errors are raised here."""
    return await asyncio.get_running_loop().run_in_executor(_POOL, partial(function, *args, **kwargs))
