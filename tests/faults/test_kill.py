"""The daemon, killed at random instants under load: every step that it answered is there, bit by bit."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.faults.killing import Killed, kill_again_and_again, kill_apart


def check(killed: Killed, runs: int) -> None:
    assert killed.violations == []
    assert killed.lost == 0
    assert killed.runs == runs
    assert killed.accepted > 50 * runs, "a run that records nothing proves nothing"


@pytest.mark.long
def test_twenty_kills_lose_nothing(tmp_path: Path) -> None:
    check(kill_again_and_again(tmp_path, 20, seed=20), 20)


@pytest.mark.soak
@pytest.mark.timeout(900)
def test_three_hundred_kills_lose_nothing(tmp_path: Path) -> None:
    total = Killed()
    with ThreadPoolExecutor(2) as pool:
        for found in pool.map(lambda seed: kill_apart(tmp_path / str(seed), 150, seed), (1, 2)):
            total.add(found)
    check(total, 300)
