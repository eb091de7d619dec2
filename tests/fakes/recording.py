"""All changes of files below a folder, in order, with what clients were told in between."""

import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from tests.fakes.disk import Call

__all__ = ["Begin", "Change", "Claim", "End", "Event", "Recording", "Tree", "write_tree"]

Tree = dict[str, bytes | None]
"""Content by path below the root; None is a folder."""


_OF_ENTRIES = frozenset(("create", "link", "rename", "unlink", "mkdir", "rmdir"))


@dataclass(slots=True, eq=False)
class Change:
    """A change in the recording. `done` comes later than its beginning, as an event of its own."""

    call: Call
    done: int | None = None
    failed: bool = False


@dataclass(frozen=True, slots=True)
class Claim:
    """What a client was told: `kind` is `created`, `accepted`, `durable`, `ended`, `deleting`, `deleted`, ..."""

    kind: str
    episode_id: str
    value: Any = None


@dataclass(frozen=True, slots=True)
class Begin:
    """A change begins."""

    change: Change


@dataclass(frozen=True, slots=True)
class End:
    """A change has returned, with or without an error."""

    change: Change


Event = Begin | End | Claim


class Recording:
    """A watcher that keeps all it sees. `skips` tells which changes to leave out: a writer broken on purpose.

    Before change number `kill_at` the process ends as by SIGKILL, once `dying` has seen the recording.
    """

    def __init__(
        self,
        root: Path,
        skips: Callable[[Call], bool] = lambda call: False,
        kill_at: int | None = None,
        dying: Callable[["Recording"], None] = lambda recording: None,
    ) -> None:
        self.root = os.path.realpath(root)
        self.before_it = _read_tree(Path(self.root))
        self.events: list[Event] = []
        self.unseen: Tree = {}  # files written past the layer, as they stand at the end
        self._skips = skips
        self._left = kill_at
        self._dying = dying
        self._running: dict[int, Change] = {}
        self._lock = threading.Lock()
        self._entries = threading.RLock()

    def __getstate__(self) -> dict[str, Any]:
        names = ("root", "before_it", "events", "unseen")
        return {name: getattr(self, name) for name in names}

    def __setstate__(self, state: dict[str, Any]) -> None:
        Recording.__init__(self, Path(state["root"]))
        self.__dict__.update(state)

    def say(self, kind: str, episode_id: str, value: Any = None) -> None:
        """Keep what a client was told just now."""
        self.events.append(Claim(kind, episode_id, value))

    def before(self, call: Call) -> bool:
        """Keep the beginning of a change."""
        if self._skips(call):
            return False
        self._die_in_time()
        # A change of entries takes effect for all before it returns to its thread: no flush may begin between.
        self._entries.acquire()
        change = Change(call)
        with self._lock:
            self._running[id(call)] = change
            self.events.append(Begin(change))
        if call.kind not in _OF_ENTRIES:
            self._entries.release()
        return True

    def _die_in_time(self) -> None:
        """Count down to the kill."""
        if self._left is None:
            return
        with self._lock:
            self._left -= 1
            dies = self._left < 0
        if dies:
            self.die()

    def die(self) -> NoReturn:
        """End the process as by SIGKILL; what other threads have in the kernel is finished first."""
        while True:
            with self._lock:
                if not self._running:
                    self._dying(self)
                    os._exit(9)
            time.sleep(0.0005)

    def after(self, call: Call, done: int | None) -> None:
        """Keep its end."""
        with self._lock:
            change = self._running.pop(id(call), None)
            if change is not None:
                change.done, change.failed = done, done is None
                self.events.append(End(change))
        if change is not None and call.kind in _OF_ENTRIES:
            self._entries.release()


def _read_tree(root: Path) -> Tree:
    return {
        str(path.relative_to(root)): None if path.is_dir() else path.read_bytes()
        for path in sorted(root.rglob("*"))
    }


def write_tree(root: Path, tree: Tree, age_s: float = 0.0) -> None:
    """Make the folders and files of a state below `root`, last changed `age_s` seconds ago."""
    then = time.time() - age_s
    for name, content in tree.items():
        path = root / name
        if content is None:
            path.mkdir(parents=True, exist_ok=True)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
            os.utime(path, (then, then))
