"""Bad days: a killed daemon, a power cut, a cut or silent network, a busy daemon, a killed controller."""

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from brain_service.client import BrainClient, EndedError, EpisodeRecorder, LostStepsError, SpoolError
from brain_service.client.sender import Transport
from brain_service.client.spool import Spool
from brain_service.client.spool_folder import waiting_spools
from tests.client.conftest import Wire
from tests.client.robot import action, assert_recorded, observation
from tests.fakes.proxy import Proxy
from tests.processes import Daemon, running_daemon

TRANSPORTS = pytest.mark.parametrize("transport", ["stream", "post"])


@pytest.mark.long
@TRANSPORTS
def test_a_daemon_that_is_killed_in_the_middle_loses_and_doubles_nothing(
    tmp_path: Path, transport: Transport
) -> None:
    daemon = Daemon(tmp_path / "brain").start()
    count = 0
    try:
        with BrainClient(daemon.url, transport=transport) as client:
            with client.record() as episode:
                for _ in range(2):
                    until = time.monotonic() + random.uniform(0.1, 0.3)
                    while time.monotonic() < until:
                        count = episode.log_step(observation(count), action(count), count) + 1
                        time.sleep(0.001)
                    daemon.kill()
                    for _ in range(50):
                        count = episode.log_step(observation(count), action(count), count) + 1
                    daemon.start()
            assert client.episode(episode.episode_id)["state"] == "truncated"
            assert_recorded(client, episode.episode_id, count)
    finally:
        daemon.stop()


@pytest.mark.soak
@TRANSPORTS
def test_many_kills_and_stops_at_random_instants(tmp_path: Path, transport: Transport) -> None:
    daemon = Daemon(tmp_path / "brain").start()
    counts: dict[str, int] = {}
    rng = random.Random(transport)
    done = threading.Event()

    def restart() -> None:
        for _ in range(25):
            time.sleep(rng.uniform(0, 0.4))
            if rng.random() < 0.8:
                daemon.kill()
            else:
                daemon.stop()
            daemon.start()
        done.set()

    restarting = threading.Thread(target=restart)
    restarting.start()
    try:
        with BrainClient(daemon.url, transport=transport, spool_dir=tmp_path / "spool") as client:
            while not done.is_set():
                with client.record(durability=rng.choice(["interval", "step"])) as episode:
                    for index in range(rng.randrange(1, 2000)):
                        episode.log_step(observation(index), action(index), index)
                        if rng.random() < 0.3:
                            time.sleep(rng.uniform(0, 0.005))
                        counts[episode.episode_id] = index + 1
                    episode.end(timeout_s=240)  # between two restarts there is little time to end it
            restarting.join()
            assert len(counts) > 2
            for episode_id, count in counts.items():
                assert_recorded(client, episode_id, count)
            assert list((tmp_path / "spool").iterdir()) == []
    finally:
        restarting.join()
        daemon.stop()


@pytest.mark.soak
@TRANSPORTS
def test_a_network_that_has_every_fault_at_random(wire: Wire, transport: Transport) -> None:
    rng = random.Random(transport)
    counts: dict[str, int] = {}
    faults: list[Callable[[Proxy], None]] = [
        lambda proxy: proxy.drop(),
        lambda proxy: setattr(proxy, "busy", rng.randrange(1, 3)),
        lambda proxy: setattr(proxy, "delay_s", rng.uniform(0, 0.05)),
        lambda proxy: setattr(proxy, "swallow", True),
        lambda proxy: setattr(proxy, "refuse", True),
    ]
    give_up = time.monotonic() + 30
    with BrainClient(wire.url, transport=transport, timeout_s=1) as client:
        while time.monotonic() < give_up:
            with client.record() as episode:
                for index in range(rng.randrange(1, 500)):
                    episode.log_step(observation(index), action(index), index)
                    counts[episode.episode_id] = index + 1
                    if rng.random() < 0.05:
                        rng.choice(faults)(wire.proxy)
                        time.sleep(rng.uniform(0, 0.1))
                        wire.proxy.swallow = wire.proxy.refuse = False
                        wire.proxy.delay_s = 0.0
                        if rng.random() < 0.5:
                            wire.proxy.drop()
    with BrainClient(wire.daemon.url) as client:
        for episode_id, count in counts.items():
            assert_recorded(client, episode_id, count)
    assert len(counts) > 2


