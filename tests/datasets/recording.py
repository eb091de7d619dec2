"""Capture files for the converter, written by the logger that robots use."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import orjson

from brain_service.episodes.episode import Column, Episode
from brain_service.episodes.logger import EpisodeLogger
from brain_service.trees import unflatten

from .samples import make_episode


def record(directory: Path, episodes: Iterable[Episode], *, format: str = "jsonl") -> list[Path]:
    """Play episodes through an EpisodeLogger and return their files."""
    with EpisodeLogger(directory, format=format) as logger:  # type: ignore[arg-type]
        return [_record_one(logger, episode) for episode in episodes]


def _record_one(logger: EpisodeLogger, episode: Episode) -> Path:
    logger.start_episode(
        **{"environment_id": "bench"} | episode.metadata,
        episode_id=episode.episode_id,
        features=episode.spec.to_json(),
    )
    for i in range(len(episode)):
        logger.log_step(
            _step(episode.observation, i),
            _step(episode.action, i),
            float(episode.reward[i]),
            bool(episode.is_terminal[i]),
            timestamp_ns=int(episode.timestamp_ns[i]),
            control_role=episode.control_role[i],
        )
    final = episode.final_observation
    return logger.end_episode(final_observation=None if final is None else unflatten(final))


def _step(columns: Mapping[str, Column], index: int) -> dict[str, Any]:
    return unflatten({path: column[index] for path, column in columns.items()})


def record_many(directory: Path, lengths: Iterable[int], **options: Any) -> list[Episode]:
    """Record episodes `e00`, `e01`, ... of the given lengths and return them."""
    episodes = [make_episode(f"e{n:02d}", steps, **options) for n, steps in enumerate(lengths)]
    record(directory, episodes)
    return episodes


def write_seed_file(path: Path, states: Iterable[list[float]]) -> None:
    """Write a `.jsonl` as the seed's logger did: no header, no checksum."""
    path.parent.mkdir(parents=True, exist_ok=True)
    steps = [
        {
            "observation": {"state": state},
            "action": {"command": [0.5, -0.5]},
            "reward": 1.0,
            "is_terminal": False,
            "step_metadata": {"timestamp": 1_700_000_000.0 + n / 20},
        }
        for n, state in enumerate(states)
    ]
    path.write_bytes(b"".join(orjson.dumps(step) + b"\n" for step in steps))
