"""Recording through the client, against the real daemon, over both transports."""

import logging
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from brain_service.client import (
    BrainClient,
    BufferFullError,
    ClientError,
    ConflictError,
    EncodeError,
    EndedError,
    NotFoundError,
    RejectedError,
    TimedOutError,
    UnreachableError,
)
from brain_service.client.sender import Transport
from tests.client.conftest import Wire
from tests.client.robot import action, assert_recorded, observation
from tests.pictures import picture
from tests.processes import Daemon, free_port


@pytest.fixture(params=["stream", "post"])
def transport(request: pytest.FixtureRequest) -> Transport:
    found: Transport = request.param
    return found


@pytest.fixture
def client(shared_daemon: Daemon, transport: Transport) -> Iterator[BrainClient]:
    with BrainClient(shared_daemon.url, transport=transport) as found:
        yield found


def test_a_block_records_an_episode(client: BrainClient) -> None:
    with client.record(environment_id="toy", xr_mode="trainer", tags=["a", "b"], robot_id="r1") as episode:
        for index in range(50):
            assert episode.log_step(observation(index), action(index), float(index), index == 49) == index
    summary = client.episode(episode.episode_id)
    assert (summary["state"], summary["steps"]) == ("terminated", 50)
    assert summary["metadata"]["tags"] == ["a", "b"]
    assert summary["features"]["observation"]["ticks"] == {"dtype": "int64", "shape": []}
    assert (episode.accepted_through, episode.durable_through, episode.pending) == (49, 49, 0)
    assert episode.buffered_bytes == 0
    assert_recorded(client, episode.episode_id, 50)


def test_a_flush_waits_until_the_medium_has_it(client: BrainClient) -> None:
    episode = client.record()
    for index in range(3):
        episode.log_step(observation(index), action(index), index)
    episode.flush(durable=False)
    assert episode.accepted_through == 2
    episode.flush()
    assert (episode.durable_through, episode.pending) == (2, 0)
    ended = episode.end("truncated", observation(3))
    assert (ended.steps, ended.durable_through, ended.reason) == (3, 2, "truncated")
    assert episode.end("truncated", observation(3)) == ended
    with pytest.raises(EndedError, match=episode.episode_id):
        episode.log_step(observation(3), action(3))


@pytest.mark.parametrize("durability", ["interval", "step", "episode"])
def test_every_durability_ends_durable(client: BrainClient, durability: Any) -> None:
    with client.record(durability=durability) as episode:
        for index in range(20):
            episode.log_step(observation(index), action(index), index)
        if durability == "episode":
            with pytest.raises(ClientError, match="end"):
                episode.flush()
            episode.flush(durable=False)
            assert (episode.accepted_through, episode.durable_through) == (19, -1)
    assert episode.durable_through == 19
    assert_recorded(client, episode.episode_id, 20)


def test_what_comes_with_a_step_is_stored(client: BrainClient) -> None:
    with client.record() as episode:
        episode.log_step(
            {"x": 1.5, "text": "up"},
            {"y": [0.5, 1]},
            timestamp_ns=123,
            control_role="intervention",
            executed_action={"y": [0.25, 1]},
            policy={"model_id": "m"},
        )
    (record,) = client.steps(episode.episode_id)
    assert record["step_metadata"]["timestamp_ns"] == 123
    assert record["step_metadata"]["control_role"] == "intervention"
    assert record["step_metadata"]["policy"] == {"model_id": "m"}
    np.testing.assert_array_equal(record["executed_action"]["y"], np.array([0.25, 1], np.float32))
    assert record["observation"]["text"] == "up"


def test_a_step_that_has_no_form_leaves_its_index_free(client: BrainClient) -> None:
    with client.record() as episode:
        with pytest.raises(EncodeError):
            episode.log_step({"x": object()}, {"y": 1})
        assert episode.log_step({"x": 1}, {"y": 1}) == 0


def test_a_wrong_step_surfaces_with_its_problem_and_those_before_it_arrive(client: BrainClient) -> None:
    episode = client.record()
    for index in range(30):
        wrong = {"state": [float("nan") if index == 20 else 0.5]}
        episode.log_step(wrong, {"command": [0.1]})
    with pytest.raises(RejectedError) as raised:
        episode.flush()
    assert (raised.value.status, raised.value.field) == (422, "observation/state")
    assert "NaN" in raised.value.detail
    assert raised.value.problem["type"] == "urn:continuon-brain:problem:invalid"
    assert episode.accepted_through == 19
    with pytest.raises(RejectedError):
        episode.log_step({"state": [0.5]}, {"command": [0.1]})
    with pytest.raises(RejectedError):
        episode.end()
    summary = client.episode(episode.episode_id)
    assert (summary["state"], summary["steps"]) == ("truncated", 20), "what was accepted is a whole episode"


def test_a_wrong_episode_surfaces_at_the_next_call(client: BrainClient) -> None:
    episode = client.record(features={"observation": {"x": {"dtype": "float99"}}, "action": {}})
    with pytest.raises(RejectedError) as raised:
        episode.flush()
        episode.log_step({"x": 1}, {"y": 1})
        episode.flush()
    assert raised.value.field is not None
    assert raised.value.field.startswith("features/")


