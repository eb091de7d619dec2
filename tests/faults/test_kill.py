"""The daemon, killed at random instants under load: every step that it answered is there, bit by bit."""

from pathlib import Path

import pytest

from tests.faults.killing import Killed, kill_again_and_again


def check(killed: Killed, runs: int) -> None:
    assert killed.violations == []
    assert killed.lost == 0
    assert killed.runs == runs
    assert killed.accepted > 50 * runs, "a run that records nothing proves nothing"


@pytest.mark.long
def test_twenty_kills_lose_nothing(tmp_path: Path) -> None:
    check(kill_again_and_again(tmp_path, 20, seed=20), 20)


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(6))
@pytest.mark.timeout(600)
def test_hundreds_of_kills_lose_nothing(tmp_path: Path, seed: int) -> None:
    check(kill_again_and_again(tmp_path, 50, seed), 50)
