"""A robot's process for the crash tests: records steps until it is killed, printing what was accepted.

Arguments: directory, `store` or `logger`, durability, steps a request. Prints `episode <id>`, then
`<step_index> <durable_through>` after each answer.
"""

import os
import sys
from pathlib import Path

from brain_service.episodes.logger import EpisodeLogger
from brain_service.episodes.store import EpisodeStore
from brain_service.settings import CaptureSettings
from tests.episodes.bodies import JSON, as_json, step


def say(text: str) -> None:
    os.write(1, f"{text}\n".encode())


def record_with_store(root: Path, durability: str, batch: int) -> None:
    store = EpisodeStore(root, CaptureSettings(durability=durability, sync_interval_s=0.01, min_free_bytes=0))
    store.start()
    episode = store.create({}).episode_id
    say(f"episode {episode}")
    for first in range(0, 10**9, batch):
        body = as_json([step(i) for i in range(first, first + batch)])
        done = store.append_json(episode, body, JSON)
        say(f"{done.step_index} {done.durable_through}")


def record_with_logger(root: Path, durability: str) -> None:
    logger = EpisodeLogger(root, durability=durability, min_free_bytes=0)
    say(f"episode {logger.start_episode(environment_id='pi5-dev')}")
    for index in range(10**9):
        body = step(index)
        done = logger.log_step(
            body["observation"], body["action"], body["reward"], timestamp_ns=body["timestamp_ns"]
        )
        say(f"{done.step_index} {done.durable_through}")


if __name__ == "__main__":
    if sys.argv[2] == "store":
        record_with_store(Path(sys.argv[1]), sys.argv[3], int(sys.argv[4]))
    else:
        record_with_logger(Path(sys.argv[1]), sys.argv[3])
