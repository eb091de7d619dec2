"""`brain serve` on a medium that fails on command: a launcher, and the handle that tests order faults with.

The launcher puts the watched layer of `tests.fakes.disk` below the data directory and listens on a Unix socket for
orders, one JSON line each: `{"error": "ENOSPC", "calls": ["write"], "after": 3, "delay_s": 0.0}`; `{}` heals it.
"""

import errno
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.fakes.disk import Call, watched
from tests.processes import Daemon

__all__ = ["FaultyDaemon"]

_SOCKET = "BRAIN_TEST_FAULTS"


class FaultyDaemon(Daemon):
    """A daemon whose medium below `data_dir` obeys `fail` and `heal`."""

    def __init__(self, data_dir: Path, *, env: Mapping[str, str] | None = None) -> None:
        self._orders = data_dir.with_name(f"{data_dir.name}.faults")
        # `python -m <this> -m brain_service serve ...`: the launcher hands the rest on.
        super().__init__(
            data_dir, env={**(env or {}), _SOCKET: str(self._orders)}, flags=("-m", "tests.faults.faulty_daemon")
        )

    def fail(
        self,
        error: str | None,
        calls: Sequence[str] = (),
        *,
        after: int = 0,
        delay_s: float = 0.0,
        lose: bool = False,
    ) -> None:
        """Fail the named kinds of calls (`fdatasync` is one of its own; none named: every change).

        `after` calls of these kinds succeed first. Each takes `delay_s` seconds longer. With `lose` a failing
        flush also drops what it should have saved, as a kernel does that evicts the pages it could not write.
        """
        self._order({"error": error, "calls": [*calls], "after": after, "delay_s": delay_s, "lose": lose})

    def heal(self) -> None:
        """Let the medium work again."""
        self._order({})

    def _order(self, order: Mapping[str, object]) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as to:
            to.connect(str(self._orders))
            to.sendall(json.dumps(order).encode() + b"\n")
            assert to.recv(1) == b"!"


class _Faults:
    """The watcher inside the daemon: obeys the last order."""

    def __init__(self) -> None:
        self._order: dict[str, object] = {}
        self._left = 0
        self._sizes: dict[str, int] = {}
        self._names: dict[str, str] = {}
        self._lock = threading.Lock()

    def obey(self, order: dict[str, object]) -> None:
        """Take an order."""
        with self._lock:
            self._order = order
            self._left = int(str(order.get("after", 0)))

    def before(self, call: Call) -> bool:
        """Delay and fail as ordered."""
        with self._lock:
            order = self._order
            kind = "fdatasync" if call.kind == "sync" and call.data_only else call.kind
            calls = order.get("calls") or [kind]
            assert isinstance(calls, list)
            if not order or kind not in calls or kind == "open":
                return True
            fails = self._left <= 0
            self._left -= 1
        time.sleep(float(str(order.get("delay_s", 0))))
        if fails and order.get("error"):
            if order.get("lose") and call.kind == "sync":
                self._drop(call)
            number = getattr(errno, str(order["error"]))
            raise OSError(number, os.strerror(number), call.path)
        return True

    def after(self, call: Call, done: int | None) -> None:
        """Remember up to where each file was flushed, and under which name it stands."""
        if done is None:
            return
        if call.kind in ("link", "rename") and call.target is not None:
            self._names[call.path] = call.target
        if call.kind == "sync" and (path := self._path(call)).is_file():
            self._sizes[call.path] = path.stat().st_size

    def _path(self, call: Call) -> Path:
        return Path(self._names.get(call.path, call.path))

    def _drop(self, call: Call) -> None:
        """Zero what no flush covered: the file keeps its size, as inodes do."""
        path = self._path(call)
        if path.is_file():
            flushed = self._sizes.get(call.path, 0)
            with path.open("r+b") as file:
                file.seek(flushed)
                file.write(bytes(max(0, path.stat().st_size - flushed)))


def _listen(faults: _Faults, path: str) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as orders:
        orders.bind(path)
        orders.listen()
        while True:
            client, _ = orders.accept()
            with client:
                faults.obey(json.loads(client.makefile("rb").readline()))
                client.sendall(b"!")


def _main() -> int:
    from brain_service.cli import main

    faults, path = _Faults(), os.environ.pop(_SOCKET)
    Path(path).unlink(missing_ok=True)
    threading.Thread(target=_listen, args=(faults, path), daemon=True).start()
    arguments = sys.argv[sys.argv.index("serve") :]
    episodes = Path(arguments[arguments.index("--data-dir") + 1]) / "episodes"
    with watched(episodes, faults):
        return main(arguments)


if __name__ == "__main__":
    sys.exit(_main())
