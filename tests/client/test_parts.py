"""A recording whose episode the daemon closed as `recovered` while it was out of reach goes on in another one."""

import contextlib
import json
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from brain_service.client import (
    BrainClient,
    EndedError,
    EpisodeRecorder,
    LostStepsError,
    SpoolError,
    TimedOutError,
)
from brain_service.client.parts import part_body, part_id
from brain_service.client.sender import Transport
from brain_service.client.spool import Spool
from brain_service.episodes.header import is_episode_id
from tests.client.conftest import Wire
from tests.client.robot import action, assert_recorded, observation
from tests.fakes.proxy import running_proxy
from tests.processes import Daemon

TRANSPORTS = pytest.mark.parametrize("transport", ["stream", pytest.param("post", marks=pytest.mark.long)])
HASTY = {"BRAIN_CAPTURE__RECOVER_IDLE_S": "0.2"}


@pytest.fixture
def hasty(tmp_path: Path) -> Iterator[Wire]:
    """A daemon that closes what nobody goes on with 0.2 s after its restart, behind a proxy."""
    daemon = Daemon(tmp_path / "brain", env=HASTY).start()
    try:
        with running_proxy(daemon.port) as proxy:
            yield Wire(daemon, proxy)
    finally:
        daemon.stop()


def log(episode: EpisodeRecorder, first: int, end: int) -> None:
    for index in range(first, end):
        assert episode.log_step(observation(index), action(index), index) == index


def wait_for_state(daemon: Daemon, episode_id: str, state: str) -> None:
    give_up = time.monotonic() + 20
    with BrainClient(daemon.url) as client:
        while client.episode(episode_id)["state"] != state:
            assert time.monotonic() < give_up
            time.sleep(0.05)


@contextlib.contextmanager
def closed_meanwhile(wire: Wire, episode: EpisodeRecorder) -> Iterator[None]:
    """Cut the recorder off for a block, in the end of which the daemon restarts and closes the episode."""
    wire.proxy.refuse = True
    wire.proxy.drop()
    yield
    wire.daemon.kill()
    wire.daemon.start()
    wait_for_state(wire.daemon, episode.episode_id, "recovered")
    wire.proxy.refuse = False


@TRANSPORTS
def test_what_was_recorded_meanwhile_goes_into_another_episode(hasty: Wire, transport: Transport) -> None:
    with BrainClient(hasty.url, transport=transport) as client:
        episode = client.record(environment_id="kitchen", metadata={"take": 3})
        log(episode, 0, 20)
        episode.flush()
        first = episode.episode_id
        with closed_meanwhile(hasty, episode):
            log(episode, 20, 70)
        episode.flush(20)
        assert (episode.durable_through, episode.pending, episode.trouble) == (69, 0, None)
        second = episode.episode_id
        assert (second, episode.earlier_episode_ids) == (f"{first}-part2", (first,))
        with closed_meanwhile(hasty, episode):
            log(episode, 70, 80)
        log(episode, 80, 90)
        ended = episode.end("terminated", observation(90))
        assert (ended.steps, ended.durable_through, ended.reason) == (90, 89, "terminated")
        assert ended.episode_ids == (first, second, f"{first}-part3")
        for episode_id, start, end in zip(ended.episode_ids, (0, 20, 70), (20, 70, 90), strict=True):
            assert_recorded(client, episode_id, end - start, start)
        summaries = [client.episode(episode_id) for episode_id in ended.episode_ids]
    assert [summary["state"] for summary in summaries] == ["recovered", "recovered", "terminated"]
    assert [summary["metadata"].get("continues") for summary in summaries] == [None, first, second]
    assert {summary["metadata"]["environment_id"] for summary in summaries} == {"kitchen"}
    assert {summary["metadata"]["take"] for summary in summaries} == {3}


@pytest.mark.long
@TRANSPORTS
def test_a_recorder_that_has_nothing_to_send_makes_no_empty_episode(hasty: Wire, transport: Transport) -> None:
    with BrainClient(hasty.url, transport=transport) as client:
        with client.record() as episode:
            log(episode, 0, 20)
            episode.flush()
            with closed_meanwhile(hasty, episode):
                pass
        assert client.episode(episode.episode_id)["steps"] == 20
        assert episode.earlier_episode_ids == ()
        assert len(list(client.episodes())) == 1


@pytest.mark.long
def test_after_a_pause_in_which_the_episode_was_closed_the_next_step_begins_another(hasty: Wire) -> None:
    with BrainClient(hasty.url) as client:
        with client.record() as episode:
            log(episode, 0, 20)
            episode.flush()
            with closed_meanwhile(hasty, episode):
                pass
            time.sleep(1.5)  # it has asked, and waits for a step
            log(episode, 20, 25)
        assert_recorded(client, episode.earlier_episode_ids[0], 20)
        assert_recorded(client, episode.episode_id, 5, 20)


@pytest.mark.long
def test_steps_that_the_closed_episode_had_but_never_acknowledged_are_not_sent_again(hasty: Wire) -> None:
    with BrainClient(hasty.url, timeout_s=2) as client:
        episode = client.record()
        log(episode, 0, 20)
        episode.flush()
        hasty.proxy.swallow = True
        log(episode, 20, 40)
        give_up = time.monotonic() + 10
        with BrainClient(hasty.daemon.url) as direct:
            while direct.episode(episode.episode_id)["steps"] < 40:
                assert time.monotonic() < give_up
                time.sleep(0.02)
        assert episode.accepted_through == 19
        with closed_meanwhile(hasty, episode):
            hasty.proxy.swallow = False
            log(episode, 40, 50)
        assert episode.end().steps == 50
        assert_recorded(client, episode.earlier_episode_ids[0], 40)
        assert_recorded(client, episode.episode_id, 10, 40)