def test_another_body_under_a_stored_index_is_a_conflict(client: BrainClient, shared_daemon: Daemon) -> None:
    episode = client.record()
    episode.log_step({"x": 1}, {"y": 1})
    episode.flush()
    foreign = {"step_index": 1, "observation": {"x": 9}, "action": {"y": 9}}
    httpx.post(f"{shared_daemon.url}/episodes/{episode.episode_id}/steps", json=foreign).raise_for_status()
    episode.log_step({"x": 2}, {"y": 2})
    with pytest.raises(ConflictError) as raised:
        episode.flush()
    assert raised.value.next_step_index == 2
    assert client.episode(episode.episode_id)["state"] == "open", "another client's episode is not ours to end"


def test_an_id_that_is_taken_is_a_conflict(client: BrainClient) -> None:
    with client.record() as episode:
        episode.log_step({"x": 1}, {"y": 1})
    again = client.record(episode_id=episode.episode_id)
    with pytest.raises(ClientError):
        again.log_step({"x": 1}, {"y": 1})
        again.flush()


def test_an_episode_that_was_ended_elsewhere_takes_no_more(client: BrainClient, shared_daemon: Daemon) -> None:
    episode = client.record()
    episode.log_step({"x": 1}, {"y": 1})
    episode.flush()
    httpx.post(f"{shared_daemon.url}/episodes/{episode.episode_id}/end", json={}).raise_for_status()
    with pytest.raises(EndedError, match="truncated"):
        for _ in range(100):
            episode.log_step({"x": 1}, {"y": 1})
            time.sleep(0.02)


def test_an_error_in_the_block_goes_on_and_the_steps_are_brought_home(shared_daemon: Daemon) -> None:
    with (
        BrainClient(shared_daemon.url) as client,
        pytest.raises(ZeroDivisionError),
        client.record() as episode,
    ):
        for index in range(5):
            episode.log_step(observation(index), action(index), index)
        _ = 1 / 0
    with BrainClient(shared_daemon.url) as client:
        assert client.episode(episode.episode_id)["state"] == "truncated"
        assert_recorded(client, episode.episode_id, 5)


def test_a_full_buffer_says_so_and_takes_steps_again_later(tmp_path: Path) -> None:
    daemon = Daemon(tmp_path / "brain", port=free_port())
    with BrainClient(daemon.url, max_buffer_bytes=20_000, timeout_s=1) as client:
        episode = client.record()
        count = 0
        with pytest.raises(BufferFullError, match="max_buffer_bytes = 20000"):
            for _ in range(1000):
                assert episode.log_step(observation(count), action(count), count) == count
                count += 1
        assert 20 < count < 1000
        assert episode.buffered_bytes <= 20_000
        with pytest.raises(TimedOutError, match="not durable"):
            episode.flush(0.3)
        assert isinstance(episode.trouble, UnreachableError)
        try:
            daemon.start()
            episode.flush(20)
            assert episode.trouble is None
            assert episode.log_step(observation(count), action(count), count) == count
            episode.end()
            assert_recorded(client, episode.episode_id, count + 1)
        finally:
            daemon.stop()


def test_closing_with_steps_that_stood_only_in_memory_is_loud() -> None:
    client = BrainClient(f"http://127.0.0.1:{free_port()}")
    episode = client.record()
    episode.log_step({"x": 1}, {"y": 1})
    with pytest.raises(TimedOutError, match="1 steps of"):
        client.close(0.2)
    with pytest.raises(EndedError):
        episode.log_step({"x": 1}, {"y": 1})
    with pytest.raises(ClientError, match="closed"):
        client.record()


def test_the_catalogue_is_read_through_pages(client: BrainClient) -> None:
    made = []
    for number in range(5):
        with client.record(environment_id="pages", tags=[f"n{number}"]) as episode:
            episode.log_step({"x": number}, {"y": 1})
        made.append(episode.episode_id)
    found = [summary["episode_id"] for summary in client.episodes(page_size=2, environment_id="pages")]
    assert len(found) == len(set(found))
    assert set(made) <= set(found)
    mine = [summary["episode_id"] for summary in client.episodes(tag=["n3"], state="truncated")]
    assert made[3] in mine
    assert made[2] not in mine
    with pytest.raises(NotFoundError):
        client.episode("none-such")
    with pytest.raises(NotFoundError):
        list(client.steps("none-such"))


def test_health_is_a_document_even_when_it_is_bad(client: BrainClient) -> None:
    assert client.health()["status"] in ("pass", "warn", "fail")
    with BrainClient(f"http://127.0.0.1:{free_port()}") as nobody, pytest.raises(UnreachableError):
        nobody.health()


