"""`brain`: serve, and the loop's steps by hand."""

import argparse
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import brain_service
from brain_service.cli_convert import add_convert_arguments, run_convert
from brain_service.cli_datasets import add_datasets_command
from brain_service.cli_doctor import add_doctor_command
from brain_service.cli_episodes import add_episodes_command
from brain_service.cli_evaluate import add_evaluate_command
from brain_service.cli_export import add_export_command
from brain_service.cli_formats import add_format_commands
from brain_service.cli_hailo import add_export_hailo_command
from brain_service.cli_hardware import add_hardware_command
from brain_service.cli_health import add_health_command
from brain_service.cli_keys import add_keys_command
from brain_service.cli_lora import add_lora_command
from brain_service.cli_pipeline import add_pipeline_command
from brain_service.cli_replay import add_replay_command
from brain_service.cli_train import (
    SANITY_EXAMPLES,
    TRAIN_EXAMPLES,
    add_sanity_arguments,
    add_train_arguments,
    run_sanity,
    run_train,
)
from brain_service.cli_upload import add_upload_command
from brain_service.errors import BrainError
from brain_service.logs import setup_logging
from brain_service.settings import load_settings
from brain_service.terminal import printable, progress_bar

__all__ = ["main"]

EXAMPLES = """\
examples:
  brain serve --data-dir ./brain --port 8080
  brain convert  --input-dir ./brain/episodes --output-dir ./datasets
  brain sanity-check
  brain train    --data-path ./datasets --checkpoint-dir ./checkpoints/run1 --steps 1000
  brain lora train --rlds-dir ./datasets --run kitchen
  brain evaluate --data-path ./datasets --checkpoint-dir ./checkpoints/run1
  brain export   --checkpoint-dir ./checkpoints/run1 --output-dir ./models
  brain pipeline --data-dir ./brain --steps 500
  brain datasets report ./datasets
  brain episodes ls --data-dir ./brain
  brain upload   --local-dir ./datasets --gcs-bucket my-robots
  brain hardware
  brain replay 20261122T201500-3f9a1c --data-dir ./brain
  brain health   --url http://127.0.0.1:8080
  sudo brain doctor
"""

Run = Callable[[argparse.Namespace], int]


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit code: 0 done, 2 failed; `health`, `doctor` and `datasets report`:
    0 pass, 1 warn, 2 fail; `sanity-check` and `replay`: 0 pass, 1 fail. Where the reader of the output is gone
    (`| head`): 141, as of other commands.

    An expected failure is one line on standard error with the next step, never a traceback.
    """
    options = _parser().parse_args(arguments)
    run: Run = options.run
    try:
        code = run(options)
        # A reader that is gone must show here and not in the interpreter's own last flush.
        sys.stdout.flush()
        return code
    except BrainError as error:
        problem = error.detail
    except BrokenPipeError:
        return _without_reader()
    except OSError as error:
        problem = str(error)
    except KeyboardInterrupt:
        problem = "interrupted"
    print(f"brain {options.command}: {printable(problem)}", file=sys.stderr)
    return 2


def _without_reader() -> int:
    """Give up standard output, so that nothing is written to the closed pipe at exit, and return the exit code."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
    return 128 + signal.SIGPIPE


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="brain", description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {brain_service.__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")

    def command(name: str, run: Run, summary: str, examples: str | None = None) -> argparse.ArgumentParser:
        raw = argparse.RawDescriptionHelpFormatter
        added = commands.add_parser(name, help=summary, description=summary, epilog=examples, formatter_class=raw)
        added.set_defaults(run=run)
        return added

    serve = command("serve", _serve, "Run the daemon.")
    serve.add_argument("--data-dir", type=Path, help="everything the daemon keeps")
    serve.add_argument("--host", help="address to listen on (default: 127.0.0.1)")
    serve.add_argument("--port", type=int, help="port to listen on (default: 8080)")
    serve.add_argument("--uds", type=Path, help="Unix socket (default: <data-dir>/brain.sock)")
    serve.add_argument("--tokens-file", type=Path, help="lines of '<token> <scope>[,<scope>]'")
    serve.add_argument("--config", type=Path, help="settings file (default: brain.toml)")
    serve.add_argument("--log-level", choices=["debug", "info", "warning", "error"])

    convert = command("convert", _convert, "Convert .json and .jsonl episodes into an RLDS dataset (TFDS layout).")
    add_convert_arguments(convert)

    train = command(
        "train", _train, "Train the CoreModel; the same call takes a run up where it stood.", TRAIN_EXAMPLES
    )
    add_train_arguments(train)

    sanity = command(
        "sanity-check", _sanity, "Check in under a minute that this machine trains the model.", SANITY_EXAMPLES
    )
    add_sanity_arguments(sanity)

    add_export_command(commands, progress_bar)
    add_evaluate_command(commands)
    add_datasets_command(commands)
    add_episodes_command(commands)
    add_pipeline_command(commands)
    add_replay_command(commands)
    add_format_commands(commands)
    add_hardware_command(commands)
    add_export_hailo_command(commands)
    add_lora_command(commands)
    add_upload_command(commands)
    add_keys_command(commands)
    add_health_command(commands)
    add_doctor_command(commands)
    return parser


def _serve(options: argparse.Namespace) -> int:
    names = ("data_dir", "host", "port", "uds", "tokens_file", "log_level")
    settings = load_settings({name: getattr(options, name) for name in names}, config=options.config)
    setup_logging(settings.log_level, settings.log_format)
    from brain_service.api.serve import serve

    serve(settings)
    return 0


def _convert(options: argparse.Namespace) -> int:
    print(run_convert(options, progress_bar("converting")))
    return 0


def _train(options: argparse.Namespace) -> int:
    _print(run_train(options, progress_bar("training")))
    return 0


def _sanity(options: argparse.Namespace) -> int:
    text, code = run_sanity(options, progress_bar("checking"))
    print(text)
    return code


def _print(document: dict[str, Any]) -> None:
    print(json.dumps(document, indent=2, default=str))