def cut_log(daemon: Daemon, episode_id: str, steps: int) -> None:
    """Do what a power cut may do: take the last lines off the open log, down to `steps` steps."""
    path = daemon.data_dir / "episodes" / f"{episode_id}.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[: 1 + steps]) + lines[1 + steps][:30])


@pytest.mark.long
@TRANSPORTS
def test_what_a_power_cut_took_from_the_daemon_is_sent_again(tmp_path: Path, transport: Transport) -> None:
    env = {"BRAIN_CAPTURE__SYNC_INTERVAL_S": "60"}
    with (
        running_daemon(tmp_path / "brain", env=env) as daemon,
        BrainClient(daemon.url, transport=transport) as client,
    ):
        episode = client.record()
        for index in range(40):
            episode.log_step(observation(index), action(index), index)
        episode.flush(durable=False)
        assert (episode.accepted_through, episode.durable_through, episode.pending) == (39, -1, 40)
        daemon.kill()
        cut_log(daemon, episode.episode_id, 25)
        daemon.start()
        for index in range(40, 45):
            episode.log_step(observation(index), action(index), index)
        episode.flush(durable=False)
        assert episode.end().steps == 45
        assert_recorded(client, episode.episode_id, 45)


@pytest.mark.long
def test_steps_that_were_durable_and_are_gone_are_not_papered_over(tmp_path: Path) -> None:
    with running_daemon(tmp_path / "brain") as daemon, BrainClient(daemon.url) as client:
        episode = client.record()
        for index in range(40):
            episode.log_step(observation(index), action(index), index)
        episode.flush()
        daemon.kill()
        cut_log(daemon, episode.episode_id, 25)
        daemon.start()
        # A client that was refused while the daemon started waits before it asks again, longer each time.
        with pytest.raises(LostStepsError, match=r"has 25 steps of .*, but called 40"):
            for index in range(40, 4000):
                episode.log_step(observation(index), action(index), index)
                time.sleep(0.02)


@TRANSPORTS
def test_connections_that_are_cut_again_and_again(wire: Wire, transport: Transport) -> None:
    wire.proxy.delay_s = 0.005
    with BrainClient(wire.url, transport=transport) as client:
        with client.record() as episode:
            for index in range(400):
                episode.log_step(observation(index), action(index), index)
                time.sleep(0.001)
                if index % 40 == 20:
                    wire.proxy.drop()
        assert wire.proxy.connections > 3
        assert_recorded(client, episode.episode_id, 400)


@TRANSPORTS
def test_lost_answers_are_asked_for_again(wire: Wire, transport: Transport) -> None:
    with BrainClient(wire.url, transport=transport, timeout_s=1) as client:
        wire.proxy.swallow = True  # even the creation's answer is lost
        with client.record() as episode:
            for index in range(30):
                episode.log_step(observation(index), action(index), index)
            time.sleep(0.2)
            assert episode.accepted_through == -1
            wire.proxy.drop()
            time.sleep(0.05)
            wire.proxy.swallow = False
            wire.proxy.drop()
            episode.flush()
            wire.proxy.swallow = True
            for index in range(30, 60):
                episode.log_step(observation(index), action(index), index)
            time.sleep(0.1)
            wire.proxy.swallow = False
            wire.proxy.drop()
        assert_recorded(client, episode.episode_id, 60)


@TRANSPORTS
def test_a_busy_daemon_is_asked_again_when_it_said(wire: Wire, transport: Transport) -> None:
    wire.proxy.busy = 2
    started_s = time.monotonic()
    with BrainClient(wire.url, transport=transport) as client:
        with client.record() as episode:
            for index in range(20):
                episode.log_step(observation(index), action(index), index)
        assert time.monotonic() - started_s >= 0.4, "retry_after_s was 0.2, twice"
        assert_recorded(client, episode.episode_id, 20)


@pytest.mark.long
def test_a_full_disk_passes(tmp_path: Path) -> None:
    # A reserve that no disk has: every episode is refused with 503 until the daemon comes back with a sane one.
    daemon = Daemon(tmp_path / "brain", env={"BRAIN_CAPTURE__MIN_FREE_BYTES": str(2**60)}).start()
    with BrainClient(daemon.url) as client:
        episode = client.record()
        episode.log_step(observation(0), action(0), 0)
        give_up = time.monotonic() + 5
        while episode.trouble is None and time.monotonic() < give_up:
            time.sleep(0.01)
        assert episode.trouble is not None
        assert "503" in episode.trouble.detail
        daemon.stop()
        healthy = Daemon(tmp_path / "brain", port=daemon.port).start()
        try:
            episode.end()
            assert_recorded(client, episode.episode_id, 1)
        finally:
            healthy.stop()


