"""Steps of several sessions at once, where that is quicker than one after the other.

A batch is computed in a bucket: a fixed number of rows for which the step was compiled. The rows are gathered
from the arena into the bucket's buffers and scattered back; what is left of a bucket is padding, whose results
are dropped. Nothing ever waits for companions: a batch is what lies ready, and one step alone is computed in its
place in the arena. Bucket and place decide a step's last bits, so the answer names both.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np

from brain_service.errors import CorruptDataError
from brain_service.export.bundle import Golden, Manifest
from brain_service.inference.arena import Arena, Layout, Row
from brain_service.inference.backends import Policy
from brain_service.inference.golden import action_span, golden_steps
from brain_service.inference.protocol import Done, Run, Status

if TYPE_CHECKING:
    from jaxtyping import Bool, Float32, Int64

__all__ = ["AGREEMENT", "Batch", "Batcher", "Warmed", "plan_portions", "warm_buckets"]

AGREEMENT = 1e-5
"""An answer from a batch differs by at most this share of the action's range from the answer alone (and the state
by at most this share of its size, or of 1 where it is smaller); a bucket that does not hold it is not used."""

_TIMED_ROUNDS = 5


class Batch:
    """Buffers of `size` rows, and a policy's step over them."""

    def __init__(self, policy: Policy, arena: Arena, size: int) -> None:
        self.size = size
        self._policy = policy
        self._rows = arena.rows
        layout = arena.layout
        self._carry = _aligned(size, layout.carry_size)
        self._request = _aligned(size, layout.request_size)
        self._next_carry = _aligned(size, layout.carry_size)
        self._response = _aligned(size, layout.response_size)

    def run(
        self, rows: "Int64[np.ndarray, 'N']", slots: "Int64[np.ndarray, 'N']", place: int = 0
    ) -> "Bool[np.ndarray, 'N']":
        """Compute one step of each arena row in `rows`, at `place` and on; return which of them are finite.

        `slots` are the carry slots to read; the other ones are written.
        """
        used = slice(place, place + len(rows))
        self._carry[used] = self._rows.carry[rows, slots]
        self._request[used] = self._rows.request[rows]
        self._policy.run(self._carry, self._request, self._next_carry, self._response)
        new, response = self._next_carry[used], self._response[used]
        self._rows.carry[rows, 1 - slots] = new
        self._rows.response[rows] = response
        finite: Bool[np.ndarray, "N"] = np.isfinite(new).all(axis=1) & np.isfinite(response).all(axis=1)
        return finite


@dataclass(frozen=True, slots=True)
class Warmed:
    """Buckets that were compiled, checked and timed.

    `cost` is the time of a full one by size, in steps alone: below its size it pays to fill it. `refused` are the
    others, with the reason.
    """

    cost: Mapping[int, float]
    refused: Mapping[int, str]


class Batcher:
    """Runs steps of one policy on one arena. Only the thread that serves calls it, but for `use`."""

    def __init__(self, policy: Policy, arena: Arena) -> None:
        self._policy = policy
        self._arena = arena
        self._known: dict[int, Row] = {}
        self._batches: dict[int, Batch] = {}
        self._plan: tuple[int, ...] = (1, 1)
        self.most = max(policy.buckets)

    def use(self, warmed: Warmed) -> None:
        """Use these buckets from the next portion on, where they pay."""
        self._batches = {size: Batch(self._policy, self._arena, size) for size in warmed.cost if size > 1}
        self._plan = plan_portions(warmed.cost)

    def run(self, runs: Sequence[Run]) -> Iterator[list[Done]]:
        """Compute what lies ready and yield the answers in portions, each as soon as it is there.

        Raises:
            CorruptDataError: a row is outside the arena, or a step asks for a bucket that is not in use.
        """
        rest = runs
        while rest:
            first, bucket = rest[0], self._plan[min(len(rest), len(self._plan) - 1)]
            if first.bucket or bucket == 1:
                portion, rest = rest[:1], rest[1:]
                yield [self.alone(first) if first.bucket < 2 else self._placed(first)]
            else:
                portion, rest = rest[:bucket], rest[bucket:]
                yield self._together(portion, bucket)

    def alone(self, run: Run) -> Done:
        """Compute one step in its place in the arena.

        Raises:
            CorruptDataError: the row is outside the arena.
        """
        start_ns = time.monotonic_ns()
        if start_ns > run.deadline_ns:
            return Done(run.sequence, run.row, Status.EXPIRED, start_ns, start_ns)
        row = self._known.get(run.row)
        if row is None:
            row = self._known[run.row] = self._arena.row(run.row)
        next_carry = row.carry[1 - run.read_slot]
        self._policy.run(row.carry[run.read_slot], row.request, next_carry, row.response)
        finite = np.isfinite(row.response).all() and np.isfinite(next_carry).all()
        status = Status.OK if finite else Status.NONFINITE
        return Done(run.sequence, run.row, status, start_ns, time.monotonic_ns())

    def _placed(self, run: Run) -> Done:
        batch = self._batches.get(run.bucket)
        if batch is None or run.place >= run.bucket:
            raise CorruptDataError(f"no place {run.place} of bucket {run.bucket}; in use: {sorted(self._batches)}")
        start_ns = time.monotonic_ns()
        finite = batch.run(np.array([run.row]), np.array([run.read_slot]), run.place)
        status = Status.OK if finite[0] else Status.NONFINITE
        return Done(run.sequence, run.row, status, start_ns, time.monotonic_ns(), run.bucket, run.place)

    def _together(self, runs: Sequence[Run], bucket: int) -> list[Done]:
        start_ns = time.monotonic_ns()
        late = [run for run in runs if start_ns > run.deadline_ns]
        dones = [Done(run.sequence, run.row, Status.EXPIRED, start_ns, start_ns) for run in late]
        due = [run for run in runs if start_ns <= run.deadline_ns] if late else runs
        if not due:
            return dones
        rows = np.array([run.row for run in due])
        if rows.max() >= self._arena.capacity:
            raise CorruptDataError(f"arena: row {rows.max()} is outside 0..{self._arena.capacity - 1}")
        finite = self._batches[bucket].run(rows, np.array([run.read_slot for run in due]))
        end_ns = time.monotonic_ns()
        for place, (run, is_finite) in enumerate(zip(due, finite.tolist(), strict=True)):
            status = Status.OK if is_finite else Status.NONFINITE
            dones.append(Done(run.sequence, run.row, status, start_ns, end_ns, bucket, place))
        return dones