@pytest.mark.parametrize("noted", [True, pytest.param(False, marks=pytest.mark.long)])
def test_a_spool_goes_on_where_its_controller_was_stopped(hasty: Wire, tmp_path: Path, noted: bool) -> None:
    """Stopped before the second episode, and in it (without the note: just after the daemon made it)."""
    spool_dir = tmp_path / "spool"
    with BrainClient(hasty.url, spool_dir=spool_dir, max_buffer_bytes=20_000) as client:
        episode = client.record()
        log(episode, 0, 200)
        episode.flush()
        first = episode.episode_id
        with closed_meanwhile(hasty, episode):
            log(episode, 200, 900)
            client.close(0)
    second = part_id(first, 2)
    with BrainClient(hasty.url, spool_dir=spool_dir) as client:
        hasty.proxy.delay_s = 0.3
        (resent,) = client.resend_spool(1.0)  # time enough to make the second episode, not to end it
        assert isinstance(resent.error, TimedOutError)
        assert client.episode(second)["state"] == "open"
    note = spool_dir / first / "continued.json"
    assert json.loads(note.read_bytes()) == [200]
    if not noted:
        note.unlink()
    hasty.proxy.delay_s = 0
    with BrainClient(hasty.url, spool_dir=spool_dir) as client:
        (resent,) = client.resend_spool(20)
        assert resent.ended is not None, resent.error
        assert (resent.episode_id, resent.ended.episode_ids) == (first, (first, second))
        assert resent.ended.steps == 900
        assert_recorded(client, first, 200)
        assert_recorded(client, second, 700, 200)
        assert client.resend_spool() == []
        assert len(list(client.episodes())) == 2
    assert list(spool_dir.iterdir()) == []


@pytest.mark.long
def test_the_note_of_the_second_episode_outlives_the_spools_first_steps(hasty: Wire, tmp_path: Path) -> None:
    spool_dir = tmp_path / "spool"
    client = BrainClient(hasty.url, spool_dir=spool_dir)
    episode = client.record()
    log(episode, 0, 20)
    episode.flush()
    first = episode.episode_id
    with closed_meanwhile(hasty, episode):
        log(episode, 20, 3_000)  # more than a segment that is tidied away once it is durable
    episode.flush(20)
    log(episode, 3_000, 3_001)
    episode.flush(20)
    give_up = time.monotonic() + 20
    while (spool_dir / first / "000000000000.steps").exists():  # tidied by the sender after its acknowledgement
        assert time.monotonic() < give_up
        time.sleep(0.05)
    client.close(0)
    with BrainClient(hasty.url, spool_dir=spool_dir) as client:
        (resent,) = client.resend_spool(20)
        assert resent.ended is not None, resent.error
        assert resent.ended.steps == 3_001
        assert_recorded(client, part_id(first, 2), 2_981, 20)


@pytest.mark.long
def test_what_is_gone_is_not_papered_over_by_another_episode(hasty: Wire) -> None:
    with BrainClient(hasty.url) as client:
        episode = client.record()
        log(episode, 0, 20)
        episode.flush()
        path = hasty.daemon.data_dir / "episodes" / f"{episode.episode_id}.jsonl"
        hasty.proxy.refuse = True
        hasty.proxy.drop()
        hasty.daemon.kill()
        path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:11]))
        hasty.daemon.start()
        wait_for_state(hasty.daemon, episode.episode_id, "recovered")
        hasty.proxy.refuse = False
        with pytest.raises(LostStepsError, match=r"has 10 steps of .*, but called 20"):
            episode.end(timeout_s=20)


def test_an_episode_that_somebody_ended_is_not_gone_on_with(hasty: Wire) -> None:
    with BrainClient(hasty.url) as client:
        episode = client.record()
        log(episode, 0, 20)
        episode.flush()
        hasty.proxy.refuse = True
        hasty.proxy.drop()
        log(episode, 20, 30)
        httpx.post(f"{hasty.daemon.url}/episodes/{episode.episode_id}/end", json={}).raise_for_status()
        hasty.proxy.refuse = False
        with pytest.raises(EndedError, match="truncated with 20 steps; 30 were"):
            episode.flush(20)


@pytest.mark.parametrize("first_id", ["20261126T010203-0123456789ab", "x" * 128])
def test_the_names_of_parts_are_names_that_the_daemon_takes(first_id: str) -> None:
    found = [part_id(first_id, number) for number in (1, 2, 3, 999_999)]
    assert len(set(found)) == 4
    assert all(is_episode_id(episode_id) for episode_id in found)
    body = part_body({"episode_id": first_id, "metadata": None}, 3)
    assert body == {"episode_id": found[2], "metadata": {"continues": found[1]}}


def test_a_damaged_note_of_parts_is_told(tmp_path: Path) -> None:
    spool = Spool.create(tmp_path, {"episode_id": "e1"}, 10**9)
    spool.keep_continued([20])
    spool.close()
    (spool.path / "continued.json").write_bytes(b'["x"]')
    with pytest.raises(SpoolError, match="holds no episode"):
        Spool.resume(spool.path, 10**9)
