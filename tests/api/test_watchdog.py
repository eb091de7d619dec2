"""What feeds the watchdog and what does not; starts counted; time asked for only while the loop turns."""

import asyncio
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from brain_service.api.notify import Notifier
from brain_service.api.service_manager import ServiceManager
from brain_service.api.starts import DaemonStarts
from brain_service.api.watchdog import extending, feed_watchdog
from brain_service.episodes.flusher import Flusher
from brain_service.inference.router import InferenceRouter
from brain_service.settings import InferenceSettings


class Manager:
    """The other end of the notify socket."""

    def __init__(self, folder: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(str(folder / "n"))
        self.socket.setblocking(False)
        self.notifier = Notifier(str(folder / "n"))

    def heard(self) -> list[str]:
        """Return what came since the last call."""
        found = []
        while True:
            try:
                found.append(self.socket.recv(4096).decode())
            except BlockingIOError:
                return found


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    made = Manager(tmp_path)
    yield made
    made.notifier.close()
    made.socket.close()


def test_what_is_stuck_is_not_fed_and_told_and_fed_again_when_it_moves(manager: Manager) -> None:
    reason = ""

    async def play() -> None:
        nonlocal reason
        feeding = asyncio.create_task(feed_watchdog(manager.notifier, 0.2, lambda: reason, lambda: "well"))
        await asyncio.sleep(0.5)
        well = manager.heard()
        assert well.count("WATCHDOG=1") >= 4
        assert well.count("STATUS=well") == 1
        reason = "a flush hangs"
        await asyncio.sleep(0.15)
        manager.heard()
        await asyncio.sleep(0.3)
        assert "WATCHDOG=1" not in manager.heard()
        reason = ""
        await asyncio.sleep(0.3)
        assert {"WATCHDOG=1", "STATUS=well"} <= set(manager.heard())
        feeding.cancel()

    asyncio.run(play())


def test_a_blocked_loop_feeds_nothing(manager: Manager) -> None:
    async def play() -> None:
        feeding = asyncio.create_task(feed_watchdog(manager.notifier, 0.2, str, str))
        await asyncio.sleep(0.05)
        manager.heard()
        time.sleep(0.5)  # noqa: ASYNC251 - that is the defect
        assert manager.heard() == []
        feeding.cancel()

    asyncio.run(play())


def test_without_a_watchdog_only_the_status_is_told(manager: Manager) -> None:
    async def play() -> None:
        feeding = asyncio.create_task(feed_watchdog(manager.notifier, None, str, lambda: "well"))
        await asyncio.sleep(0.05)
        feeding.cancel()

    asyncio.run(play())
    assert manager.heard() == ["STATUS=well"]


def test_time_is_asked_for_up_to_a_limit_and_not_by_a_loop_that_hangs(manager: Manager) -> None:
    async def play() -> None:
        with extending(manager.notifier, 300):
            await asyncio.sleep(0.01)
            assert manager.heard() == ["EXTEND_TIMEOUT_USEC=10000000", "WATCHDOG=1"]
            time.sleep(2.1)  # noqa: ASYNC251 - that is the hang
            assert manager.heard() == []
        with extending(manager.notifier, 10):
            await asyncio.sleep(0.01)
            assert manager.heard() == []

    asyncio.run(play())


class Hanging:
    """A flush that ends when it is let go."""

    def __init__(self) -> None:
        self.begun, self.go = threading.Event(), threading.Event()

    def sync(self) -> None:
        self.begun.set()
        self.go.wait(20)


def test_a_flush_that_hangs_in_our_code_is_stuck_and_one_that_waits_for_the_card_is_not(tmp_path: Path) -> None:
    flusher = Flusher(0.01)
    flusher.start()
    hanging = Hanging()
    flusher.note(hanging)
    assert hanging.begun.wait(10)
    time.sleep(0.1)
    assert "not for the medium" in flusher.stuck(0.05)
    assert flusher.stuck(60) == ""
    # The kernel's own word for a thread that waits for a device.
    (tmp_path / "7").mkdir()
    (tmp_path / "7" / "stat").write_text("7 (capture (sync) D) D 1 1 1 0")
    assert flusher.stuck(0.05, tasks=tmp_path) == ""
    (tmp_path / "7" / "stat").write_text("7 (capture (sync) D) S 1 1 1 0")
    assert flusher.stuck(0.05, tasks=tmp_path) != ""
    hanging.go.set()
    flusher.close()
    assert flusher.stuck(0.05) == ""


def test_a_router_whose_housekeeping_died_or_stopped_is_stuck(tmp_path: Path) -> None:
    async def play() -> None:
        router = InferenceRouter(tmp_path / "models", InferenceSettings(), tmp_path / "cache")
        await router.start()
        try:
            assert router.stuck(60) == ""
            await asyncio.sleep(0.2)
            assert "has not come round" in router.stuck(0.1)
            (keeping,) = [task for task in asyncio.all_tasks() if task.get_name() == "the router's housekeeping"]
            keeping.cancel()
            await asyncio.gather(keeping, return_exceptions=True)
            assert router.stuck(60) == "the router's housekeeping has died"
        finally:
            await router.close()

    asyncio.run(play())


def test_what_the_manager_said_is_read_once_and_removed() -> None:
    me = str(os.getpid())
    said = {"NOTIFY_SOCKET": "@n", "WATCHDOG_USEC": "30000000", "WATCHDOG_PID": me, "LISTEN_PID": me}
    said |= {"LISTEN_FDS": "2", "LISTEN_FDNAMES": "continuon-brain", "PATH": "/bin"}
    assert ServiceManager.take(said) == ServiceManager("@n", 30.0, ("continuon-brain", "unknown"))
    assert said == {"PATH": "/bin"}
    assert ServiceManager.take({}) == ServiceManager()


@pytest.mark.parametrize(
    "said",
    [
        {"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1", "LISTEN_FDS": "1", "LISTEN_PID": "1"},
        {"WATCHDOG_USEC": "often", "LISTEN_FDS": "-1", "LISTEN_PID": str(os.getpid())},
        {"LISTEN_FDS": "1"},
    ],
)
def test_what_is_meant_for_another_process_or_is_no_number_is_not_heeded(said: dict[str, str]) -> None:
    assert ServiceManager.take(said) == ServiceManager()
    assert not said


def test_crashes_count_in_a_row_and_a_steady_start_or_a_stop_ends_the_count(tmp_path: Path) -> None:
    def start() -> DaemonStarts:
        made = DaemonStarts(tmp_path, 1)
        made.reason = made.begin()  # type: ignore[attr-defined]
        return made

    def reasons(count: int) -> list[bool]:
        return [bool(start().reason) for _ in range(count)]  # type: ignore[attr-defined]

    assert reasons(4) == [False, False, False, True]
    start().steady()
    assert reasons(1) == [True], "steady in safe mode is no proof of the rest"
    start().stopped()
    assert reasons(3) == [False, False, False]
    start().stopped()
    start().steady()
    assert reasons(3) == [False, False, False]


@pytest.mark.parametrize(
    "content", ["", "[]", "no JSON", '{"crashes": "many"}', '{"crashes": -3}', '{"crashes": true}']
)
def test_a_damaged_record_of_starts_counts_anew(tmp_path: Path, content: str) -> None:
    (tmp_path / "starts.json").write_text(content)
    assert DaemonStarts(tmp_path, 0).begin() == ""
    assert json.loads((tmp_path / "starts.json").read_text()) == {"crashes": 1}


def test_a_card_that_cannot_be_written_holds_no_start_up(tmp_path: Path) -> None:
    assert DaemonStarts(tmp_path / "nowhere", 3).begin() == ""
