"""Stage: what has been recorded so far."""

import contextlib
import shlex
from pathlib import Path

from brain_service.errors import InvalidError
from brain_service.jobs.context import JobContext
from brain_service.jobs.stages import Outcome

__all__ = ["command", "run"]

SUFFIXES = (".json", ".jsonl", ".jsonl.zst")


def command(context: JobContext) -> str:
    """Return how to list the recordings."""
    return f"ls -l {shlex.quote(str(context.settings.episodes_dir))}"


def run(context: JobContext) -> Outcome:
    """Count the recorded files and their bytes.

    Raises:
        InvalidError: nothing was recorded; says how to.
    """
    folder = context.settings.episodes_dir
    sizes = _sizes(folder) if folder.is_dir() else []
    if not sizes:
        raise InvalidError(
            f"no episode in {folder}; record some with POST /episodes, /episodes/{{id}}/steps and "
            "/episodes/{id}/end, then start the job again"
        )
    return Outcome(
        f"{len(sizes)} recorded episodes, {sum(sizes) / 1e6:.1f} MB",
        {"inventory": {"episodes": len(sizes), "size_bytes": sum(sizes)}},
    )


def _sizes(folder: Path) -> list[int]:
    found = []
    for path in folder.iterdir():
        # An episode may be deleted while this looks, and a link may lead nowhere.
        with contextlib.suppress(FileNotFoundError):
            if path.name.endswith(SUFFIXES) and not path.name.startswith("."):
                found.append(path.stat().st_size)
    return found
