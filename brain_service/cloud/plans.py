"""Plans: what a training step needs of a slice and what a run on it costs, and the table of them that is shipped.

`cloud-trainer plan` makes a plan with the TPU's own compiler, which exists for x86 only. So that a robot can plan
before it spends, the plans of the presets at the usual sizes are shipped in `plans.json`. A look-up never guesses:
it answers with a plan that is at least as large in every size, or not at all. Where it does not answer, the job
plans first and stops before training if the run does not fit.
"""

import ast
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from brain_service.cloud.chips import PRICES_AS_OF, parse_topology
from brain_service.errors import CorruptDataError, InvalidError

__all__ = ["Estimate", "Plan", "PlanTable", "code_digest", "estimate", "look_up", "shipped_table"]

SCHEMA = "continuon-brain/plans/1"
TABLE = Path(__file__).with_name("plans.json")
PACKAGE = Path(__file__).parent.parent
# What decides the compiled step: a change of it makes the shipped plans stale. Of the last file only these names.
DECIDING = ("model/*.py", "training/step.py", "training/objective.py", "training/remat.py", "training/sharding.py")
SHARDING_RULE = ("MIN_SHARDED_SIZE", "batch_sharding", "parameter_sharding", "_of_shape")

PLANNING_FACTOR = 4.0
"""Planned time over the bound. An assumption: no step was timed on a TPU. A bound knows no latency, and a
recurrent step is many small kernels in a row."""
START_S = 300.0
"""Seconds of paid time before the first step and after the last: start, compilation, evaluation, export."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """One compiled train step on one slice. Bytes, operations and times are of one chip and one step."""

    preset: str
    topology: str
    batch_size: int
    sequence_length: int
    obs_dim: int
    action_dim: int
    fsdp: int
    fits: bool
    hbm_bytes: int
    """Peak of a chip's memory, the program's code included."""
    hbm_limit_bytes: int
    state_bytes: int
    """Parameters and moments, of which each chip holds its share."""
    argument_bytes: int
    temporary_bytes: int
    parameters: int
    """Numbers in the model, on all chips together."""
    model_flops: float
    """Of the step's matrix products by its source, with what is computed twice: a chip's share."""
    matmul_flops: float
    """Of the matrix products that the compiled program holds."""
    traffic_bytes: float
    """To and from HBM."""
    link_bytes: Mapping[str, float]
    """Received over the links, by kind of collective."""
    kernels: int
    """Kernels one after the other."""
    compute_s: float
    memory_s: float
    links_s: float
    compile_s: float

    @property
    def step_bound_s(self) -> float:
        """Seconds that a step takes at least: the slowest of products, memory and links."""
        return max(self.compute_s, self.memory_s, self.links_s)

    @property
    def bound_by(self) -> str:
        """Which of the three that is."""
        times = {"compute": self.compute_s, "memory": self.memory_s, "links": self.links_s}
        return max(times, key=lambda name: times[name])

    def covers(self, preset: str, batch_size: int, sequence_length: int, obs_dim: int, action_dim: int) -> bool:
        """Tell whether a run of these sizes asks for no more than this plan in any of them."""
        ours = self.batch_size, self.sequence_length, self.obs_dim, self.action_dim
        theirs = batch_size, sequence_length, obs_dim, action_dim
        return self.preset == preset and all(a >= b for a, b in zip(ours, theirs, strict=True))

    def covered_by(
        self, preset: str, batch_size: int, sequence_length: int, obs_dim: int, action_dim: int
    ) -> bool:
        """Tell whether a run of these sizes asks for at least as much in all of them."""
        ours = self.batch_size, self.sequence_length, self.obs_dim, self.action_dim
        theirs = batch_size, sequence_length, obs_dim, action_dim
        return self.preset == preset and all(a <= b for a, b in zip(ours, theirs, strict=True))

    @property
    def size(self) -> int:
        """What plans are ordered by: how many numbers a batch of shape `[B, T, D + A]` has."""
        return self.batch_size * self.sequence_length * (self.obs_dim + self.action_dim)

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready mapping of all fields: the inverse of `from_json`."""
        return asdict(self) | {"link_bytes": dict(self.link_bytes)}

    @staticmethod
    def from_json(document: Mapping[str, Any], place: str) -> "Plan":
        """Build a plan; `place` stands for the file in errors.

        Raises:
            CorruptDataError: a field is missing or unknown.
        """
        try:
            return Plan(**document)
        except TypeError as error:
            raise CorruptDataError(f"{place}: {error}") from error


