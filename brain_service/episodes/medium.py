"""The medium that the logs are on: whether it takes files, what is free on it, and why it refuses now."""

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

from brain_service.durable import make_directory
from brain_service.episodes.log import io_problem
from brain_service.errors import BrainError, ConfigError, UnavailableError

__all__ = ["Medium"]


class Medium:
    """The file system of the logs under `root`. `last_error` is why it refuses now (None: it does not)."""

    def __init__(self, root: Path, min_free_bytes: int) -> None:
        """Take the directory, whether it is there or not; `min_free_bytes` are kept in reserve."""
        self.last_error: str | None = None
        self._root = root
        self._min_free_bytes = min_free_bytes

    def prepare(self) -> None:
        """Make the directory and write to it.

        Raises:
            ConfigError: it cannot be made or written. A full disk is no reason, it is noted: it refuses steps
                later, while inference goes on.
        """
        probe = self._root / ".writable"
        try:
            make_directory(self._root)
            probe.touch()
            probe.unlink()
        except OSError as error:
            problem = io_problem(error, f"write to the episodes directory {self._root}")
            if "full" not in problem.detail and "quota" not in problem.detail:
                raise ConfigError(f"{problem.detail}, or choose another data_dir") from error
            self.last_error = problem.detail

    def free_bytes(self) -> int | None:
        """Return how many bytes are free, None where that cannot be read."""
        try:
            return shutil.disk_usage(self._root).free
        except OSError:
            return None

    def require_space(self) -> None:
        """Check that more than the reserve is free.

        Raises:
            UnavailableError: it is not, or that cannot be read.
        """
        try:
            free_bytes = shutil.disk_usage(self._root).free
        except OSError as error:
            raise io_problem(error, f"read the file system of {self._root}") from error
        if free_bytes < self._min_free_bytes:
            raise UnavailableError(
                f"only {free_bytes} bytes are free, {self._min_free_bytes} are kept in reserve: "
                "convert, upload or delete episodes"
            )

    def note(self, error: BrainError | None) -> None:
        """Keep the reason while the medium refuses, and forget it once it takes a write again (None)."""
        if error is None:
            self.last_error = None
        elif isinstance(error, UnavailableError):
            self.last_error = error.detail

    @contextlib.contextmanager
    def noting_errors(self) -> Iterator[None]:
        """Note how a block of writes ends, as `note` does.

        Raises:
            BrainError: the block's own error.
        """
        try:
            yield
        except UnavailableError as error:
            self.note(error)
            raise
        self.note(None)
