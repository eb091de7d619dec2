"""Probes of the interpreter and of what is installed for it."""

import re

from brain_service.health.check import Check
from brain_service.health.doctor.machine import Machine

__all__ = ["packages_probe", "python_probe", "speed_probe"]

OLDEST_PYTHON = (3, 11)
_INSTALL = "python -m pip install --upgrade"


def python_probe(machine: Machine) -> Check:
    """The interpreter's version."""
    found = ".".join(map(str, machine.python))
    oldest = ".".join(map(str, OLDEST_PYTHON))
    if machine.python[:2] < OLDEST_PYTHON:
        reason = f"Python {found} is too old"
        return Check("fail", found, "", reason, oldest, "sudo apt install python3.11 python3.11-venv")
    return Check("pass", found, "", limit=oldest)


def packages_probe(machine: Machine) -> Check:
    """Every requirement of the program against what is installed."""
    wrong = []
    checked = 0
    for requirement in machine.requirements:
        if ";" in requirement:
            continue  # of an extra, or of another machine
        match = re.match(r"([A-Za-z0-9._-]+)(?:\[[^]]*\])?\s*(?:>=\s*([0-9.]+))?", requirement)
        if match is None:
            continue
        checked += 1
        name, least = match[1], match[2]
        found = machine.version_of(name)
        if found is None:
            wrong.append(f"{name} is missing")
        elif least is not None and _numbers(found) < _numbers(least):
            wrong.append(f"{name} {found} is older than {least}")
    if wrong:
        names = " ".join(problem.split()[0] for problem in wrong)
        return Check("fail", checked - len(wrong), "packages", "; ".join(wrong), checked, f"{_INSTALL} {names}")
    return Check("pass", checked, "packages", limit=checked)


def speed_probe(machine: Machine) -> Check:
    """The parts in C that the hot paths need: without httptools a request costs four times as much."""
    missing = [name for name in ("httptools", "uvloop", "orjson", "msgspec") if machine.version_of(name) is None]
    if missing:
        reason = f"without {', '.join(missing)} every request is several times slower"
        return Check("fail", "slow", "", reason, "fast", f"{_INSTALL} {' '.join(missing)}")
    return Check("pass", "fast", "", limit="fast")


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:4])