@dataclass(frozen=True, kw_only=True)
class PlanTable:
    """Plans, and what they were made with."""

    made_with: Mapping[str, str]
    """Versions of jax, jaxlib and libtpu."""
    code: str
    """`code_digest()` when they were made."""
    plans: tuple[Plan, ...]

    @property
    def is_stale(self) -> bool:
        """Whether the model or the step has changed since; the plans then say nothing."""
        return self.code != code_digest()

    def look_up(
        self, preset: str, batch_size: int, sequence_length: int, topology: str, obs_dim: int, action_dim: int
    ) -> Plan | None:
        """Do `look_up` in this table."""
        if self.is_stale:
            return None
        sizes = preset, batch_size, sequence_length, obs_dim, action_dim
        here = [plan for plan in self.plans if plan.topology == topology]
        larger = [plan for plan in here if plan.fits and plan.covers(*sizes)]
        if larger:
            return min(larger, key=lambda plan: plan.size)
        smaller = [plan for plan in here if not plan.fits and plan.covered_by(*sizes)]
        return max(smaller, key=lambda plan: plan.size) if smaller else None

    def to_json(self) -> bytes:
        """Return the file's bytes."""
        document = {
            "schema": SCHEMA,
            "made_with": dict(self.made_with),
            "code": self.code,
            "plans": [plan.to_json() for plan in self.plans],
        }
        return json.dumps(document, indent=1).encode() + b"\n"

    @staticmethod
    def from_json(data: bytes, place: str) -> "PlanTable":
        """Parse a table; `place` stands for the file in errors.

        Raises:
            CorruptDataError: it is no table of this schema.
        """
        try:
            document = json.loads(data)
            if document["schema"] != SCHEMA:
                raise CorruptDataError(f"{place}: not a plan table of schema {SCHEMA}")
            plans = tuple(Plan.from_json(plan, place) for plan in document["plans"])
            return PlanTable(made_with=document["made_with"], code=document["code"], plans=plans)
        except (ValueError, KeyError, TypeError) as error:
            raise CorruptDataError(f"{place}: {type(error).__name__}: {error}") from error


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Hours and list price of a run: at least, and as it is wise to plan."""

    least_hours: float
    least_usd: float
    hours: float
    usd: float
    spot: bool
    prices_as_of: str = PRICES_AS_OF


def estimate(plan: Plan, steps: int, *, spot: bool) -> Estimate:
    """Return what `steps` optimiser steps cost on the plan's slice, start and end of the job (`START_S`) included.

    Disks, storage, traffic, held-out looks and starts after a preemption are not in it.
    """
    usd_per_hour = parse_topology(plan.topology).usd_per_hour(spot=spot)
    least_hours = (START_S + steps * plan.step_bound_s) / 3600
    hours = (START_S + steps * plan.step_bound_s * PLANNING_FACTOR) / 3600
    return Estimate(
        least_hours=least_hours,
        least_usd=least_hours * usd_per_hour,
        hours=hours,
        usd=hours * usd_per_hour,
        spot=spot,
    )


def look_up(
    preset: str, batch_size: int, sequence_length: int, topology: str, obs_dim: int, action_dim: int
) -> Plan | None:
    """Return the smallest shipped plan that is at least as large as this run in every size, and fits.

    A plan with `fits` false comes back where one that is no larger than this run in any size does not fit: then
    this run does not either. None is a miss, also where the shipped table is older than the model.

    Raises:
        InvalidError: the topology does not exist, or its chips do not divide the batch; names what would do.
    """
    chips = parse_topology(topology).chips
    if batch_size % chips:
        lower = batch_size // chips * chips
        nearest = f"{lower} or {lower + chips}" if lower else str(chips)
        raise InvalidError(
            f"batch_size {batch_size} is not divisible by the {chips} chips of {topology}; use {nearest}",
            field="batch_size",
        )
    return shipped_table().look_up(preset, batch_size, sequence_length, topology, obs_dim, action_dim)


@cache
def shipped_table() -> PlanTable:
    """Return the table that came with the package; an empty one where none did.

    Raises:
        CorruptDataError: the file is damaged; install the package again.
    """
    try:
        data = TABLE.read_bytes()
    except FileNotFoundError:
        return PlanTable(made_with={}, code="", plans=())
    return PlanTable.from_json(data, str(TABLE))


@cache
def code_digest() -> str:
    """Return a hash of the code that decides the compiled step; comments and docstrings do not count.

    The sources are parsed and never imported, so it costs no framework.
    """
    found = hashlib.sha256()
    for pattern in DECIDING:
        for path in sorted(PACKAGE.glob(pattern)):
            found.update(path.name.encode())
            tree = ast.parse(path.read_text())
            body = [node for node in tree.body if path.name != "sharding.py" or _name(node) in SHARDING_RULE]
            for part in _meaning(body):
                found.update(part.encode() + b"\0")
    return found.hexdigest()[:16]


def _name(node: ast.stmt) -> str:
    target = node.targets[0] if isinstance(node, ast.Assign) else node
    return str(getattr(target, "id", getattr(target, "name", "")))


def _meaning(node: Any) -> Iterable[str]:
    # By hand, since `ast.dump` writes differently from one Python to the next.
    if isinstance(node, list):
        for item in node:
            yield from _meaning(item)
    elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
        return
    elif isinstance(node, ast.AST):
        yield type(node).__name__
        for name in node._fields:
            value = getattr(node, name, None)
            if value is not None and value != []:
                yield name
                yield from _meaning(value)
    else:
        yield repr(node)
