"""Weak scaling without a TPU: the same work a chip on 1 to 256 chips, counted in the compiled programs.

What is counted is exact: products and collectives of the very program that would run. What it says of time is a
bound: links at their peak, in full overlap with the rest.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from brain_service.cloud.chips import parse_topology
from brain_service.cloud.plans import Plan, code_digest
from brain_service.durable import write_atomic
from brain_service.errors import BrainError, UnavailableError
from cloud_trainer.compiler import Compiler, StepRequest

__all__ = ["Point", "scaling_table", "write_scaling"]

# The large model takes minutes to compile, so it gets fewer slices.
SLICES: Mapping[str, tuple[str, ...]] = {
    "tpu_optimized": ("v5e:1x1", "v5e:2x2", "v5e:4x4", "v5e:8x8", "v5e:16x16"),
    "tpu_large": ("v5e:4x4", "v5e:16x16"),
}
COLOURS = {"tpu_optimized": "tab:blue", "tpu_large": "tab:orange"}
ROWS, STEPS = 8, 64
"""Sequences a chip and steps a sequence: a batch of 2,048 on 256 chips."""
SHARED = 16
"""Chips that share a copy in the fsdp rows, or all where there are fewer."""
LIMIT_S = 900.0


@dataclass(frozen=True)
class Point:
    """One compiled program of the table."""

    way: str
    """`data`: every chip holds a copy; `fsdp`: up to 16 share one."""
    plan: Plan

    @property
    def chips(self) -> int:
        """Chips of its slice."""
        return parse_topology(self.plan.topology).chips

    @property
    def efficiency(self) -> float:
        """Share of the bound that is left for products and memory where links are not hidden at all, 0 to 1."""
        alone = max(self.plan.compute_s, self.plan.memory_s)
        return alone / (alone + self.plan.links_s)


def write_scaling(folder: Path, report: Callable[[str], None]) -> str:
    """Compile all points, write `scaling.json` and `scaling.png` into the folder, return the table as text.

    Points are kept one by one: a second call goes on where the first was stopped, unless the model has changed.

    Raises:
        UnavailableError: the compiler could make no point; libtpu may be missing.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "scaling.json"
    points = _held(path)
    with Compiler() as compiler:
        for way, request in wanted():
            name = f"{request.preset} {request.topology} {way}"
            if any(_answers(point, way, request) for point in points):
                report(f"{name}: there already")
                continue
            try:
                points.append(Point(way, compiler.compile(request, LIMIT_S)))
            except UnavailableError as error:
                report(f"{name}: {error.detail}")
                continue
            write_atomic(path, _document(points))
            report(f"{name}: {points[-1].plan.compile_s:.0f} s")
    if not points:
        raise UnavailableError("no point could be compiled; the messages above say why")
    points.sort(key=lambda point: (list(SLICES).index(point.plan.preset), point.way, point.chips))
    _plot(points, folder / "scaling.png")
    return scaling_table(points)


def wanted() -> Iterator[tuple[str, StepRequest]]:
    """Yield the points to compile: how the copies lie, and the step."""
    for preset, topologies in SLICES.items():
        for topology in topologies:
            chips = parse_topology(topology).chips
            request = StepRequest(topology=topology, preset=preset, batch_size=ROWS * chips, sequence_length=STEPS)
            yield "data", request
            if chips > 1:
                yield "fsdp", replace(request, fsdp=min(chips, SHARED))


def _answers(point: Point, way: str, request: StepRequest) -> bool:
    plan = point.plan
    ours = point.way, plan.preset, plan.topology, plan.batch_size, plan.sequence_length, plan.fsdp
    return ours == (
        *(way, request.preset, request.topology),
        *(request.batch_size, request.sequence_length, request.fsdp),
    )


def _document(points: list[Point]) -> bytes:
    rows = [
        {"way": point.way, "chips": point.chips, "efficiency": point.efficiency, "plan": point.plan.to_json()}
        for point in points
    ]
    return json.dumps({"code": code_digest(), "points": rows}, indent=1).encode() + b"\n"


def _held(path: Path) -> list[Point]:
    try:
        document = json.loads(path.read_bytes())
        if document["code"] != code_digest():
            return []
        return [Point(row["way"], Plan.from_json(row["plan"], str(path))) for row in document["points"]]
    except (FileNotFoundError, ValueError, KeyError, TypeError, BrainError):
        return []  # not ours, or damaged: it is made anew


def scaling_table(points: list[Point]) -> str:
    """Return the points as a Markdown table: work, traffic and memory of a chip, and the bound in milliseconds."""
    lines = [
        "| preset | copies | chips | Gflop a chip | MB received a chip | state MiB a chip | bound ms (by) | links "
        "not hidden |",
        "|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    for point in points:
        plan = point.plan
        lines.append(
            f"| {plan.preset} | {point.way} {plan.fsdp} | {point.chips} | {plan.matmul_flops / 1e9:.2f} | "
            f"{sum(plan.link_bytes.values()) / 1e6:.1f} | {plan.state_bytes / 2**20:.1f} | "
            f"{plan.step_bound_s * 1e3:.2f} ({plan.bound_by}) | {point.efficiency:.0%} |"
        )
    return "\n".join(lines)


def _plot(points: list[Point], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")  # no display; chosen before pyplot is imported
    from matplotlib import pyplot
    from matplotlib.ticker import PercentFormatter

    figure, axes = pyplot.subplots(1, 3, figsize=(13, 4), layout="constrained")
    titles = (
        "matrix products a chip [Gflop]",
        "received over the links a chip [MB]",
        "share left beside the links",
    )
    lines = list(dict.fromkeys((point.plan.preset, point.way) for point in points))
    for preset, way in lines:
        mine = [point for point in points if (point.plan.preset, point.way) == (preset, way)]
        style = {
            "marker": "o" if way == "data" else "s",
            "linestyle": "-" if way == "data" else "--",
            "color": COLOURS[preset],
            "label": f"{preset}, {'a copy a chip' if way == 'data' else f'up to {SHARED} share a copy'}",
        }
        chips = [point.chips for point in mine]
        axes[0].plot(chips, [point.plan.matmul_flops / 1e9 for point in mine], **style)
        axes[1].plot(chips, [sum(point.plan.link_bytes.values()) / 1e6 for point in mine], **style)
        axes[2].plot(chips, [point.efficiency for point in mine], **style)
    for axis, title in zip(axes, titles, strict=True):
        axis.set_xscale("log", base=2)
        axis.set_xticks([1, 4, 16, 64, 256], ["1", "4", "16", "64", "256"])
        axis.set_xlabel("v5e chips")
        axis.set_title(title, fontsize=10)
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
    axes[2].set_ylim(0, 1.05)
    axes[2].yaxis.set_major_formatter(PercentFormatter(1.0))
    axes[0].legend(fontsize=8)
    figure.suptitle(f"Weak scaling by compiled programs: {ROWS} sequences of {STEPS} steps a chip", fontsize=11)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
