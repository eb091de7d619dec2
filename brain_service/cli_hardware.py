"""`brain hardware`: what this machine can train and act with."""

import argparse
from typing import Any

from brain_service.terminal import say, say_json, table_lines

__all__ = ["add_hardware_command"]


def add_hardware_command(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `hardware` to the parser of `brain`."""
    summary = "Tell what this machine can train and act with, and why not with the rest."
    added = commands.add_parser("hardware", help=summary, description=summary)
    added.set_defaults(run=_hardware)
    added.add_argument("--json", action="store_true", help="print JSON")


def _hardware(options: argparse.Namespace) -> int:
    from brain_service.hardware.detection import Machine, detect_jax_backends
    from brain_service.hardware.trainers import describe_trainers
    from brain_service.settings import load_settings

    settings = load_settings()
    trainers = describe_trainers(settings.learning.prefer_jax, machine=Machine(cache_dir=settings.cache_dir))
    found = detect_jax_backends(cache_dir=settings.cache_dir) | {"trainers": trainers}
    if options.json:
        say_json(found)
        return 0
    rows = [row for item in found["backends"].items() for row in _rows(*item)]
    for line in table_lines([("device", "usable", "devices or reason"), *rows]):
        say(line)
    say()
    say(f"best for training: {found['best_for_training'] or 'none'}")
    say(f"best for inference: {found['best_for_inference'] or 'none'}")
    say(f"trainer: {trainers['trainer'] or 'none'}: {trainers['reason']}")
    for option in trainers["alternatives"]:
        say(f"  {'or' if option['available'] else 'not'} {option['trainer']}: {option['reason']}")
    return 0


def _rows(device: str, entry: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Return a line for each device, or for each thing that it lacks."""
    usable = "yes" if entry["available"] else "no"
    told = entry["devices"] if entry["available"] else str(entry["reason"]).split("; ")
    return [(device, usable, line) if at == 0 else ("", "", line) for at, line in enumerate(told)]
