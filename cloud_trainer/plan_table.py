"""Make the table of plans that is shipped: presets x slices x sizes, each compiled, kept one by one.

A second call goes on where the first was stopped, as long as neither the model nor the compiler has changed.
"""

from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from brain_service.cloud import plans
from brain_service.cloud.plans import Plan, PlanTable, code_digest
from brain_service.durable import write_atomic
from brain_service.errors import NotFoundError, UnavailableError
from cloud_trainer.choosing import choose
from cloud_trainer.compiler import Compiler, StepRequest

__all__ = ["requests", "versions", "write_table"]

# Slices and sizes that a robot's owner is likely to ask for; 128 observations and 32 actions bound most robots.
GRID: Mapping[str, tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...]] = {
    "development": (("v5e:2x2", (256,), (64,)),),
    "pi5_optimized": (("v5e:2x2", (256,), (64,)),),
    "tpu_optimized": (
        ("v5e:2x2", (256,), (64,)),
        ("v5e:4x4", (256,), (64,)),
        ("v5e:16x16", (256,), (64,)),
        ("v6e:2x2", (256,), (64,)),
        ("v6e:4x4", (256,), (64,)),
    ),
    "tpu_large": (("v5e:4x4", (256,), (64,)),),
}
LIMIT_S = 900.0


def requests() -> Iterator[StepRequest]:
    """Yield what the table holds a plan for."""
    for preset, rows in GRID.items():
        for topology, batches, lengths in rows:
            for batch_size in batches:
                for length in lengths:
                    yield StepRequest(
                        topology=topology, preset=preset, batch_size=batch_size, sequence_length=length
                    )


def versions() -> dict[str, str]:
    """Return the versions that decide what is compiled: jax, jaxlib, libtpu.

    Raises:
        UnavailableError: one of them is not installed.
    """
    try:
        return {name: version(name) for name in ("jax", "jaxlib", "libtpu")}
    except PackageNotFoundError as error:
        raise UnavailableError(f"{error.name} is not installed: pip install 'continuon-brain[tpu]'") from error


def write_table(path: Path | None, report: Callable[[str], None]) -> Path:
    """Compile what the table lacks and write it after each plan; return its path (default: the shipped file).

    Raises:
        UnavailableError: libtpu is missing, or failed for every plan.
        NotFoundError: the folder of the file does not exist.
    """
    path = path or plans.TABLE
    if not path.parent.is_dir():
        raise NotFoundError(f"{path.parent} is no folder")
    made_with = versions()
    held = _held(path, made_with)
    failed = 0
    with Compiler() as compiler:
        for request in requests():
            name = f"{request.preset} {request.topology} {request.batch_size} x {request.sequence_length}"
            if any(_answers(plan, request) for plan in held):
                report(f"{name}: there already")
                continue
            try:
                plan = choose(compiler.compile, request, fsdp=None, compare=False, limit_s=LIMIT_S).best
            except UnavailableError as error:
                # A plan that the compiler cannot make is a miss in the table, as it would be on the slice.
                failed += 1
                report(f"{name}: {error.detail}")
                continue
            held.append(plan)
            table = PlanTable(made_with=made_with, code=code_digest(), plans=tuple(held))
            write_atomic(path, table.to_json())
            report(f"{name}: {plan.hbm_bytes / 2**30:.2f} GiB, fsdp {plan.fsdp}, {plan.compile_s:.0f} s")
    if not held:
        raise UnavailableError(f"none of {failed} plans could be compiled; the messages above say why")
    return path


def _held(path: Path, made_with: Mapping[str, str]) -> list[Plan]:
    if not path.is_file():
        return []
    table = PlanTable.from_json(path.read_bytes(), str(path))
    return list(table.plans) if not table.is_stale and table.made_with == made_with else []


def _answers(plan: Plan, request: StepRequest) -> bool:
    ours = plan.preset, plan.topology, plan.batch_size, plan.sequence_length, plan.obs_dim, plan.action_dim
    return ours == (
        *(request.preset, request.topology, request.batch_size, request.sequence_length),
        *(request.obs_dim, request.action_dim),
    )
