"""`cloud-trainer train`: train the CoreModel on a dataset; checkpoints and a bundle go to the output directory."""

import argparse
import sys
from pathlib import Path
from typing import get_args

from brain_service.datasets.loader import Mode
from brain_service.errors import InvalidError
from cloud_trainer.job import JobOptions, run_job

__all__ = ["main"]

EXAMPLES = """\
example:
  python -m cloud_trainer --data-path ./datasets --output-dir ./run1 \\
      --batch-size 256 --num-steps 10000 --learning-rate 1e-4 --fsdp 4

A second call with the same --output-dir takes the run up where it stood.
"""


def local_path(text: str) -> Path:
    """Turn an argument into a path.

    Raises:
        InvalidError: it is a `gs://` address, which this version does not read; copy the data first.
    """
    if "://" in text:
        raise InvalidError(
            f"{text}: only local paths are read here; copy the data first (gcloud storage cp -r {text} .)"
        )
    return Path(text)


def main(arguments: list[str]) -> int:
    """Run the job and return its exit code.

    Raises:
        BrainError: an option, the dataset or a checkpoint is unusable, or the medium fails.
    """
    parser = argparse.ArgumentParser(
        prog="cloud-trainer",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data-path", required=True, help="dataset directory in TFDS layout")
    parser.add_argument("--output-dir", required=True, help="where checkpoints/ and models/ go")
    parser.add_argument("--preset", default="tpu_optimized", help="size of the model (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=256, help="sequences a step (default: %(default)s)")
    parser.add_argument("--num-steps", type=int, default=10_000, help="optimiser steps (default: %(default)s)")
    parser.add_argument("--learning-rate", type=float, default=1e-4, help="peak rate (default: %(default)s)")
    parser.add_argument(
        "--seed", type=int, default=0, help="of parameters, order and noise (default: %(default)s)"
    )
    parser.add_argument(
        "--mode",
        choices=get_args(Mode),
        default="windows",
        help="what a row is: a random window, several short ones, a whole episode, or a stream with its state "
        "carried over (default: %(default)s)",
    )
    parser.add_argument("--sequence-length", type=int, help="steps a row (default: 64; whole episodes: any)")
    parser.add_argument(
        "--checkpoint-every", type=int, default=500, help="steps between two checkpoints (default: %(default)s)"
    )
    parser.add_argument(
        "--fsdp", type=int, default=1, help="devices that share one copy of the parameters (default: %(default)s)"
    )
    options = parser.parse_args(arguments)
    open_ended = options.mode == "episodes" and options.sequence_length is None
    job = JobOptions(
        data_path=local_path(options.data_path),
        output_dir=local_path(options.output_dir),
        preset=options.preset,
        batch_size=options.batch_size,
        num_steps=options.num_steps,
        learning_rate=options.learning_rate,
        seed=options.seed,
        mode=options.mode,
        sequence_length=None if open_ended else options.sequence_length or 64,
        checkpoint_every=options.checkpoint_every,
        fsdp=options.fsdp,
    )
    bundle = run_job(job, report=_say)
    _say(str(bundle))
    return 0


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()
