"""`cloud-trainer plan`: what a training step needs of a TPU slice and what a run costs, before anything is paid.

The real train step is compiled by the TPU's own compiler (libtpu), which runs on any x86 machine.
"""

import argparse
import json
import logging
import sys
from collections.abc import Callable
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path

from brain_service.cloud.plans import Plan, estimate
from brain_service.errors import InvalidError
from brain_service.training.config import TrainConfig
from cloud_trainer.choosing import Choice, choose, require_fit
from cloud_trainer.compiler import Compiler, StepRequest
from cloud_trainer.plan_table import write_table
from cloud_trainer.plan_text import comparison_text, plan_text
from cloud_trainer.scaling import write_scaling

__all__ = ["check", "main"]

log = logging.getLogger(__name__)

EXAMPLES = """\
examples:
  cloud-trainer plan --topology v5e:4x4 --preset tpu_optimized --batch-size 256 --num-steps 10000 --spot
  cloud-trainer plan --topology v5e:16x16 --preset tpu_large --batch-size 2048 --compare
  cloud-trainer plan --scaling --output build/scaling

Exit code 78: the run does not fit, or its batch does not divide; the message says what would.
"""
LIMIT_S = 600.0


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command's arguments."""
    made = argparse.ArgumentParser(
        prog="cloud-trainer plan",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("--topology", default="v5e:2x2", help="slice, as v5e:4x4 (default: %(default)s)")
    made.add_argument("--preset", default="tpu_optimized", help="size of the model (default: %(default)s)")
    made.add_argument("--batch-size", type=int, default=256, help="sequences a step (default: %(default)s)")
    made.add_argument("--sequence-length", type=int, default=64, help="steps a sequence (default: %(default)s)")
    made.add_argument("--mode", default="windows", help="as in training (default: %(default)s)")
    made.add_argument(
        "--fsdp", default="auto", help="chips that share a copy of the parameters (default: the fewest)"
    )
    made.add_argument("--num-steps", type=int, default=10_000, help="optimiser steps (default: %(default)s)")
    made.add_argument("--obs-dim", type=int, default=128, help="numbers of an observation (default: %(default)s)")
    made.add_argument("--action-dim", type=int, default=32, help="numbers of an action (default: %(default)s)")
    made.add_argument("--data-path", help="take both from this dataset")
    made.add_argument("--spot", action="store_true", help="Spot price")
    made.add_argument("--compare", action="store_true", help="compile for several --fsdp and recommend one")
    made.add_argument("--json", action="store_true", help="print JSON")
    made.add_argument(
        "--limit-s", type=float, default=LIMIT_S, help="stop compiling after so long (default: %(default)s)"
    )
    made.add_argument("--write-table", action="store_true", help="make the table of plans that is shipped")
    made.add_argument("--scaling", action="store_true", help="weak scaling from 1 to 256 chips")
    made.add_argument("--output", type=Path, help="of the table (a file) or of the scaling (a folder)")
    return made


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns 0 and prints the plan.

    Raises:
        InvalidError: the run does not fit, the batch does not divide, or a value is impossible.
        UnavailableError: libtpu is missing or failed.
        DeadlineExceededError: compiling took more than `--limit-s` seconds.
        NotFoundError: there is no dataset at `--data-path`.
    """
    given = parser().parse_args(arguments)
    if given.write_table:
        write_table(given.output, report=_tell)
        return 0
    if given.scaling:
        _tell(write_scaling(given.output or Path("build/scaling"), report=_tell))
        return 0
    obs_dim, action_dim = _sizes(given)
    request = StepRequest(
        topology=given.topology,
        preset=given.preset,
        batch_size=given.batch_size,
        sequence_length=given.sequence_length,
        obs_dim=obs_dim,
        action_dim=action_dim,
        mode=given.mode,
    )
    with Compiler() as compiler:
        choice = choose(
            compiler.compile,
            request,
            fsdp=_fsdp(given.fsdp),
            compare=given.compare,
            limit_s=given.limit_s,
        )
    _print(choice, given)
    require_fit(choice.best)
    return 0


def check(
    config: TrainConfig,
    obs_dim: int,
    action_dim: int,
    *,
    fsdp: int = 1,
    topology: str | None = None,
    report: Callable[[str], None] = log.info,
) -> Plan | None:
    """Plan a run where it is about to train, and refuse one that does not fit before its first step.

    On TPUs the step is compiled for the devices that are here; training takes it from the compile cache. Elsewhere
    it is planned for `topology` by libtpu, if one is named and libtpu is installed. None means that there was
    nothing to plan for, which `report` is told; training on a CPU may go on.

    Raises:
        InvalidError: the run does not fit, or the batch does not divide; the message says what would do.
        UnavailableError: the TPU's compiler failed.
    """
    from cloud_trainer.here import plan_here  # starts JAX

    plan = plan_here(config, obs_dim, action_dim, fsdp)
    if plan is None and topology is None:
        report("not planned: there is no TPU here, and no topology is named")
    elif plan is None and find_spec("libtpu") is None:
        report(f"not planned for {topology}: libtpu, the TPU's compiler, is not installed here (x86 only)")
    elif plan is None and topology is not None:
        request = StepRequest(
            topology=topology,
            preset=config.preset,
            batch_size=config.batch_size,
            sequence_length=_length(config),
            obs_dim=obs_dim,
            action_dim=action_dim,
            fsdp=fsdp,
            mode=config.mode,
            model=config.to_dict()["model"],
        )
        with Compiler() as compiler:
            plan = compiler.compile(request, LIMIT_S)
    if plan is not None:
        require_fit(plan)
        report(
            f"planned: {plan.hbm_bytes / 2**30:.2f} of {plan.hbm_limit_bytes / 2**30:.2f} GiB a chip, at least "
            f"{plan.step_bound_s * 1e3:.2f} ms a step ({plan.bound_by})"
        )
    return plan


def _length(config: TrainConfig) -> int:
    if config.sequence_length is None:
        raise InvalidError("a plan needs the longest sequence: give --sequence-length", field="sequence_length")
    return config.sequence_length


def _fsdp(text: str) -> int | None:
    if text == "auto":
        return None
    if not text.isdigit() or int(text) < 1:
        raise InvalidError(f"fsdp {text!r}: use auto or a positive integer", field="fsdp")
    return int(text)


def _sizes(given: argparse.Namespace) -> tuple[int, int]:
    if given.data_path is None:
        return given.obs_dim, given.action_dim
    from brain_service.datasets.loader import open_dataset  # takes a second, and only this needs it

    dataset = open_dataset(given.data_path)
    return dataset.observation_size, dataset.action_size


def _print(choice: Choice, given: argparse.Namespace) -> None:
    cost = estimate(choice.best, given.num_steps, spot=given.spot)
    if given.json:
        best = choice.best.to_json() | {
            "step_bound_s": choice.best.step_bound_s,
            "bound_by": choice.best.bound_by,
            "num_steps": given.num_steps,
            "cost": asdict(cost),
        }
        _tell(json.dumps({"plan": best, "compared": [plan.to_json() for plan in choice.plans]}, indent=1))
        return
    _tell(plan_text(choice.best, cost, given.num_steps))
    if len(choice.plans) > 1 or choice.failed:
        _tell("\n" + comparison_text(choice.plans, choice.best, choice.failed))


def _tell(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()
