"""Power cuts: record the changes and promises of a scenario, cut at every one, recover what may be left, judge."""

import logging
import os
import pickle
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.fakes.disk import Call, watched
from tests.fakes.medium import Medium
from tests.fakes.recording import Claim, Recording, Tree, write_tree
from tests.fakes.sectors import Fate
from tests.faults.judge import Verdict, judge, promises

__all__ = ["Scenario", "cut_everywhere", "judged_apart", "record"]

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
                found = _recovered(tree, claims)
                found.violations = [f"cut {place}: {text}" for text in found.violations]
                verdict.add(found)
    return verdict


def judged_apart(recording: Recording, seed: int = 0, *, every: int = 1, draws: int = 1) -> Verdict:
    """Do as `cut_everywhere`, in a process without the tests' run-time checks of shapes: twenty times faster.

    What the test has patched does not reach the judge then, only the recording.
    """
    order = pickle.dumps((recording, seed, every, draws))
    done = subprocess.run([sys.executable, "-m", __name__], input=order, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()[-2000:]
    verdict: Verdict = pickle.loads(done.stdout)
    return verdict


def _different(trees: Iterator[Tree]) -> list[Tree]:
    return list({tuple(sorted(tree.items())): tree for tree in trees}.values())


def _recovered(tree: Tree, claims: list[Claim]) -> Verdict:
    """Put the state on a real file system, run the real recovery there, and judge."""
    with tempfile.TemporaryDirectory(prefix="power-cut-", dir=_fast_folder()) as name:
        root = Path(name) / "brain" / "episodes"
        write_tree(Path(name), tree, age_s=_AGE_S)
        return judge(root, promises(claims))


def _fast_folder() -> str | None:
    """Return a folder in memory where there is one with room: what it does to power is of no interest here."""
    shm = Path("/dev/shm")
    return str(shm) if os.access(shm, os.W_OK) and shutil.disk_usage(shm).free > 64 * 1024**2 else None


if __name__ == "__main__":
    logging.disable(logging.CRITICAL)
    given, number, step, rounds = pickle.loads(sys.stdin.buffer.read())
    sys.stdout.buffer.write(pickle.dumps(cut_everywhere(given, number, every=step, draws=rounds)))
