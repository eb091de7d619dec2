"""What a robot's steps weigh: posted, on the wire, on the card, compressed; and what that costs in CPU.

    python -m tests.bench bench_wear

The floor of every size is the JSON as a typical controller posts it: `json.dumps` of float64 values. Days are
86,400 s at 100 Hz. Real steps come from Meta-World's scripted expert and are scaled to 160 floats.
"""

import json
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from brain_service.client.wire import encode_step
from brain_service.episodes.archive import Archive, compress_log
from brain_service.episodes.store import EpisodeStore
from brain_service.settings import CaptureSettings
from tests.bench.rows import Row

FLOATS = 160
ACTIONS = 32
STEPS = 6000  # a minute
STEPS_PER_DAY = 100 * 86_400
REAL_EPISODES = 40

Step = dict[str, Any]


@dataclass(frozen=True)
class Sizes:
    """Bytes a step in each form, and microseconds of CPU a step for taking it and for compressing it."""

    posted: float
    msgpack: float
    log: float
    compressed: float
    json_us: float
    msgpack_us: float
    compress_us: float


def measure() -> list[Row]:
    """Measure and return the rows."""
    rows: list[Row] = []
    for name, steps in (("random", random_steps()), ("smooth", smooth_steps()), ("Meta-World", real_steps())):
        listed = list(steps)
        floats = sum(len(v) for part in ("observation", "action") for v in listed[0][part].values())
        found = weigh(listed)
        label = f"{name}, {floats} floats"
        floor = "as a controller's JSON"
        for form in ("msgpack", "log", "compressed"):
            value = getattr(found, form)
            rows.append(Row(f"{label}: {form}", value, "B/step", floor, found.posted))
        for form in ("posted", "msgpack", "log", "compressed"):
            gb_a_day = getattr(found, form) * FLOATS / floats * STEPS_PER_DAY / 1e9
            floor_gb = found.posted * FLOATS / floats * STEPS_PER_DAY / 1e9
            rows.append(Row(f"{name}: {form}, 160 floats at 100 Hz", gb_a_day, "GB/day", floor, floor_gb))
        rows.append(Row(f"{label}: taking msgpack", found.msgpack_us, "us CPU", "taking JSON", found.json_us))
        rows.append(Row(f"{label}: compressing", found.compress_us, "us CPU", "taking JSON", found.json_us))
    return rows


def random_steps() -> Iterator[Step]:
    """Yield steps of normal noise: nothing can be saved but digits."""
    rng = np.random.default_rng(0)
    for index in range(STEPS):
        yield _step(index, rng.standard_normal(FLOATS - ACTIONS), rng.standard_normal(ACTIONS))


def smooth_steps() -> Iterator[Step]:
    """Yield what a humanoid of 32 joints senses: encoders, their velocities, currents and a force sensor each.

    14-bit encoders; velocities as their filtered differences; 12-bit currents and forces with a few bits of noise.
    """
    rng = np.random.default_rng(0)
    joints = 32
    phase, speed = rng.uniform(0, 6, joints), rng.uniform(0.2, 1.5, joints)
    encoder, adc = 2 * np.pi / 2**14, 20.0 / 2**12
    previous, velocity = np.zeros(joints), np.zeros(joints)
    for index in range(STEPS):
        seconds = index / 100
        angle = 0.8 * np.sin(speed * seconds + phase)
        position = np.round((angle + 0.3 * encoder * rng.standard_normal(joints)) / encoder) * encoder
        velocity = 0.8 * velocity + 0.2 * 100 * (position - previous) if index else velocity
        previous = position
        torque = -2.0 * angle + 0.5 * np.cos(speed * seconds + phase)
        current = np.round((torque + 2 * adc * rng.standard_normal(joints)) / adc) * adc
        force = np.round((9.81 + torque / 2 + 3 * adc * rng.standard_normal(joints)) / adc) * adc
        command = 0.8 * np.sin(speed * (seconds + 0.01) + phase)
        yield _step(index, np.concatenate([position, velocity, current, force]), command)


def real_steps() -> Iterator[Step]:
    """Yield steps of Meta-World's scripted expert as the demo's robot posts them."""
    from tests.e2e.demo.robot import Robot

    posted: list[Step] = []

    class Recorder(Robot):
        """The demo's robot, whose posts are kept instead of sent."""

        def _post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
            if path.endswith("/steps"):
                posted.append(body)
            return {"episode_id": "x", "steps": len(posted)}

    robot = Recorder("http://127.0.0.1:9", goals_seed=0, noise_seed=0)
    for _ in range(REAL_EPISODES):
        robot.record_expert_episode()
    robot.close()
    for index, step in enumerate(posted):
        yield {**step, "step_index": index, "is_terminal": False}


def _step(index: int, state: np.ndarray[Any, Any], command: np.ndarray[Any, Any]) -> Step:
    return {
        "step_index": index,
        "observation": {"state": state.tolist()},
        "action": {"command": command.tolist()},
        "reward": 0.5,
        "is_terminal": False,
    }


def weigh(steps: list[Step]) -> Sizes:
    """Record the steps both ways, compress the log, and return sizes and costs a step."""
    bodies = [json.dumps(step).encode() for step in steps]
    packed = [encode_step(_typed(step)) for step in steps]
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        settings = CaptureSettings(durability="episode", compress_after_s=None, max_steps_per_s=1e9)
        store = EpisodeStore(root, settings)
        store.start()
        json_us = _record(store, "as-json", bodies, "application/json")
        msgpack_us = _record(store, "as-msgpack", packed, "application/msgpack")
        store.close()
        log_bytes = (root / "as-json.jsonl").stat().st_size
        begun_s = time.process_time()
        archive = compress_log(root / "as-json.jsonl")
        compress_s = time.process_time() - begun_s
        assert archive is not None
        with Archive(archive) as opened:
            assert opened.size_bytes == log_bytes
        compressed_bytes = archive.stat().st_size
    count = len(steps)
    return Sizes(
        posted=sum(map(len, bodies)) / count,
        msgpack=sum(map(len, packed)) / count,
        log=log_bytes / count,
        compressed=compressed_bytes / count,
        json_us=json_us,
        msgpack_us=msgpack_us,
        compress_us=compress_s / count * 1e6,
    )


def _record(store: EpisodeStore, episode_id: str, bodies: list[bytes], content_type: str) -> float:
    """Append the bodies one by one and return the microseconds of CPU that each took."""
    store.create({"episode_id": episode_id})
    begun_s = time.process_time()
    for body in bodies:
        store.append_json(episode_id, body, content_type)
    elapsed_s = time.process_time() - begun_s
    store.end(episode_id, "truncated")
    return elapsed_s / len(bodies) * 1e6


def _typed(step: Step) -> Step:
    """Return the step with float32 arrays in place of lists, as our client sends it."""
    parts = {
        part: {name: np.asarray(values, np.float32) for name, values in step[part].items()}
        for part in ("observation", "action", "executed_action")
        if part in step
    }
    return step | parts
