"""Which plan to run: how many chips share a copy of the parameters, and what would fit where a run does not."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from math import ceil

from brain_service.cloud.chips import CHIPS, Slice, parse_topology
from brain_service.cloud.plans import Plan
from brain_service.errors import DeadlineExceededError, InvalidError, UnavailableError
from cloud_trainer.compiler import StepRequest

__all__ = ["Choice", "choose", "fsdp_candidates", "recommended", "require_fit", "what_would_fit"]

COMPARED_ALL = 8
"""Slices of so many chips or fewer are tried at every power of two, larger ones at every second."""
FREE = 0.95
"""Share of a chip's memory that suggestions fill."""


@dataclass(frozen=True)
class Choice:
    """The plans that were made, and the one to run; it may not fit."""

    plans: tuple[Plan, ...]
    best: Plan
    failed: Mapping[int, str] = field(default_factory=dict)
    """Chips a copy -> why the compiler could not make that one."""


def fsdp_candidates(chips: int) -> list[int]:
    """Return the numbers of chips a copy that are worth a look on a slice: 1, and powers of 2 or 4 up to all."""
    base = 2 if chips <= COMPARED_ALL else 4
    found = [1]
    while found[-1] * base < chips:
        found.append(found[-1] * base)
    return found if chips == 1 else [*found, chips]


def recommended(plans: tuple[Plan, ...]) -> Plan:
    """Return the plan with the shortest bound among those that fit (the fewest chips a copy among equals).

    Where none fits it is the one that needs the least memory.
    """
    fitting = [plan for plan in plans if plan.fits]
    if fitting:
        return min(fitting, key=lambda plan: (plan.step_bound_s, plan.fsdp))
    return min(plans, key=lambda plan: plan.hbm_bytes)


def choose(
    compile_step: Callable[[StepRequest, float], Plan],
    request: StepRequest,
    *,
    fsdp: int | None,
    compare: bool,
    limit_s: float,
) -> Choice:
    """Compile a run with `fsdp` chips a copy; None finds the number: the smallest that fits.

    With `compare` all candidates are compiled, and None finds the best of them.

    Raises:
        InvalidError: a size is impossible, or `fsdp` or the batch does not divide.
        UnavailableError: libtpu is missing or failed.
        DeadlineExceededError: all together took longer than `limit_s`.
    """
    until_s = time.monotonic() + limit_s
    made: list[Plan] = []

    def compiled(ways: int) -> Plan:
        left_s = until_s - time.monotonic()
        if left_s <= 0:
            raise DeadlineExceededError(
                f"planning took longer than {limit_s:.0f} s; give more time with --limit-s"
            )
        made.append(compile_step(replace(request, fsdp=ways), left_s))
        return made[-1]

    candidates = fsdp_candidates(parse_topology(request.topology).chips)
    if fsdp is not None:
        candidates = sorted({fsdp, *(candidates if compare else ())})
    if compare or fsdp is not None:
        failed: dict[int, str] = {}
        for ways in candidates:
            try:
                compiled(ways)
            except UnavailableError as error:
                # The compiler itself fails on some combinations; one that was only looked at spoils no plan.
                if ways in (fsdp, candidates[-1]) and not (made and fsdp is None):
                    raise
                failed[ways] = error.detail
        wanted = tuple(plan for plan in made if fsdp in (None, plan.fsdp))
        return Choice(tuple(made), recommended(wanted), failed)
    first = compiled(candidates[0])
    if not first.fits:
        for ways in candidates[1:]:
            # What sharing cannot save needs no compilation, but for the last hope.
            if (ways == candidates[-1] or _with_fsdp(first, ways) <= first.hbm_limit_bytes) and compiled(
                ways
            ).fits:
                break
    return Choice(tuple(made), recommended(tuple(made)))


def require_fit(plan: Plan) -> None:
    """Refuse a plan that does not fit.

    Raises:
        InvalidError: it does not; names memory needed and there, and what would fit.
    """
    if not plan.fits:
        raise InvalidError(
            f"{plan.preset} with batch {plan.batch_size} x {plan.sequence_length} and fsdp {plan.fsdp} needs "
            f"{plan.hbm_bytes / 2**30:.1f} GiB on each chip of {plan.topology}, which has "
            f"{plan.hbm_limit_bytes / 2**30:.2f}; by estimate it fits with {_listed(plan)}",
            field="batch_size",
            hbm_bytes=plan.hbm_bytes,
            hbm_limit_bytes=plan.hbm_limit_bytes,
        )


def what_would_fit(plan: Plan) -> dict[str, int | str]:
    """Return single changes after which a run fits by estimate: a smaller `batch_size`, more `fsdp`, a `topology`.

    Memory but for parameters and moments grows with a chip's rows. A change that does not suffice is left out.
    """
    here = parse_topology(plan.topology)
    found: dict[str, int | str] = {}
    limit = plan.hbm_limit_bytes * FREE
    rest = max(plan.hbm_bytes - plan.state_bytes, 1)
    if limit > plan.state_bytes:
        rows = int(plan.batch_size / here.chips * (limit - plan.state_bytes) / rest)
        if 0 < rows < plan.batch_size // here.chips:
            found["batch_size"] = rows * here.chips
    for ways in fsdp_candidates(here.chips):
        if ways > plan.fsdp and _with_fsdp(plan, ways) <= limit:
            found["fsdp"] = ways
            break
    larger = [slice_ for slice_ in _larger(here) if _fits_on(plan, rest, slice_, here)]
    if larger:
        found["topology"] = min(larger, key=lambda slice_: slice_.usd_per_hour(spot=False)).topology
    return found


def _with_fsdp(plan: Plan, ways: int) -> float:
    whole = plan.state_bytes * plan.fsdp
    return plan.hbm_bytes - plan.state_bytes + whole / ways


def _larger(here: Slice) -> list[Slice]:
    return [
        Slice(chip, shape)
        for chip in CHIPS.values()
        for shape in chip.shapes
        if Slice(chip, shape).chips * chip.hbm_bytes > here.chips * here.chip.hbm_bytes
    ]


def _fits_on(plan: Plan, rest: float, slice_: Slice, here: Slice) -> bool:
    if plan.batch_size % slice_.chips or slice_.chips % plan.fsdp:
        return False
    rows = ceil(plan.batch_size / slice_.chips) / (plan.batch_size / here.chips)
    return plan.state_bytes + rest * rows <= slice_.chip.hbm_bytes * FREE


def _listed(plan: Plan) -> str:
    ways = [f"--{name.replace('_', '-')} {value}" for name, value in what_would_fit(plan).items()]
    return " or ".join(ways) if ways else "another preset, or shorter sequences"
