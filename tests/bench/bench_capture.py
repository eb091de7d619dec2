"""The capture log without HTTP: steps through `EpisodeLogger` beside a loop that only writes such lines."""

import os
import tempfile
import time
from pathlib import Path

import numpy as np

from brain_service import EpisodeLogger
from tests.bench.rows import Row

STEPS = 5000
FLOATS = 160


def _logger_steps_per_s(folder: Path) -> tuple[float, Path]:
    rng = np.random.default_rng(0)
    states = rng.standard_normal((STEPS, FLOATS)).astype(np.float32)
    action = np.zeros(4, np.float32)
    logger = EpisodeLogger(folder)
    logger.start_episode(environment_id="bench", xr_mode="trainer")
    begun = time.perf_counter()
    for state in states:
        logger.log_step(obs={"state": state}, action={"command": action}, reward=0.5)
    elapsed = time.perf_counter() - begun
    return STEPS / elapsed, logger.end_episode()


def _floor_steps_per_s(log: Path, folder: Path) -> float:
    lines = log.read_bytes().splitlines(keepends=True)[1 : STEPS + 1]
    fd = os.open(folder / "floor", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    begun = time.perf_counter()
    for line in lines:
        os.write(fd, line)
    elapsed = time.perf_counter() - begun
    os.close(fd)
    return len(lines) / elapsed


def measure() -> list[Row]:
    """Measure and return the rows, in steps per second."""
    with tempfile.TemporaryDirectory() as name:
        value, log = _logger_steps_per_s(Path(name) / "episodes")
        floor = _floor_steps_per_s(log, Path(name))
    return [Row(f"EpisodeLogger, {FLOATS} floats a step", value, "steps/s", "write() of the same lines", floor)]
