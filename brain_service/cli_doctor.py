"""`brain doctor`: looks at the machine without a daemon, and prints for each finding the command that mends it."""

import argparse
import importlib.metadata
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from brain_service.cli_health import EXIT_CODES, check_lines
from brain_service.errors import ConfigError
from brain_service.terminal import say, say_json

if TYPE_CHECKING:
    from brain_service.health.doctor import Machine
    from brain_service.settings import Settings

__all__ = ["add_doctor_command"]

EXAMPLES = """\
exit code: 0 all is well, 1 a warning, 2 something is broken

examples:
  sudo brain doctor
  brain doctor --data-dir ./brain --json
"""
PACKAGE = "continuon-brain"


def add_doctor_command(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `doctor` to the parser of `brain`."""
    summary = "Look at this machine, with or without a running daemon, and print how to mend what is not well."
    raw = argparse.RawDescriptionHelpFormatter
    added = commands.add_parser("doctor", help=summary, description=summary, epilog=EXAMPLES, formatter_class=raw)
    added.set_defaults(run=_doctor)
    added.add_argument("--data-dir", type=Path, help="(default: the installed unit's, else the setting)")
    added.add_argument("--tokens-file", type=Path, help="(default: as of the daemon)")
    added.add_argument("--host", help="(default: as of the daemon)")
    added.add_argument("--port", type=int, help="(default: as of the daemon)")
    added.add_argument("--config", type=Path, help="settings file (default: brain.toml)")
    added.add_argument("--json", action="store_true", help="print JSON")
    added.add_argument("--root", type=Path, default=Path("/"), help=argparse.SUPPRESS)


def _doctor(options: argparse.Namespace) -> int:
    from brain_service.health.check import Check, overall
    from brain_service.health.doctor import examine

    checks: dict[str, Check] = {}
    try:
        machine = _machine(options, {"config": options.config})
    except ConfigError as error:
        checks["settings"] = Check(
            "fail", None, "", error.detail, fix="correct it; the rest is examined with defaults"
        )
        machine = _machine(options, None)
    else:
        checks["settings"] = Check("pass", "valid", "")
    checks |= examine(machine)
    status = overall(checks)
    if options.json:
        say_json({"status": status, "checks": {name: [check.to_json()] for name, check in checks.items()}})
    else:
        for line in check_lines((name, check.to_json()) for name, check in checks.items()):
            say(line)
    return EXIT_CODES[status]


def _machine(options: argparse.Namespace, source: "dict[str, Path | None] | None") -> "Machine":
    """Return this machine; without a `source`, with default settings.

    Raises:
        ConfigError: the settings are wrong.
    """
    from brain_service.hardware.clock import kernel_synchronised
    from brain_service.hardware.throttling import vcgencmd_word
    from brain_service.health.doctor import Machine
    from brain_service.settings import Settings

    root: Path = options.root
    real = root == Path("/")
    names = ("data_dir", "tokens_file", "host", "port")
    given = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    bare = Machine(root, Settings())
    settings = Settings(**given) if source is None else _settings(bare, given, source["config"])
    return Machine(
        root,
        settings,
        python=sys.version_info[:3],
        requirements=tuple(_requirements()),
        version_of=_version_of,
        units=Path(__file__).parent.parent / "systemd",
        kernel_clock=kernel_synchronised() if real else None,
        throttled=vcgencmd_word if real else lambda: None,
        now_s=time.time(),
        uid=os.getuid(),
    )


def _settings(machine: "Machine", given: dict[str, object], config: Path | None) -> "Settings":
    """Return the settings that the installed daemon has: its unit's environment below this process's own."""
    from brain_service.health.doctor.machine import unit_values
    from brain_service.settings import child_environment, load_settings

    environment: dict[str, str] = {}
    if machine.unit is not None:
        for line in unit_values(machine.unit, "Environment"):
            for word in line.split():
                name, _, value = word.strip('"').partition("=")
                environment[name] = value
    return load_settings(given, config=config, environ=environment | child_environment({}))


def _requirements() -> list[str]:
    try:
        return importlib.metadata.requires(PACKAGE) or []
    except importlib.metadata.PackageNotFoundError:
        return []


def _version_of(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
