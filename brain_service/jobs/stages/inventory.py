"""Stage: what has been recorded so far."""

import shlex

from brain_service.errors import InvalidError
from brain_service.jobs.context import JobContext
from brain_service.jobs.stages import Outcome

__all__ = ["command", "run"]

SUFFIXES = (".json", ".jsonl")


def command(context: JobContext) -> str:
    """Return how to list the recordings."""
    return f"ls -l {shlex.quote(str(context.settings.episodes_dir))}"


def run(context: JobContext) -> Outcome:
    """Count the recorded files and their bytes.

    Raises:
        InvalidError: nothing was recorded; says how to.
    """
    folder = context.settings.episodes_dir
    files = [path for path in folder.iterdir() if path.suffix in SUFFIXES] if folder.is_dir() else []
    if not files:
        raise InvalidError(
            f"no episode in {folder}; record some with POST /episodes, /episodes/{{id}}/steps and "
            "/episodes/{id}/end, then start the job again"
        )
    size_bytes = sum(path.stat().st_size for path in files)
    return Outcome(
        f"{len(files)} recorded episodes, {size_bytes / 1e6:.1f} MB",
        {"inventory": {"episodes": len(files), "size_bytes": size_bytes}},
    )
