"""The rows of `docs/crash-table.md`: each fault, tried again and again, and what it cost."""

import random
import statistics
import tempfile
from collections.abc import Callable, Container, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tests.episodes.test_media import can_mount
from tests.fakes.recording import Recording
from tests.faults.ailing import FAULTS, crawl, serving_a_toy, suffer
from tests.faults.flips import FILES, damage_every_byte
from tests.faults.full import fill_up
from tests.faults.judge import Verdict
from tests.faults.killing import Killed, kill_apart
from tests.faults.power_cut import (
    Scenario,
    judged_apart,
    record,
    record_failing,
    record_failing_killed,
    record_killed,
)
from tests.faults.scenarios import (
    archive_life,
    failing_death,
    failing_life,
    image_life,
    logger_life,
    retention_life,
    store_life,
)

__all__ = ["GROUPS", "Row"]


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table; times in seconds.

    `lost` counts acknowledged steps, `above` accepted ones above `durable_through`, which a power cut may take.
    """

    fault: str
    runs: int
    acknowledged: str
    lost: int
    above: int | None
    recovery_s: Sequence[float]
    command: str
    problems: Sequence[str] = ()

    def line(self) -> str:
        """Return the row in Markdown."""
        above = "-" if self.above is None else str(self.above)
        times = sorted(self.recovery_s)
        recovery = f"{_ms(statistics.median(times))} / {_ms(times[-1])}" if times else "-"
        lost = f"**{self.lost}**" + (f" ({len(self.problems)} problems)" if self.problems else "")
        return (
            f"| {self.fault} | {self.runs:,} | {self.acknowledged} | {lost} | {above} | {recovery} "
            f"| `python -m tests.faults {self.command}` |"
        )


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.1f} ms" if seconds < 0.1 else f"{seconds:.2f} s"


def kills(share: float) -> Iterator[Row]:
    """kill -9 of the daemon under load."""
    halves = max(1, round(160 * share))
    with tempfile.TemporaryDirectory() as name, ThreadPoolExecutor(2) as pool:
        total = Killed()
        for found in pool.map(lambda seed: kill_apart(Path(name) / str(seed), halves, seed), (11, 12)):
            total.add(found)
    yield Row(
        "kill -9 of the daemon at a random instant, eight robots recording (single, batch, NDJSON, msgpack, "
        "WebSocket, TCP and Unix socket); 15 % of the kills hit it while it starts",
        total.runs,
        f"{total.accepted:,} accepted",
        total.lost,
        None,
        total.recovery_s,
        "kill",
        total.violations,
    )


_LIVES: dict[str, Scenario] = {
    "several robots, all durabilities, ends, deletions, a restart": store_life,
    "`EpisodeLogger`, logs and JSON documents": logger_life,
    "images": image_life,
    "compression of closed logs": archive_life,
    "retention": retention_life,
}


def power(share: float) -> Iterator[Row]:
    """Power cuts at every change, alone, in the midst of the recovery, and after a kill."""
    for what, scenario in _LIVES.items():
        seeds = range(max(1, round(3 * share)))
        yield _cuts(f"power cut at every change: {what}", seeds, scenario, _plain, draws=2, every=1)
    for what, scenario in _LIVES.items():
        seeds = range(max(1, round(4 * share)))
        yield _cuts(f"kill -9, a new start, then a power cut: {what}", seeds, scenario, _killed, draws=1, every=3)
    seeds = range(2, 2 + max(1, round(4 * share)))
    yield _cuts("flushes fail (EIO), come back, then a power cut", seeds, failing_life, _failing, draws=1, every=2)
    what = "flushes fail (EIO), kill -9, a new start, then a power cut"
    yield _cuts(what, seeds, failing_death, _failing_killed, draws=1, every=2)


def _plain(scenario: Scenario, folder: Path, seed: int) -> Recording:
    return record(scenario, folder, seed)


def _killed(scenario: Scenario, folder: Path, seed: int) -> Recording:
    return record_killed(scenario, folder, seed, random.Random(seed).randrange(3, 110))


def _failing(scenario: Scenario, folder: Path, seed: int) -> Recording:
    fails: Container[int] = range(seed, seed + 3)
    return record_failing(scenario, folder, seed, fails)


def _failing_killed(scenario: Scenario, folder: Path, seed: int) -> Recording:
    return record_failing_killed(scenario, folder, seed, range(seed + 1, 10**6))


def _cuts(
    what: str,
    seeds: Sequence[int],
    scenario: Scenario,
    make: Callable[[Scenario, Path, int], Recording],
    *,
    draws: int,
    every: int,
) -> Row:
    total = Verdict()
    with tempfile.TemporaryDirectory() as name, ThreadPoolExecutor(2) as pool:
        recordings = [make(scenario, Path(name) / str(seed), seed) for seed in seeds]
        judged = pool.map(
            lambda pair: judged_apart(pair[1], pair[0], every=every, draws=draws),
            zip(seeds, recordings, strict=True),
        )
        for verdict in judged:
            total.add(verdict)
    lost = sum("was durable" in text or "is gone" in text for text in total.violations)
    durable = f"{total.durable:,} durable"
    return Row(
        what, total.recoveries, durable, lost, total.accepted_lost, total.recovery_s, "power", total.violations
    )


def ailing(share: float) -> Iterator[Row]:
    """A medium that refuses, fails or crawls under the daemon."""
    with tempfile.TemporaryDirectory() as name, serving_a_toy(Path(name)) as daemon:
        for number, fault in enumerate(FAULTS):
            runs = max(1, round(3 * share))
            courses = [suffer(daemon, fault, f"ailing-{number}-{run}", fault_s=0.7) for run in range(runs)]
            yield Row(
                f"medium: {fault.name}",
                runs,
                f"{sum(course.accepted for course in courses)} accepted",
                sum(course.durable_lost for course in courses),
                sum(course.accepted_lost for course in courses),
                [course.recovery_s for course in courses],
                "ailing",
                [text for course in courses for text in course.problems],
            )
        course, grown_bytes = crawl(daemon)
        yield Row(
            f"medium: every write takes 0.5 s, eight robots (memory grew by {grown_bytes / 1e6:.1f} MB, "
            f"slowest /livez {course.slowest_livez_s * 1e3:.0f} ms)",
            1,
            f"{course.accepted} accepted",
            course.durable_lost,
            course.accepted_lost,
            [course.recovery_s],
            "ailing",
            course.problems,
        )
    if can_mount():
        with tempfile.TemporaryDirectory() as name:
            said = fill_up(Path(name))
            problems = [] if said[-1] == "pass" and said[0].startswith("503") else said
            yield Row("a real file system (tmpfs) full to the last page", 1, "all", 0, 0, [], "ailing", problems)


def flips(share: float) -> Iterator[Row]:
    """Single bytes changed and files cut."""
    for kind in FILES:
        with tempfile.TemporaryDirectory() as name:
            damage = damage_every_byte(kind, Path(name) / "x", masks=max(1, round(2 * share)))
        yield Row(
            f"every byte of {kind} changed and cut: {damage.refused:,} refused, {damage.unfinished:,} reported as "
            f"without an end, {damage.harmless} that change no value",
            damage.cases,
            "-",
            len(damage.violations),
            None,
            [],
            "flips",
            damage.violations,
        )


GROUPS: dict[str, Callable[[float], Iterator[Row]]] = {
    "kill": kills,
    "power": power,
    "ailing": ailing,
    "flips": flips,
}
