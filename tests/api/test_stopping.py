"""A stop in the middle of things: what is half sent is told to come again, and nothing holds the exit."""

import signal
import time
from pathlib import Path

import httpx

from tests.api.test_websocket_bounds import close_code, frame, new_episode, stream
from tests.api.wire import assert_raw_problem, connect, read_answer, request_bytes, step_bytes
from tests.processes import running_daemon


def test_a_half_sent_body_is_told_to_come_again_and_holds_no_stop(tmp_path: Path) -> None:
    with running_daemon(tmp_path / "brain") as daemon:
        episode = new_episode(daemon)
        paths = (f"/episodes/{episode}/steps", "/episodes", "/convert")
        halves = [connect(daemon) for _ in range(len(paths) + 1)]
        for half, path in zip(halves, paths, strict=False):
            half.sendall(request_bytes(path, step_bytes(0))[:-5])
        halves[-1].sendall(b"POST /episodes HTTP/1.1\r\nHost: brain\r\n")
        time.sleep(0.2)
        begun_s = time.monotonic()
        daemon.process.send_signal(signal.SIGTERM)
        for half in halves:
            answer = read_answer(half)
            assert "again" in assert_raw_problem(answer, 503)["detail"]
            assert int(answer[1]["retry-after"]) >= 1
            half.close()
        assert daemon.process.wait(10) == 0
        assert time.monotonic() - begun_s < 2.5
    assert "Traceback" not in daemon.log_path.read_text()
    assert '"level": "error"' not in daemon.log_path.read_text()


def test_a_stream_that_is_still_sending_hears_that_the_daemon_stops(tmp_path: Path) -> None:
    with running_daemon(tmp_path / "brain") as daemon:
        episodes = [new_episode(daemon) for _ in range(8)]
        opened = [stream(daemon, episode) for episode in episodes]
        streams = [each.__enter__() for each in opened]
        daemon.process.send_signal(signal.SIGTERM)
        for number in range(40):
            for each in streams:
                try:
                    each.sendall(frame(step_bytes(number) + b" " * 5000))
                except OSError:
                    break
        assert [close_code(each) for each in streams] == [1012] * len(streams)
        for each in streams:
            each.close()
        assert daemon.process.wait(10) == 0
    with running_daemon(tmp_path / "brain") as daemon:
        assert httpx.get(f"{daemon.url}/livez").status_code == 200
    assert "Traceback" not in daemon.log_path.read_text()