CONTROLLER = """
import sys, time
from brain_service.client import BrainClient
from tests.client.robot import observation, action
client = BrainClient(sys.argv[1], spool_dir=sys.argv[2], max_buffer_bytes=20_000)
episode = client.record(environment_id="spooled")
print(episode.episode_id, flush=True)
for index in range(int(sys.argv[3])):
    episode.log_step(observation(index), action(index), index)
    print(index, flush=True)
if sys.argv[4] == "end":
    try:
        episode.end("terminated", observation(9), timeout_s=0.01)
    except TimeoutError:
        pass
print("done", flush=True)
time.sleep(60)
"""


def run_controller(url: str, spool: Path, steps: int, then: str) -> tuple[str, int]:
    """Run a controller until it has logged its steps, kill it, and return its episode and how many it logged."""
    command = [sys.executable, "-c", CONTROLLER, url, str(spool), str(steps), then]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": "."}
    ) as child:
        assert child.stdout is not None
        episode_id = child.stdout.readline().strip()
        count = 0
        for line in child.stdout:
            if line.strip() == "done":
                break
            count = int(line) + 1
        child.send_signal(signal.SIGKILL)
    return episode_id, count


@pytest.mark.parametrize("then", [pytest.param("die", marks=pytest.mark.long), "end"])
def test_a_killed_controllers_steps_are_resent_by_the_next_client(tmp_path: Path, then: str) -> None:
    daemon = Daemon(tmp_path / "brain")
    episode_id, count = run_controller(daemon.url, tmp_path / "spool", 300, then)
    assert count == 300
    with BrainClient(daemon.start().url, spool_dir=tmp_path / "spool") as client:
        try:
            (resent,) = client.resend_spool(20)
            assert resent.error is None
            assert resent.episode_id == episode_id
            assert resent.ended is not None
            assert resent.ended.steps == 300
            summary = client.episode(episode_id)
            assert summary["state"] == ("terminated" if then == "end" else "truncated")
            assert summary["metadata"]["environment_id"] == "spooled"
            assert_recorded(client, episode_id, 300)
            assert list((tmp_path / "spool").iterdir()) == []
            assert client.resend_spool() == []
        finally:
            daemon.stop()


def test_a_controller_killed_while_the_daemon_took_its_steps(shared_daemon: Daemon, tmp_path: Path) -> None:
    episode_id, count = run_controller(shared_daemon.url, tmp_path, 200, "die")
    with BrainClient(shared_daemon.url, spool_dir=tmp_path) as client:
        (resent,) = client.resend_spool(20)
        assert resent.error is None, resent
        assert_recorded(client, episode_id, count)


def test_a_living_recorders_spool_is_left_alone(shared_daemon: Daemon, tmp_path: Path) -> None:
    with (
        BrainClient(shared_daemon.url, spool_dir=tmp_path) as one,
        BrainClient(shared_daemon.url, spool_dir=tmp_path) as other,
    ):
        with one.record() as episode:
            episode.log_step(observation(0), action(0), 0)
            (seen,) = other.resend_spool()
            assert isinstance(seen.error, SpoolError)
            assert one.resend_spool() == [], "its own living episode is not news"
        assert_recorded(one, episode.episode_id, 1)
        assert other.resend_spool() == []


def test_a_spool_for_an_episode_that_has_ended_is_set_aside(shared_daemon: Daemon, tmp_path: Path) -> None:
    episode_id, _ = run_controller("http://127.0.0.1:9", tmp_path, 5, "die")
    with BrainClient(shared_daemon.url) as client, client.record(episode_id=episode_id) as episode:
        episode.log_step(observation(0), action(0), 0)
    with BrainClient(shared_daemon.url, spool_dir=tmp_path) as client:
        (resent,) = client.resend_spool(10)
        assert isinstance(resent.error, EndedError)
        assert [path.name for path in tmp_path.iterdir()] == [f"{episode_id}.rejected"]
        assert json.loads((tmp_path / f"{episode_id}.rejected" / "episode.json").read_bytes())["episode_id"]
        assert client.resend_spool() == []
    with pytest.raises(SpoolError, match="spool_dir"), BrainClient(shared_daemon.url) as client:
        client.resend_spool()


