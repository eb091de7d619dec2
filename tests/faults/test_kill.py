"""The daemon, killed at random instants under load: every step that it answered is there, bit by bit."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.faults.killing import Killed, kill_apart


def check(killed: Killed, runs: int) -> None:
    assert killed.violations == []
    assert killed.lost == 0
    assert killed.runs == runs
    assert killed.accepted > 50 * runs, "a run that records nothing proves nothing"


def killed(folder: Path, runs: int) -> Killed:
    """Kill two daemons at a time, `runs` times in all."""
    total = Killed()
    with ThreadPoolExecutor(2) as pool:
        for found in pool.map(lambda seed: kill_apart(folder / str(seed), runs // 2, seed), (1, 2)):
            total.add(found)
    return total


@pytest.mark.long
def test_twenty_kills_lose_nothing(tmp_path: Path) -> None:
    check(killed(tmp_path, 20), 20)


@pytest.mark.soak
@pytest.mark.timeout(900)
def test_three_hundred_kills_lose_nothing(tmp_path: Path) -> None:
    check(killed(tmp_path, 300), 300)
