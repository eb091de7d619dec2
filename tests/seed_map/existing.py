"""Whether what the map names exists: looked up in the product itself, never in a list of ours."""

import asyncio
import importlib
import inspect
import re
import tempfile
import tomllib
from functools import cache
from pathlib import Path
from typing import Any

from brain_service.api.app import create_app
from brain_service.api.services import open_services
from brain_service.settings import Settings, load_settings
from tests.docs.parsing import PROGRAMS, WrongCommandError, parse
from tests.seed_map.table import ROOT


def problem(name: str) -> str | None:
    """Return what is wrong with a name that the map sets as code, None if what it names exists."""
    if (words := _command(name)) is not None:
        return _command_problem(words)
    if re.fullmatch(r"(GET|POST|PUT|DELETE) /\S*", name):
        method, path = name.split()
        return None if method.lower() in _paths().get(path, {}) else f"{name} is not in the OpenAPI document"
    if re.fullmatch(r"brain_service(\.\w+)+", name):
        return None if symbol(name) is not None else f"{name} cannot be imported"
    if re.fullmatch(r"continuon-brain(\[\w+\])?", name):
        extra = name.removeprefix("continuon-brain").strip("[]")
        return None if not extra or extra in project()["optional-dependencies"] else f"there is no extra {extra}"
    if (ROOT / name).exists() or _is_setting(name):
        return None
    return f"{name} is no file here, no setting, and nothing else that is known"


def looks_checkable(name: str) -> bool:
    """Whether a name in running text claims something of ours: a command, a symbol, a setting of a group."""
    return bool(re.match(r"(brain|cloud-trainer|python -m cloud_trainer) \w|brain_service[./]|learning\.", name))


def takes(name: str, argument: str) -> bool:
    """Tell whether a command or function of ours takes a flag or keyword argument."""
    if argument.endswith("="):
        found = symbol(name)
        # A class takes what its constructor takes.
        return found is not None and argument[:-1] in inspect.signature(found).parameters
    words = _command(name)
    return words is not None and _command_problem([*words, argument]) is None


def _command(name: str) -> list[str] | None:
    """Return the words of a command of ours, None if the name is none."""
    words = name.replace("python -m cloud_trainer", "cloud-trainer train").split()
    return words if words[0] in PROGRAMS else None


def symbol(name: str) -> Any:
    """Return what a dotted name stands for, None if it stands for nothing."""
    words = name.split(".")
    for count in range(len(words), 0, -1):
        try:
            found: Any = importlib.import_module(".".join(words[:count]))
        except ModuleNotFoundError:
            continue
        for word in words[count:]:
            found = getattr(found, word, None)
        return found
    return None


@cache
def project() -> dict[str, Any]:
    """Return the project's table of pyproject.toml."""
    found: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return found


def _command_problem(words: list[str]) -> str | None:
    """Return what the program's own parser says against a command and some of its flags."""
    try:
        parse(words, mention=True)
    except WrongCommandError as error:
        return str(error)
    return None


@cache
def _paths() -> dict[str, dict[str, Any]]:
    async def ask(settings: Settings) -> dict[str, dict[str, Any]]:
        async with open_services(settings) as services:
            found: dict[str, dict[str, Any]] = create_app(services).openapi()["paths"]
            return found

    with tempfile.TemporaryDirectory() as folder:
        return asyncio.run(ask(load_settings({"data_dir": Path(folder)}, environ={})))


def _is_setting(name: str) -> bool:
    fields: Any = Settings.model_fields
    for word in name.split("."):
        if word not in fields:
            return False
        fields = getattr(fields[word].annotation, "model_fields", {})
    return True