def test_it_goes_over_the_unix_socket(shared_daemon: Daemon, transport: Transport) -> None:
    uds = shared_daemon.data_dir / "brain.sock"
    with BrainClient(uds=uds, transport=transport) as client:
        assert str(uds) in repr(client)
        with client.record() as episode:
            for index in range(20):
                episode.log_step(observation(index), action(index), index)
        assert_recorded(client, episode.episode_id, 20)


def test_the_token_opens_the_door_and_stands_in_no_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    tokens = tmp_path / "tokens"
    tokens.write_text("control-token-0123456789 control\nreader-token-0123456789 read\n")
    tokens.chmod(0o600)
    daemon = Daemon(tmp_path / "brain").start("--tokens-file", str(tokens))
    try:
        with BrainClient(daemon.url, token="control-token-0123456789") as client:
            with client.record() as episode:
                episode.log_step({"x": 1}, {"y": 1})
                assert "token" not in repr(client) + repr(episode) + repr(vars(client))
            assert client.episode(episode.episode_id)["steps"] == 1
        with BrainClient(daemon.url, token="reader-token-0123456789", transport="post") as client:
            episode = client.record()
            with pytest.raises(ClientError) as raised:
                episode.log_step({"x": 1}, {"y": 1})
                episode.flush()
            assert getattr(raised.value, "status", None) == 403
    finally:
        daemon.stop()
    assert "token-0123456789" not in caplog.text


def test_where_no_websocket_passes_it_goes_by_post(wire: Wire, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    for wire.proxy.no_upgrade in (False, True):
        with BrainClient(wire.url) as client, client.record() as episode:
            for index in range(20):
                episode.log_step(observation(index), action(index), index)
        with BrainClient(wire.url) as client:
            assert_recorded(client, episode.episode_id, 20)
        assert ("goes by POST" in caplog.text) == wire.proxy.no_upgrade


def test_an_end_that_is_refused_can_be_asked_for_otherwise(client: BrainClient) -> None:
    episode = client.record()
    episode.log_step({"x": 1}, {"y": 1}, is_terminal=True)
    with pytest.raises(ConflictError, match="terminal"):
        episode.end("truncated")
    with pytest.raises(RejectedError) as raised:
        episode.end("terminated", {"other": 1})
    assert raised.value.field == "final_observation/other"
    assert episode.end("terminated", {"x": 2}).reason == "terminated"
    assert client.episode(episode.episode_id)["state"] == "terminated"


FORGETFUL = """
import sys
import threading
from brain_service.client import BrainClient
episode = BrainClient(sys.argv[1]).record()
for index in range(500):
    episode.log_step({"x": float(index)}, {"y": 1.0})
print(episode.episode_id)
"""


@pytest.mark.long
def test_a_program_that_closes_nothing_leaves_nothing_behind(shared_daemon: Daemon) -> None:
    command = [sys.executable, "-c", FORGETFUL]
    done = subprocess.run([*command, shared_daemon.url], capture_output=True, text=True, check=True)
    with BrainClient(shared_daemon.url) as client:
        assert client.episode(done.stdout.strip())["steps"] == 500
    assert "was not ended" in done.stderr
    lost = subprocess.run(
        [*command, f"http://127.0.0.1:{free_port()}"], capture_output=True, text=True, check=True
    )
    assert "500 steps of" in lost.stderr


def test_encoded_images_travel_as_bytes(client: BrainClient, shared_daemon: Daemon) -> None:
    features = {
        "observation": {
            "camera": {"dtype": "image", "shape": [6, 8, 3]},
            "state": {"dtype": "float32", "shape": [2]},
        },
        "action": {"command": {"dtype": "float32", "shape": [1]}},
    }
    frames = [picture(index) for index in range(4)]
    with client.record(features=features) as episode:
        for frame in frames:
            episode.log_step({"camera": frame, "state": np.zeros(2)}, {"command": [0.5]})
    for record, frame in zip(client.steps(episode.episode_id), frames, strict=True):
        name = record["observation"]["camera"].removeprefix("images/")
        stored = httpx.get(f"{shared_daemon.url}/episodes/{episode.episode_id}/images/{name}")
        assert stored.content == frame


def test_who_may_see_an_episode_is_told_with_it(client: BrainClient) -> None:
    with client.record(safety={"pii_attested": True}, share={"public": False, "slug": "a-walk"}) as episode:
        episode.log_step({"x": 1}, {"y": 1})
    metadata = client.episode(episode.episode_id)["metadata"]
    assert metadata["safety"]["pii_attested"] is True
    assert metadata["share"]["slug"] == "a-walk"


def test_many_threads_may_log_into_one_episode(client: BrainClient) -> None:
    def log(indices: list[int]) -> None:
        for _ in range(200):
            indices.append(episode.log_step({"x": 0.5}, {"y": 1}))  # noqa: PERF401  (one call at a time)

    found: list[list[int]] = [[] for _ in range(4)]
    with client.record() as episode:
        threads = [threading.Thread(target=log, args=(indices,)) for indices in found]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(index for indices in found for index in indices) == list(range(800))
    assert all(indices == sorted(indices) for indices in found)
    assert client.episode(episode.episode_id)["steps"] == 800
