"""The tokens file while the daemon runs: read again when it changes, so that tokens rotate without a restart."""

import logging
import stat
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from brain_service.api.auth import Tokens
from brain_service.errors import ConfigError
from brain_service.health.check import Check

__all__ = ["TokenFile"]

log = logging.getLogger(__name__)

POLL_INTERVAL_S = 0.5

Stamp = tuple[int, int, int, int]


class TokenFile:
    """The tokens of a file, as it is now; use it as a context manager, and it follows the file's changes.

    A thread of its own looks at the file: a stat on the event loop could wait for a slow medium. A file that
    cannot be read, or is wrong, changes nothing: the tokens before it hold on, and `check` tells so. `on_change`
    is called from that thread with the number of tokens that hold, and the reason if the file was refused.
    """

    def __init__(self, path: Path) -> None:
        """Read the file.

        Raises:
            ConfigError: as `Tokens.read`.
        """
        self._path = path
        self._stamp = _stamp(path)
        self._tokens = Tokens.read(path)
        self._error = ""
        self.on_change: Callable[[int, str], None] = _ignore
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="tokens", daemon=True)
        self._warn_if_readable()

    @property
    def tokens(self) -> Tokens:
        """The tokens that hold now."""
        return self._tokens

    def __enter__(self) -> "TokenFile":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopping.set()
        self._thread.join()

    def check(self) -> Check:
        """Return the check "tokens" of `/health`: the number of tokens, and what is wrong with their file.

        It asks the file system: keep it off an event loop.
        """
        count = len(self._tokens.by_digest)
        problem = self._error or self._readable_by_others()
        return Check("warn" if problem else "pass", count, "tokens", problem)

    def _follow(self) -> None:
        while not self._stopping.wait(POLL_INTERVAL_S):
            stamp = _stamp(self._path)
            if stamp != self._stamp:
                self._stamp = stamp
                self._read_again()

    def _read_again(self) -> None:
        try:
            self._tokens = Tokens.read(self._path)
        except ConfigError as error:
            self._error = f"{error.detail}; the tokens read before still hold"
            log.error("tokens file not taken over", extra={"reason": error.detail})
            self.on_change(len(self._tokens.by_digest), error.detail)
        else:
            self._error = ""
            log.info("tokens read again", extra={"count": len(self._tokens.by_digest)})
            self.on_change(len(self._tokens.by_digest), "")
            self._warn_if_readable()

    def _warn_if_readable(self) -> None:
        if problem := self._readable_by_others():
            log.warning("tokens file is not private", extra={"reason": problem})

    def _readable_by_others(self) -> str:
        try:
            mode = self._path.stat().st_mode
        except OSError:
            return ""
        if mode & stat.S_IROTH:
            return f"tokens_file {self._path} can be read by every user; chmod 640 {self._path}"
        return ""


def _ignore(count: int, refused: str) -> None:
    """Tell nobody."""


def _stamp(path: Path) -> Stamp | None:
    """Return what changes when a file is written or replaced; None if there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
