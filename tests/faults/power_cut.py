"""Power cuts: record the changes and promises of a scenario, cut at every one, recover what may be left, judge."""

import logging
import os
import pickle
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Container, Iterator
from pathlib import Path
from typing import Any

from tests.fakes.disk import Call, watched
from tests.fakes.failing import FailingRecording
from tests.fakes.medium import Medium
from tests.fakes.recording import Claim, Recording, Tree, write_tree
from tests.fakes.sectors import Fate
from tests.faults.judge import Verdict, judge, promises
from tests.faults.scenarios import go_on_after_a_kill, recover_only

__all__ = [
    "Scenario",
    "cut_everywhere",
    "judged_apart",
    "record",
    "record_failing",
    "record_failing_killed",
    "record_killed",
]

Scenario = Callable[[Path, Recording, random.Random], None]
"""Lives a robot's life in a folder that does not exist yet, and says what clients are told."""

_CORNERS = [Fate("lost", "lost"), Fate("lost", "kept"), Fate("kept", "lost"), Fate("torn", "kept")]
_BY_LOT = [Fate("torn", "mixed"), Fate("mixed", "kept"), Fate("mixed", "mixed"), Fate("kept", "mixed")]
_AGE_S = 3600.0


def record(
    scenario: Scenario, folder: Path, seed: int, skips: Callable[[Call], bool] = lambda call: False
) -> Recording:
    """Run a scenario on the folder `brain/episodes`, which it has to make, and return all that happened.

    `skips` leaves calls out, as a careless writer would; see `Recording`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    recording = Recording(folder, skips)
    with watched(folder, recording):
        scenario(folder / "brain" / "episodes", recording, random.Random(seed))
    recording.unseen = _catalogue(folder)
    return recording


def record_failing(scenario: Scenario, folder: Path, seed: int, fails: Container[int]) -> Recording:
    """Run a scenario on a medium that fails these flushes of files, by their number in time."""
    folder.mkdir(parents=True, exist_ok=True)
    recording = FailingRecording(folder, fails)
    with watched(folder, recording):
        scenario(folder / "brain" / "episodes", recording, random.Random(seed))
    return recording


def cut_everywhere(recording: Recording, seed: int = 0, *, every: int = 1, draws: int = 1) -> Verdict:
    """Cut the power after each `every`-th event and judge the corner cases and `draws` rounds of random ones."""
    verdict = Verdict()
    rng = random.Random(seed)
    claims: list[Claim] = []
    medium = Medium(recording)
    offset = rng.randrange(every)
    for place, event in enumerate(recording.events):
        medium.play(event)
        if isinstance(event, Claim):
            claims.append(event)
        # A claim changes nothing on the medium; what it promises is judged at the next change.
        if (place % every == offset and not isinstance(event, Claim)) or place + 1 == len(recording.events):
            fates = _CORNERS + _BY_LOT * draws
            trees = _different(medium.survive(fate, rng) for fate in fates)
            for tree in trees:
                # Half of the time with the catalogue of the end, which knows more than the files.
                whole = tree | recording.unseen if rng.random() < 0.5 else tree
                found = _recovered(whole, claims, rng if place % 16 == 0 else None)
                found.violations = [f"cut {place}: {text}" for text in found.violations]
                verdict.add(found)
    return verdict


def judged_apart(recording: Recording, seed: int = 0, *, every: int = 1, draws: int = 1) -> Verdict:
    """Do as `cut_everywhere`, in a process without the tests' run-time checks of shapes: twenty times faster.

    What the test has patched does not reach the judge then, only the recording.
    """
    verdict: Verdict = _apart(("judge", recording, seed, every, draws))
    return verdict


def record_killed(scenario: Scenario, folder: Path, seed: int, kill_at: int) -> Recording:
    """Run a scenario in a process that dies before change number `kill_at`, then another that goes on.

    What the first left unflushed is still so when the second finds it: the kernel lives, until the power goes.
    """
    return _gone_on(_apart(("live", scenario, folder, seed, kill_at)), folder)


def record_failing_killed(scenario: Scenario, folder: Path, seed: int, fails: Container[int]) -> Recording:
    """Run a scenario that dies by itself on a medium that fails these flushes, then another process that goes on.

    What a flush did not save the second one still finds in the kernel's cache, and the medium works again.
    """
    return _gone_on(_apart(("fail", scenario, folder, seed, fails)), folder)


def _gone_on(recording: Recording, folder: Path) -> Recording:
    with watched(folder, recording, first_handle=10**6):
        go_on_after_a_kill(folder / "brain" / "episodes", recording)
    recording.unseen = _catalogue(folder)
    return recording


def _catalogue(folder: Path) -> Tree:
    """Return SQLite's files, which it writes by itself."""
    return {f"brain/{path.name}": path.read_bytes() for path in (folder / "brain").glob("brain.db*")}


def _apart(order: tuple[Any, ...]) -> Any:
    done = subprocess.run(
        [sys.executable, "-m", __name__], input=pickle.dumps(order), capture_output=True, check=False
    )
    assert done.stdout, done.stderr.decode()[-2000:]
    return pickle.loads(done.stdout)


def _obey(kind: str, *order: Any) -> None:
    def answer(result: object) -> None:
        sys.stdout.buffer.write(pickle.dumps(result))
        sys.stdout.buffer.flush()

    if kind == "judge":
        recording, seed, every, draws = order
        answer(cut_everywhere(recording, seed, every=every, draws=draws))
        return
    scenario, folder, seed, fault = order
    folder.mkdir(parents=True, exist_ok=True)
    life = (
        FailingRecording(folder, fault, dying=answer)
        if kind == "fail"
        else Recording(folder, kill_at=fault, dying=answer)
    )
    with watched(folder, life):
        scenario(folder / "brain" / "episodes", life, random.Random(seed))
    answer(life)


def _different(trees: Iterator[Tree]) -> list[Tree]:
    return list({tuple(sorted(tree.items())): tree for tree in trees}.values())


def _recovered(tree: Tree, claims: list[Claim], again: random.Random | None) -> Verdict:
    """Put the state on a real file system, run the real recovery there, and judge.

    With `again` the power goes a second time, in the midst of that recovery; then what is left of it is judged.
    """
    with tempfile.TemporaryDirectory(prefix="power-cut-", dir=_fast_folder()) as name:
        write_tree(Path(name), tree, age_s=_AGE_S)
        if again is None:
            return judge(Path(name) / "brain" / "episodes", promises(claims))
        recording = Recording(Path(name))
        with watched(Path(name), recording):
            recover_only(Path(name) / "brain" / "episodes", recording, {claim.episode_id for claim in claims})
    medium, since = Medium(recording), list(claims)
    for event in recording.events[: again.randrange(len(recording.events) + 1)]:
        medium.play(event)
        if isinstance(event, Claim):
            since.append(event)
    return _recovered(medium.survive(again.choice(_CORNERS + _BY_LOT), again), since, None)


def _fast_folder() -> str | None:
    """Return a folder in memory where there is one with room: what it does to power is of no interest here."""
    shm = Path("/dev/shm")
    return str(shm) if os.access(shm, os.W_OK) and shutil.disk_usage(shm).free > 64 * 1024**2 else None


if __name__ == "__main__":
    logging.disable(logging.CRITICAL)
    _obey(*pickle.load(sys.stdin.buffer))
