"""Step bodies and stores that the capture tests share."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson

from brain_service.episodes.schema import StepIn
from brain_service.episodes.store import EpisodeStore
from brain_service.episodes.wire import body_kind, parse_step, split_steps
from brain_service.settings import CaptureSettings

JSON = "application/json"
NDJSON = "application/x-ndjson"
SPEC: dict[str, dict[str, Any]] = {
    "observation": {"arm/joints": {"dtype": "float32", "shape": [3]}, "grip": {"dtype": "bool"}},
    "action": {"command": {"dtype": "float32", "shape": [2]}},
}


def step(index: int | None = None, **changes: Any) -> dict[str, Any]:
    """Return a step body whose values tell its index (0.1 is no float32, so the text form matters)."""
    i = index or 0
    body: dict[str, Any] = {
        "observation": {"arm": {"joints": [0.1 * i, 1.0, -2.5]}, "grip": i % 2 == 0},
        "action": {"command": [0.01 * i, 1e-7]},
        "reward": 0.1 * i,
        "timestamp_ns": 1_700_000_000_000_000_000 + i,
    }
    if index is not None:
        body["step_index"] = index
    return body | changes


def as_json(body: Any) -> bytes:
    """Return the request body."""
    return orjson.dumps(body)


def parse_steps(body: bytes, content_type: str, max_steps: int) -> tuple[list[StepIn], bool]:
    """Return the steps of a request body, and whether they came as a batch."""
    kind = body_kind(content_type)
    pieces, batch = split_steps(body, kind, max_steps)
    return [parse_step(piece, kind, f"steps/{n}" if batch else "") for n, piece in enumerate(pieces)], batch


@contextlib.contextmanager
def open_store(root: Path, **settings: Any) -> Iterator[EpisodeStore]:
    """Run a store whose recovery is done; the disk reserve is off unless given."""
    store = EpisodeStore(root, CaptureSettings(**{"min_free_bytes": 0, **settings}))
    store.start()
    try:
        assert store.wait_recovered(30)
        yield store
    finally:
        store.close()


def begin(store: EpisodeStore, count: int = 0, **body: Any) -> str:
    """Create an episode, append `count` steps to it and return its id."""
    episode = store.create(body).episode_id
    for index in range(count):
        store.append_json(episode, as_json(step(index)), JSON)
    return episode
