"""Real processes, really killed: every step that was answered is there afterwards, and the robot goes on."""

import subprocess
import sys
from pathlib import Path

import pytest

from brain_service.episodes.logger import EpisodeLogger
from brain_service.episodes.reader import read_episode
from tests.episodes.bodies import JSON, as_json, open_store, step


def record_until_killed(root: Path, *arguments: str, answers: int) -> tuple[str, int, int]:
    """Let a child record, SIGKILL it after some answers; return id, last accepted and last durable index."""
    command = [sys.executable, "-m", "tests.episodes.child", str(root), *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        episode = child.stdout.readline().split()[1]
        said = [child.stdout.readline() for _ in range(answers)]
        child.kill()
        said += [line for line in child.stdout if line.endswith("\n")]
        assert child.wait() == -9
    accepted, durable = said[-1].split()
    return episode, int(accepted), int(durable)


@pytest.mark.parametrize(
    ("durability", "batch", "answers"),
    [
        ("interval", 1, 7),
        ("interval", 50, 3),
        ("step", 1, 5),
        ("step", 20, 2),
        ("episode", 1, 200),
        ("episode", 100, 4),
    ],
)
def test_no_accepted_step_is_lost_to_a_kill(tmp_path: Path, durability: str, batch: int, answers: int) -> None:
    episode, accepted, durable = record_until_killed(tmp_path, "store", durability, str(batch), answers=answers)
    assert durable == accepted if durability == "step" else durable <= accepted
    with open_store(tmp_path) as store:
        steps = store.get(episode)["steps"]
        assert steps > accepted
        assert store.get(episode)["durable_through"] == steps - 1
        # The child's last request may have been stored in part: its retry completes it.
        first = accepted + 1
        store.append_json(episode, as_json([step(i) for i in range(first, first + batch)]), JSON)
        store.append_json(episode, as_json(step(first + batch)), JSON)
        assert store.end(episode).steps == first + batch + 1
    found = read_episode(tmp_path / f"{episode}.jsonl")
    for index in (0, accepted // 2, accepted, accepted + 1, first + batch):
        assert found.timestamp_ns[index] == step(index)["timestamp_ns"]
        assert float(found.reward[index]) == pytest.approx(step(index)["reward"], rel=1e-6)


def test_killed_again_and_again_the_log_only_grows(tmp_path: Path) -> None:
    for _ in range(3):
        record_until_killed(tmp_path, "store", "interval", "3", answers=3)
    with open_store(tmp_path) as store:
        items, _ = store.list()
        assert [item["state"] for item in items] == ["open"] * 3
        assert all(item["steps"] >= 9 for item in items)
        assert len(store.status()["recoveries"]) == 3


def test_a_killed_logger_leaves_a_readable_log_that_the_next_one_closes(tmp_path: Path) -> None:
    episode, accepted, _ = record_until_killed(tmp_path, "logger", "interval", answers=20)
    path = tmp_path / f"{episode}.jsonl"
    assert len(read_episode(path)) > accepted
    assert read_episode(path).end is None
    with EpisodeLogger(tmp_path):
        assert read_episode(path).end is None, "a robot may still go on with a log this young"
    with EpisodeLogger(tmp_path, recover_idle_s=1e-6):
        pass
    assert read_episode(path).end == "recovered"