def plan_portions(cost: Mapping[int, float]) -> tuple[int, ...]:
    """Return for each number of waiting steps, from 0 up to the largest bucket, the bucket to compute next.

    `cost` is that of a full bucket by size, of a step alone by 1. The division is the one whose last answer is
    there first.
    """
    least, plan = [0.0], [1]
    for waiting in range(1, max(cost) + 1):
        best = min((taken + least[max(0, waiting - size)], size) for size, taken in cost.items())
        least.append(best[0])
        plan.append(best[1])
    return tuple(plan)


def warm_buckets(
    policy: Policy, layout: Layout, golden: Golden, manifest: Manifest, sizes: Sequence[int]
) -> Warmed:
    """Compile, check and time the step in buckets of `sizes`, on memory of its own.

    May run in a second thread while the first one serves.
    """
    blocks: tuple[list[Any], ...] = ([], [], [], [])
    for step in golden_steps(policy, layout, golden):
        for block, array in zip(blocks, (step.carry, step.request, step.next_carry, step.response), strict=True):
            block.append(array[0].copy())
    carry, request, next_carry, response = map(np.stack, blocks)
    span = np.tile(action_span(manifest), layout.horizon)
    cost, refused = {1: 1.0}, {}
    for size in sizes:
        arena = Arena.create(layout, size)
        batch = Batch(policy, arena, size)
        steps = np.arange(size) % len(request)
        arena.rows.carry[:, 0], arena.rows.request[:] = carry[steps], request[steps]
        batch.run(np.arange(size), np.zeros(size, np.int64))
        apart = np.abs(arena.rows.response - response[steps]) / span
        state = np.abs(arena.rows.carry[:, 1] - next_carry[steps]) / np.maximum(1.0, np.abs(next_carry[steps]))
        worst = float(np.maximum(apart.max(), state.max()))
        # `not <=` also refuses NaN.
        if not worst <= AGREEMENT:
            refused[size] = f"differs by {worst:.1e} from a step alone, the bound is {AGREEMENT:.0e}"
        else:
            cost[size] = median(_cost(policy, arena, batch) for _ in range(_TIMED_ROUNDS))
        arena.close()
    return Warmed(cost, refused)


def _cost(policy: Policy, arena: Arena, batch: Batch) -> float:
    """Return how many steps alone a full bucket costs.

    As many steps alone are timed right before it: what else the machine does then slows both.
    """
    runs = [Run(0, row, 0, 2**63) for row in range(batch.size)]
    alone = Batcher(policy, arena)
    for run in runs:
        alone.alone(run)
    started_ns = time.monotonic_ns()
    for run in runs:
        alone.alone(run)
    between_ns = time.monotonic_ns()
    batch.run(np.arange(batch.size), np.zeros(batch.size, np.int64))
    return batch.size * (time.monotonic_ns() - between_ns) / (between_ns - started_ns)


def _aligned(rows: int, size: int) -> "Float32[np.ndarray, 'rows size']":
    # On a cache line, as XLA wants a buffer that it is to use without copying it.
    raw = np.zeros(rows * size * 4 + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + rows * size * 4].view(np.float32).reshape(rows, size)
