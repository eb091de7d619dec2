"""`brain pipeline`: the whole loop by hand, one command after the other, or by a running daemon."""

import argparse
import json
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from brain_service.errors import BrainError
from brain_service.terminal import progress_bar, say, say_json

if TYPE_CHECKING:
    from brain_service.settings import Settings

__all__ = ["StepReport", "add_pipeline_command"]

EXAMPLES = """\
examples:
  brain pipeline --data-dir ./brain --steps 500                      # everything, without a daemon
  brain pipeline --data-dir ./brain --dry-run                        # what that would run
  brain pipeline --episodes-dir ./episodes --tfrecord-dir ./datasets --health --convert-tfrecord
  brain pipeline --trainer-data-path ./datasets --train-local --export
  brain pipeline --url http://127.0.0.1:8080 --steps 500             # by the daemon, which also serves the model

Without any of the flags that name steps, all are taken. A step that fails ends the pipeline (exit code 2); the
same command again goes on from there.
"""
Status = Literal["pending", "done", "failed", "skipped"]
STEPS = ("health", "convert_tfrecord", "train_local", "evaluate", "export")
_TRAINING = (
    *("preset", "steps", "batch_size", "sequence_length", "learning_rate", "seed"),
    *("image", "image_size"),
)


@dataclass(frozen=True)
class StepReport:
    """What became of one step; `command` does the same by hand, `details` is a sentence or the step's result."""

    name: str
    status: Status
    details: str = ""
    duration_s: float = 0.0
    command: str | None = None


