"""`cloud-trainer train`: train the CoreModel on a dataset; checkpoints and a bundle go to the output directory."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

from brain_service.datasets.gcs_libraries import prepare_gcs_libraries
from brain_service.datasets.loader import Mode
from brain_service.errors import InvalidError
from brain_service.logs import setup_logging

__all__ = ["main"]

EXAMPLES = """\
example:
  python -m cloud_trainer --data-path gs://bucket/datasets --output-dir gs://bucket/runs/1 \\
      --batch-size 256 --num-steps 10000 --learning-rate 1e-4 --fsdp 4

A second call with the same options takes the run up where it stood; a finished run only says so.
Exit codes: 0 done, 75 told to go and saved (call again), 78 an option, the data or the plan is wrong, 2 failed.
What the run is doing stands in <output-dir>/status.json.
"""


def main(arguments: list[str]) -> int:
    """Run the job and return its exit code.

    Raises:
        BrainError: an option, the dataset or a checkpoint is unusable, or the medium fails.
    """
    given = _parser().parse_args(arguments)
    prepare_gcs_libraries()
    setup_logging("warning", "text")
    # After that: they read their settings when they are imported.
    from brain_service.training.config import TrainConfig
    from cloud_trainer.distributed import Cluster
    from cloud_trainer.job import JobOptions, run_job
    from cloud_trainer.planning import plan_first

    if given.devices is not None:
        import jax

        jax.config.update("jax_num_cpu_devices", given.devices)
    config = TrainConfig.from_dict(_settings(given))
    options = JobOptions(
        data_path=given.data_path,
        output_dir=given.output_dir,
        config=config,
        run_id=given.run_id,
        fsdp=given.fsdp,
        topology=given.topology,
        cluster=Cluster(
            coordinator_address=given.coordinator_address,
            num_processes=given.num_processes,
            process_id=given.process_id,
        ),
        before_training=plan_first(config, given.topology, given.fsdp) if given.plan else lambda *_: None,
        bundle=not given.no_bundle,
        sign_key=given.sign_key,
        compile_cache=given.compile_cache,
        heartbeat_s=given.heartbeat_s,
    )
    return run_job(options, say=_say)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="cloud-trainer",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--data-path", required=True, help="dataset in TFDS layout: a version, a name (newest), or a root of one")
    add("--output-dir", required=True, help="local or gs://: status, checkpoints, curves, bundle")
    add("--preset", default="tpu_optimized", help="size of the model (default: %(default)s)")
    add("--batch-size", type=int, default=256, help="sequences a step, of all hosts (default: %(default)s)")
    add("--num-steps", type=int, default=10_000, help="optimiser steps (default: %(default)s)")
    add("--learning-rate", type=float, default=1e-4, help="peak rate (default: %(default)s)")
    add("--seed", type=int, default=0, help="of parameters, order and noise (default: %(default)s)")
    add(
        "--mode",
        choices=get_args(Mode),
        default="windows",
        help="what a row is: a random window, several short ones, a whole episode, or a stream with its state "
        "carried over (default: %(default)s)",
    )
    add("--sequence-length", type=int, help="steps a row (default: 64; whole episodes: any)")
    add("--checkpoint-every", type=int, default=500, help="steps between two checkpoints (default: %(default)s)")
    add("--keep", type=int, default=2, help="checkpoints that stay (default: %(default)s)")
    add("--log-every", type=int, default=50, help="steps between two lines of metrics (default: %(default)s)")
    add("--val", type=int, default=0, metavar="N", help="look at the held-out loss every N steps (default: never)")
    add("--patience", type=int, default=0, help="looks without a better one that end the run (default: never)")
    add(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="any other training setting, the value as JSON: --set weight_decay=0.1 --set 'model={\"d_h\": 512}'",
    )
    _add_cloud(parser.add_argument_group("where it runs"))
    return parser


def _add_cloud(group: Any) -> None:
    add = group.add_argument
    add("--run-id", help="name of the run (default: the output directory's)")
    add("--topology", help="the slice that is expected, such as v5e:4x4; another one is a note in the log")
    add("--fsdp", type=int, default=1, help="devices that share one copy of the parameters (default: %(default)s)")
    add("--coordinator-address", metavar="HOST:PORT", help="of process 0, where no cluster's environment tells")
    add("--num-processes", type=int, help="how many processes, with --coordinator-address")
    add("--process-id", type=int, help="which of them this is, from 0")
    add("--devices", type=int, help="CPU devices to simulate in this process, for a try without accelerators")
    add("--plan", action="store_true", help="plan for --topology first, and refuse what does not fit")
    add("--no-bundle", action="store_true", help="train and evaluate only, as for a trial of a search")
    add("--sign-key", type=Path, help="private key to sign the bundle with")
    add("--compile-cache", help="where compiled programs are kept, local or gs:// (default: <output-dir>/cache)")
    add("--heartbeat-s", type=float, default=10.0, help="seconds between two heartbeats (default: %(default)s)")


def _settings(given: argparse.Namespace) -> dict[str, Any]:
    open_ended = given.mode == "episodes" and given.sequence_length is None
    return {
        "preset": given.preset,
        "steps": given.num_steps,
        "batch_size": given.batch_size,
        "learning_rate": given.learning_rate,
        "seed": given.seed,
        "mode": given.mode,
        "sequence_length": None if open_ended else given.sequence_length or 64,
        "checkpoint_every": given.checkpoint_every,
        "keep": given.keep,
        "log_every": given.log_every,
        "evaluate_every": given.val,
        "patience": given.patience,
        **_more_settings(given.set),
    }


def _more_settings(assignments: Sequence[str]) -> dict[str, Any]:
    """Read `NAME=VALUE` pairs.

    Raises:
        InvalidError: one is no such pair, or its value no JSON.
    """
    found = {}
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        try:
            found[name] = json.loads(text)
        except ValueError as error:
            shown = "a value" if not equals else f"{text!r}: {error}"
            raise InvalidError(
                f"--set {assignment}: {shown} is wrong; use NAME=VALUE with the value as JSON", field=name
            ) from error
    return found


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()
