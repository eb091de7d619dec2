"""`brain lora`: fine-tune a model with PyTorch adapters, look at what there is, promote it or go back."""

import argparse
import re
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from brain_service.cli_lora_promote import lora_settings, promote, rollback
from brain_service.cli_train import bar_hooks, stop_on_signals
from brain_service.errors import InvalidError
from brain_service.terminal import progress_bar, say, say_json, size_text, table_lines

__all__ = ["add_lora_command"]

EXAMPLES = """\
examples:
  brain lora train --run kitchen --rlds-dir ./datasets --data-dir ./brain
  brain lora train --run kitchen --rlds-dir ./datasets --base-model-path ./checkpoints/run1 --max-steps 200
  brain lora ls --data-dir ./brain
  brain lora promote kitchen --data-dir ./brain                    # no daemon runs there
  brain lora promote kitchen --data-dir ./brain --url http://127.0.0.1:8080
  brain lora rollback --url http://127.0.0.1:8080
  brain lora merge kitchen --data-dir ./brain --checkpoint-dir ./checkpoints/kitchen

Training needs torch (pip install 'continuon-brain[torch]'). It rests while the robot works, is hot or low, and
begins only where every sensor for that is there or lora.allow_missing names it. Ctrl-C saves and ends; the same
command goes on from there, to the same bits.
"""

CHOICES = (
    *("base_model_path", "min_episodes", "max_episodes", "max_steps", "max_wall_time_s"),
    *("batch_size", "sequence_length", "lora_layers", "rank", "alpha", "learning_rate", "seed"),
    *("checkpoint_every", "evaluate_every", "patience"),
)
Run = Callable[[argparse.Namespace], int]