def add_pipeline_command(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `pipeline` to the parser of `brain`."""
    summary = "Run the whole loop: health, convert, train, evaluate, export."
    added = commands.add_parser(
        "pipeline",
        help=summary,
        description=summary,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    added.set_defaults(run=_pipeline)
    add = added.add_argument
    add("--url", help="have the daemon there do it, and follow it; the steps and directories are then its own")
    add("--token-file", type=Path, help="a file that begins with a token of scope operate, for --url")
    add("--data-dir", type=Path, help="what the directories below are in by default (default: the daemon's)")
    add("--episodes-dir", type=Path, help="recordings (default: <data-dir>/episodes)")
    add("--tfrecord-dir", type=Path, help="where datasets go (default: <data-dir>/datasets)")
    add("--trainer-data-path", type=Path, help="dataset to train on (default: that of --tfrecord-dir)")
    add("--checkpoint-dir", type=Path, help="of the run (default: <data-dir>/checkpoints/pipeline)")
    add("--models-dir", type=Path, help="where the bundle goes (default: <data-dir>/models)")
    add("--health", action="store_true", help="is there room?")
    add("--convert-tfrecord", action="store_true", help="recordings to an RLDS dataset")
    add("--train-local", action="store_true", help="train on this machine")
    add("--evaluate", action="store_true", help="hold the checkpoint against held-out episodes")
    add("--export", action="store_true", help="make a bundle of the checkpoint")
    add("--preset", default="development", help="size of the model (default: %(default)s)")
    add("--steps", type=int, help="optimiser steps")
    add("--batch-size", type=int, help="sequences a step")
    add("--sequence-length", type=int, help="time steps a sequence")
    add("--learning-rate", type=float, help="peak learning rate")
    add("--seed", type=int, help="of parameters, order and noise")
    add("--image", help="which image the model sees: a feature's path, auto (the only one) or none")
    add("--image-size", help="its height and width for the model, as 48x64 (default: no side above 96)")
    add("--quantization", choices=["none", "fp16", "int8"], default="none", help="of the bundle")
    add("--dry-run", action="store_true", help="tell what would be run")
    add("--json", action="store_true", help="print the reports as JSON")


def _pipeline(options: argparse.Namespace) -> int:
    reports: list[StepReport] = []
    for report in _by_daemon(options) if options.url else _by_hand(options):
        reports.append(report)
        if not options.json:
            _show(report)
    if options.json:
        say_json([asdict(report) for report in reports])
    return 2 if any(report.status == "failed" for report in reports) else 0


def _show(report: StepReport) -> None:
    say(f"{report.status:8} {report.name:17} {report.duration_s:7.1f} s  {report.details}".rstrip())
    if report.command:
        say(f"         $ {report.command}")


def _by_hand(options: argparse.Namespace) -> Iterator[StepReport]:
    """Run the steps that were asked for; ends after one that fails."""
    from brain_service.settings import load_settings

    settings = load_settings({"data_dir": options.data_dir})
    chosen = [name for name in STEPS if getattr(options, name)] or list(STEPS)
    for name in chosen:
        report = StepReport(
            name, "pending", command=None if name == "health" else _command(name, options, settings)
        )
        if options.dry_run and name != "health":
            yield replace(report, status="skipped", details="dry run: not carried out")
            continue
        begun_s = time.monotonic()
        status, details = _carry_out(report, settings)
        report = replace(report, status=status, details=details, duration_s=round(time.monotonic() - begun_s, 3))
        yield report
        if status == "failed":
            return


def _carry_out(report: StepReport, settings: "Settings") -> tuple[Literal["done", "failed"], str]:
    if report.command is None:
        from brain_service.jobs.stages.health import require_room

        try:
            settings.data_dir.mkdir(parents=True, exist_ok=True)
            return "done", require_room(settings)
        except BrainError as error:
            return "failed", error.detail
    # Our own program: a step's memory goes with its process, and its bar is on standard error.
    words = [sys.executable, "-m", "brain_service", *shlex.split(report.command)[1:]]
    done = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        return "failed", f"exit code {done.returncode}; the reason stands above"
    return "done", _in_a_line(done.stdout)


def _in_a_line(output: str) -> str:
    """Return what a step printed, JSON without its nested parts, in one line."""
    try:
        document = json.loads(output)
    except ValueError:
        return " ".join(output.split())
    plain = {name: value for name, value in document.items() if isinstance(value, str | int | float)}
    return ", ".join(
        f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}" for name, value in plain.items()
    )


def _command(name: str, options: argparse.Namespace, settings: "Settings") -> str:
    datasets = options.tfrecord_dir or settings.datasets_dir
    data_path = str(options.trainer_data_path or datasets)
    checkpoints = str(options.checkpoint_dir or settings.checkpoints_dir / "pipeline")
    words: Sequence[str]
    if name == "convert_tfrecord":
        episodes = str(options.episodes_dir or settings.episodes_dir)
        words = ["convert", "--input-dir", episodes, "--output-dir", str(datasets), "--json"]
    elif name == "train_local":
        words = ["train", "--data-path", data_path, "--checkpoint-dir", checkpoints]
        for option in _TRAINING:
            if (value := getattr(options, option)) is not None:
                words += [f"--{option.replace('_', '-')}", str(value)]
    elif name == "evaluate":
        words = ["evaluate", "--data-path", data_path, "--checkpoint-dir", checkpoints]
        words += ["--report-dir", f"{checkpoints}/report"]
    else:
        models = str(options.models_dir or settings.models_dir)
        words = ["export", "--checkpoint-dir", checkpoints, "--output-dir", models]
        words += ["--quantization", options.quantization] if options.quantization != "none" else []
    return shlex.join(["brain", *words])


def _by_daemon(options: argparse.Namespace) -> Iterator[StepReport]:
    """Have the daemon run it and follow the job to its end.

    Raises:
        UnavailableError: no daemon answers, or it refuses.
        NotFoundError: the job is gone.
    """
    from brain_service.cli_daemon import open_daemon

    names = (*_TRAINING, "quantization", "dry_run")
    body = {name: value for name in names if (value := getattr(options, name)) is not None}
    with open_daemon(options.url, options.token_file) as daemon, progress_bar("pipeline") as report:
        job = daemon.job("pipeline", body, report)
    statuses: dict[str, Status] = {"done": "done", "failed": "failed", "skipped": "skipped"}
    for stage in job["stages"]:
        status = statuses.get(stage["status"], "pending")
        yield StepReport(stage["name"], status, stage["details"], stage["duration_s"] or 0.0, stage["command"])
    if job["state"] != "succeeded":
        problem = job["error"] or {}
        yield StepReport(f"job {job['job_id']}", "failed", str(problem.get("detail") or job["state"]))
