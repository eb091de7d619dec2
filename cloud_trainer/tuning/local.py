"""The search with processes of this machine, one or several at once."""

import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from brain_service.cloud.run_status import EXIT_PREEMPTED
from cloud_trainer.tuning.process import TrialFailedError, advance
from cloud_trainer.tuning.search import Search, Work
from cloud_trainer.tuning.space import Space, to_arguments
from cloud_trainer.tuning.state import Trial, Trials

__all__ = ["PROGRAM", "LocalSearch", "run_search", "trial_command"]

PROGRAM = (sys.executable, "-m", "cloud_trainer")
_LOOK_S = 0.2


@dataclass(frozen=True)
class LocalSearch:
    """What is searched and how. `extra` are options of every trial, `program` is what trains."""

    data_path: str
    folder: Path
    space: Space
    seed: int
    steps: int
    parallel: int = 1
    extra: tuple[str, ...] = ()
    program: tuple[str, ...] = PROGRAM


def trial_command(search: LocalSearch, trial: Trial, look_every: int) -> list[str]:
    """Return the command of a trial. It is the same whenever the trial goes on."""
    return [
        *search.program,
        *("--data-path", search.data_path),
        *("--output-dir", str(trial_folder(search, trial.number))),
        *("--num-steps", str(search.steps)),
        *("--val", str(look_every)),
        *("--seed", str(search.seed)),
        *to_arguments(trial.settings),
        *search.extra,
    ]


def trial_folder(search: LocalSearch, number: int) -> Path:
    """Return where a trial keeps its run."""
    return search.folder / f"trial-{number:04d}"


def run_search(search: LocalSearch, method: Search, trials: Trials, say: Callable[[str], None]) -> int:
    """Go on with a search until nothing is left to do; returns 0, or 75 where the process was told to go.

    Raises:
        UnavailableError: the folder cannot be written.
    """
    stop = threading.Event()
    busy: dict[int, int] = {}
    running: dict[Future[float | None], Work] = {}
    with _told_to_go(stop), ThreadPoolExecutor(search.parallel, thread_name_prefix="trial") as pool:
        try:
            while True:
                for work in _new_work(search, method, trials, busy, stop):
                    busy[work.number] = work.step
                    running[pool.submit(_advance, search, method, trials.trials[work.number], work, stop)] = work
                if not running:
                    return EXIT_PREEMPTED if stop.is_set() else 0
                # In pieces: a signal is taken between two of them.
                done, _ = wait(running, _LOOK_S, FIRST_COMPLETED)
                for future in done:
                    work = running.pop(future)
                    del busy[work.number]
                    _note(trials, work, future, say)
        finally:
            stop.set()


def _new_work(
    search: LocalSearch, method: Search, trials: Trials, busy: dict[int, int], stop: threading.Event
) -> Iterator[Work]:
    while len(busy) < search.parallel and not stop.is_set():
        work = method.next(trials.trials, busy)
        if work is None:
            return
        if work.number not in trials.trials:
            trials.add(Trial(work.number, search.space.draw(search.seed, work.number)))
        yield work


def _advance(search: LocalSearch, method: Search, trial: Trial, work: Work, stop: threading.Event) -> float | None:
    command = trial_command(search, trial, method.rungs[0])
    return advance(command, trial_folder(search, work.number), work.step, search.steps, stop.is_set)


def _note(trials: Trials, work: Work, future: "Future[float | None]", say: Callable[[str], None]) -> None:
    try:
        value = future.result()
    except TrialFailedError as error:
        trials.failed(work.number, str(error))
        say(f"trial {work.number} failed: {error}")
        return
    if value is not None:
        trials.result(work.number, work.step, value)
        say(f"trial {work.number} at step {work.step}: {value:.6g}")


@contextmanager
def _told_to_go(stop: threading.Event) -> Iterator[None]:
    def note(*_: object) -> None:
        stop.set()

    signals: Sequence[signal.Signals] = (signal.SIGTERM, signal.SIGINT)
    before = {number: signal.signal(number, note) for number in signals}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
