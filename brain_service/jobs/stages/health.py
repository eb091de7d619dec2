"""Stage: is there room to work? Checked first, so that a training does not fail after its first hour."""

import shutil

import psutil

from brain_service.errors import UnavailableError
from brain_service.jobs.context import JobContext
from brain_service.jobs.stages import Outcome
from brain_service.settings import Settings

__all__ = ["command", "require_room", "run"]

# Two checkpoints, a bundle and the dataset of a day's capture of the larger preset fit into this.
NEEDED_DISK_BYTES = 512 * 1024**2
# JAX with the development preset peaks below this.
NEEDED_MEMORY_BYTES = 700 * 1024**2
MIB = 1024**2


def command(context: JobContext) -> str:
    """Return the daemon's own health check."""
    return f"curl http://{context.settings.host}:{context.settings.port}/health"


def run(context: JobContext) -> Outcome:
    """Check free disk above what capture keeps for itself, and memory.

    Raises:
        UnavailableError: there is too little; says how much is missing and what to do.
    """
    return Outcome(require_room(context.settings))


def require_room(settings: Settings) -> str:
    """Return how much disk and memory there is.

    Raises:
        UnavailableError: there is too little; says how much is missing and what to do.
    """
    free_bytes = shutil.disk_usage(settings.data_dir).free
    needed_bytes = NEEDED_DISK_BYTES + settings.capture.min_free_bytes
    if free_bytes < needed_bytes:
        raise UnavailableError(
            f"{free_bytes // MIB} MiB free under {settings.data_dir}, training needs {needed_bytes // MIB} MiB; "
            "delete old datasets, checkpoints or models, then start the job again"
        )
    memory_bytes = psutil.virtual_memory().available
    if memory_bytes < NEEDED_MEMORY_BYTES:
        raise UnavailableError(
            f"{memory_bytes // MIB} MiB of memory available, training needs {NEEDED_MEMORY_BYTES // MIB} MiB; "
            "stop what else runs here, then start the job again"
        )
    return f"{free_bytes // MIB} MiB of disk free, {memory_bytes // MIB} MiB of memory available"