def add_lora_command(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `lora` and its own commands to the parser of `brain`."""
    summary = "Fine-tune a model with PyTorch adapters: train, ls, promote, rollback, merge."
    raw = argparse.RawDescriptionHelpFormatter
    added = commands.add_parser("lora", help=summary, description=summary, epilog=EXAMPLES, formatter_class=raw)
    parts = added.add_subparsers(dest="lora_command", required=True, metavar="command")

    def part(name: str, run: Run, summary: str) -> argparse.ArgumentParser:
        made = parts.add_parser(name, help=summary, description=summary, epilog=EXAMPLES, formatter_class=raw)
        made.set_defaults(run=run)
        made.add_argument("--data-dir", type=Path, help="where adapters/, checkpoints/ and models/ are")
        made.add_argument("--adapters-out-dir", type=Path, help="the runs' folders (default: <data-dir>/adapters)")
        return made

    _add_train(part("train", _train, "Train adapters and merge them into a checkpoint of their own."))
    listing = part("ls", _ls, "List the adapters: candidate, current or history.")
    listing.add_argument("--json", action="store_true", help="print the list as JSON")
    for name, run, what in (
        ("promote", promote, "Serve a run's merged model, if it is not worse on held-out episodes."),
        ("rollback", rollback, "Serve the model before the current adapters again."),
    ):
        made = part(name, run, what)
        made.add_argument("--url", help="the daemon that serves; without one no daemon may run on --data-dir")
        made.add_argument("--token-file", type=Path, help="a file that begins with a token of scope operate")
        if name == "promote":
            made.add_argument("run_id", metavar="RUN", help="as brain lora ls has it")
            made.add_argument(
                "--data-path", type=Path, help="without --url: dataset to judge it on (default: that of the run)"
            )
    merge = part("merge", _merge, "Merge a run's adapters into their base again, as a checkpoint to export.")
    merge.add_argument("run_id", metavar="RUN", help="as brain lora ls has it")
    merge.add_argument("--base-model-path", help="the base (default: where the run found it)")
    merge.add_argument("--checkpoint-dir", type=Path, help="default: <data-dir>/checkpoints/RUN")


def _add_train(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--run", dest="run_id", required=True, metavar="NAME", help="name of the run; the same one goes on")
    add("--rlds-dir", type=Path, required=True, help="dataset directory")
    add("--base-model-path", help="run or model, by path or id (default: the active model, else the newest run)")
    add("--min-episodes", type=int, help="fewest episodes to train on (default: 16)")
    add("--max-episodes", type=int, help="of more, the newest so many to imitate (default: 256)")
    add("--max-steps", type=int, help="optimiser steps at most (default: 500)")
    add("--max-wall-time-s", type=float, help="seconds of work at most (default: 300)")
    add("--batch-size", type=int, help="sequences a step (default: 32)")
    add("--sequence-length", type=int, help="time steps a sequence")
    add("--lora-layers", type=lambda text: tuple(text.split(",")), help="names or patterns, as in heads.*,drive")
    add("--rank", type=int, help="rank of an adapter")
    add("--alpha", type=float, help="an adapter is scaled by alpha / rank")
    add("--learning-rate", type=float, help="peak learning rate")
    add("--seed", type=int, help="of adapters, order and noise")
    add("--checkpoint-every", type=int, help="steps between two saves")
    add("--evaluate-every", type=int, help="steps between two looks at the held-out loss")
    add("--patience", type=int, help="looks without a better held-out loss before the run ends; 0: all steps")


def _train(options: argparse.Namespace) -> int:
    """Train as a job does, in this process."""
    from brain_service.datasets.dataset import open_dataset
    from brain_service.jobs.bases import find_base
    from brain_service.training.compile_cache import keep_compiled
    from brain_service.training.trainers import Assignment, PytorchTrainer

    settings = lora_settings(options)
    _require_name(options.run_id)
    choices = {name: value for name in CHOICES if (value := getattr(options, name)) is not None}
    trainer = PytorchTrainer()
    config = trainer.config(settings, choices)
    keep_compiled(settings.cache_dir)
    with progress_bar("fine-tuning") as report, stop_on_signals() as stopped:
        done = trainer.train(
            Assignment(
                dataset=open_dataset(options.rlds_dir).path,
                run_id=options.run_id,
                settings=settings,
                choices=choices,
                hooks=bar_hooks(report, stopped, config.max_steps, "brain lora train", "fine-tuning"),
                find_base=partial(find_base, settings),
                who="brain lora train",
            )
        )
    say_json(dict(done.result))
    message = done.summary if done.completed else f"{done.summary}; the same command goes on from there"
    sys.stderr.write(f"brain lora train: {message}\n")
    return 0


def _require_name(run_id: str) -> None:
    # It becomes a folder's name below three directories, and a RunId of the API.
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}", run_id):
        raise InvalidError(
            f"--run {run_id!r}: use letters, digits, - and _, at most 64, a letter or digit first", field="run"
        )


def _ls(options: argparse.Namespace) -> int:
    from brain_service.jobs.bases import active_adapters
    from brain_service.training.torch_lora.store import AdapterStore

    settings = lora_settings(options)
    found = AdapterStore(settings.adapters_dir).entries(active_adapters(settings))
    if options.json:
        say_json([each.to_json() for each in found])
        return 0
    rows = [("run", "place", "steps", "rank", "size", "sha256", "base")]
    for each in found:
        shown = (str(each.steps), str(each.rank), size_text(each.size_bytes), each.sha256[:12], each.base)
        rows.append((each.run, each.place, *(shown if not each.problem else ("", "", "", "", each.problem))))
    for line in table_lines(rows, right=("steps", "rank", "size")) if found else ["no adapters yet"]:
        say(line)
    return 0


def _merge(options: argparse.Namespace) -> int:
    from brain_service.jobs.bases import find_base
    from brain_service.training.torch_lora.require import require_torch
    from brain_service.training.torch_lora.store import AdapterStore

    settings = lora_settings(options)
    store = AdapterStore(settings.adapters_dir)
    document = store.document(options.run_id)
    require_torch()
    from brain_service.training.torch_lora.merge import merge_adapters

    base = find_base(settings, options.base_model_path or str(document.extra["base"]["source"]))
    folder = options.checkpoint_dir or settings.checkpoints_dir / options.run_id
    with store.hold(options.run_id):
        step = merge_adapters(store.path(options.run_id), base, folder)
    say_json({"checkpoint_dir": str(folder), "step": step, "adapters": document.provenance()})
    return 0
