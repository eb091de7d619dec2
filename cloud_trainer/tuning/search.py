"""Which trial goes how far next.

Random search takes every trial to the last step. Asynchronous successive halving (ASHA; Li et al. 2020, algorithm
2) takes each to a first rung of few steps, and of those that stand on a rung the best `1/eta` to the next, without
waiting for the others. At the end the best trial of the highest rung goes to the last step in any case: the search
answers with a model that is trained.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

from brain_service.errors import InvalidError
from cloud_trainer.tuning.state import Trial

__all__ = ["Asha", "RandomSearch", "Search", "Work"]


@dataclass(frozen=True)
class Work:
    """Take trial `number` to `step`; it may not have begun yet."""

    number: int
    step: int


class Search(Protocol):
    """Decides from what is known alone, so that a search that was killed decides as before."""

    @property
    def rungs(self) -> list[int]:
        """The steps at which trials are looked at, the last one included."""
        ...

    def next(self, trials: Mapping[int, Trial], busy: Mapping[int, int]) -> Work | None:
        """Return what to do next, or None where nothing can be done until one of `busy` (trial: step) is."""
        ...


@dataclass(frozen=True)
class RandomSearch:
    """Every trial to the last step."""

    trials: int
    steps: int

    @property
    def rungs(self) -> list[int]:
        """The last step."""
        return [self.steps]

    def next(self, trials: Mapping[int, Trial], busy: Mapping[int, int]) -> Work | None:
        """Return the first trial that is not at its end."""
        return next(
            (Work(n, self.steps) for n in range(self.trials) if _is_open(n, self.steps, trials, busy)), None
        )


@dataclass(frozen=True)
class Asha:
    """Rungs at `first_step * eta**k` and at `steps`.

    Raises:
        InvalidError: there is no rung below the last step, or nothing is halved.
    """

    trials: int
    steps: int
    first_step: int
    eta: int = 3

    def __post_init__(self) -> None:
        if not 0 < self.first_step < self.steps:
            raise InvalidError(
                f"min_steps {self.first_step} is not between 0 and num_steps {self.steps}: trials are first "
                "looked at after it",
                field="min_steps",
            )
        if self.eta < 2:
            raise InvalidError(f"eta {self.eta} is below 2: every trial would go on", field="eta")

    @property
    def rungs(self) -> list[int]:
        """The steps at which trials are looked at."""
        count = math.ceil(math.log(self.steps / self.first_step) / math.log(self.eta) - 1e-9)
        return [self.first_step * self.eta**k for k in range(count)] + [self.steps]

    def next(self, trials: Mapping[int, Trial], busy: Mapping[int, int]) -> Work | None:
        """Return a trial that has earned the next rung, else a new one, else the best one's way to the end."""
        rungs = self.rungs
        for step, above in reversed(list(pairwise(rungs))):
            standing = sorted((its.results[step], n) for n, its in trials.items() if step in its.results)
            for _, number in standing[: len(standing) // self.eta]:
                if _is_open(number, above, trials, busy):
                    return Work(number, above)
        for number in range(self.trials):
            if _is_open(number, rungs[0], trials, busy):
                return Work(number, rungs[0])
        return None if busy else self._last(trials)

    def _last(self, trials: Mapping[int, Trial]) -> Work | None:
        if any(self.steps in trial.results for trial in trials.values()):
            return None
        for step in reversed(self.rungs[:-1]):
            standing = sorted((its.results[step], n) for n, its in trials.items() if step in its.results)
            for _, number in standing:
                if trials[number].problem is None:
                    return Work(number, self.steps)
        return None


def _is_open(number: int, step: int, trials: Mapping[int, Trial], busy: Mapping[int, int]) -> bool:
    trial = trials.get(number)
    return number not in busy and (trial is None or (trial.problem is None and step not in trial.results))