def spool_offline(spool_dir: Path, count: int, **fields: Any) -> str:
    """Record while there is no daemon, close the client, and return the episode."""
    with BrainClient("http://127.0.0.1:9", spool_dir=spool_dir, max_buffer_bytes=20_000) as client:
        episode = client.record(**fields)
        for index in range(count):
            episode.log_step(observation(index), action(index), index)
        client.close(0)
    return episode.episode_id


def test_a_spool_larger_than_memory_comes_home_though_nothing_is_durable_before_the_end(
    shared_daemon: Daemon, tmp_path: Path
) -> None:
    episode_id = spool_offline(tmp_path, 500, durability="episode")
    with BrainClient(shared_daemon.url, spool_dir=tmp_path, max_buffer_bytes=20_000) as client:
        (resent,) = client.resend_spool(20)
        assert resent.error is None
        assert_recorded(client, episode_id, 500)


def test_memory_full_of_accepted_steps_makes_room_for_those_on_disk(wire: Wire, tmp_path: Path) -> None:
    wire.proxy.refuse = True
    with BrainClient(wire.url, spool_dir=tmp_path, max_buffer_bytes=20_000) as client:
        with client.record(durability="episode") as episode:
            for index in range(500):
                episode.log_step(observation(index), action(index), index)
            wire.proxy.refuse = False
        assert_recorded(client, episode.episode_id, 500)


def test_a_spool_is_flushed_to_its_medium_off_the_callers_thread(tmp_path: Path) -> None:
    with BrainClient("http://127.0.0.1:9", spool_dir=tmp_path, spool_sync_interval_s=0.05) as client:
        episode = client.record()
        assert episode.spooled_through == -1
        for count in (10, 20):
            while episode.log_step({"x": 1.0}, {"y": 1.0}) < count - 1:
                pass
            give_up = time.monotonic() + 10
            while episode.spooled_through < count - 1:
                assert time.monotonic() < give_up
                time.sleep(0.01)
        assert (episode.spooled_through, episode.durable_through) == (19, -1)
        episode.log_step({"x": 1.0}, {"y": 1.0})
        client.close(0)
        assert episode.spooled_through == 20
    with pytest.raises(ValueError, match="spool_sync_interval_s is 0"):
        BrainClient(spool_sync_interval_s=0)


def test_a_damaged_spool_is_told_and_set_aside_and_the_others_come_home(
    shared_daemon: Daemon, tmp_path: Path
) -> None:
    bad, good = spool_offline(tmp_path, 5), spool_offline(tmp_path, 5)
    (tmp_path / bad / "episode.json").write_bytes(b"[1]")
    with BrainClient(shared_daemon.url, spool_dir=tmp_path) as client:
        errors = {resent.episode_id: resent.error for resent in client.resend_spool(20)}
        assert isinstance(errors[bad], SpoolError)
        assert errors[good] is None
        assert_recorded(client, good, 5)
        assert [path.name for path in tmp_path.iterdir()] == [f"{bad}.rejected"]


def test_a_thread_that_records_while_the_client_closes_is_told_and_what_it_was_promised_is_there(
    tmp_path: Path,
) -> None:
    counts: dict[str, int] = {}
    surprises: list[BaseException] = []

    def record(episode: EpisodeRecorder) -> None:
        try:
            while True:
                counts[episode.episode_id] = episode.log_step({"x": 1.0}, {"y": 1.0}) + 1
        except EndedError:
            pass
        except BaseException as error:  # noqa: BLE001  (whatever it is, it is told below)
            surprises.append(error)

    for _ in range(10):
        client = BrainClient("http://127.0.0.1:9", spool_dir=tmp_path)
        threads = [threading.Thread(target=record, args=(client.record(),)) for _ in range(3)]
        for thread in threads:
            thread.start()
        client.close(0)
        for thread in threads:
            thread.join()
    assert surprises == []
    for path in waiting_spools(tmp_path):
        spool = Spool.resume(path, 10**9)
        assert spool is not None
        assert spool.next_index == counts.get(path.name, 0)
        spool.close()


@pytest.mark.long
def test_with_a_spool_an_hour_offline_costs_little_memory(tmp_path: Path) -> None:
    daemon = Daemon(tmp_path / "brain")
    with BrainClient(daemon.url, spool_dir=tmp_path / "spool", max_buffer_bytes=50_000) as client:
        with client.record() as episode:
            for index in range(3_000):
                episode.log_step(observation(index), action(index), index)
            assert episode.buffered_bytes <= 50_000
            daemon.start()
        try:
            assert_recorded(client, episode.episode_id, 3_000)
            assert list((tmp_path / "spool").iterdir()) == []
        finally:
            daemon.stop()
