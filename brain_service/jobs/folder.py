"""A job's folder: `jobs/<id>/` with its log and its events."""

import shutil
from dataclasses import dataclass
from pathlib import Path

__all__ = ["JobFolder"]


@dataclass(frozen=True, slots=True)
class JobFolder:
    """Paths of one job; `job_id` comes from the job table, so it is one path component."""

    jobs_dir: Path
    job_id: str

    @property
    def path(self) -> Path:
        """The folder itself."""
        return self.jobs_dir / self.job_id

    @property
    def log(self) -> Path:
        """Everything its processes wrote to standard output and error, tracebacks included."""
        return self.path / "log.txt"

    @property
    def events(self) -> Path:
        """JSON lines, see `events`."""
        return self.path / "events.jsonl"

    def create(self) -> None:
        """Make the folder if it is missing."""
        self.path.mkdir(parents=True, exist_ok=True)

    def remove(self) -> None:
        """Delete the folder with all that is in it, if it is there."""
        shutil.rmtree(self.path, ignore_errors=True)
