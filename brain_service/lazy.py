"""Public names of a package, imported on first use (PEP 562).

The daemon imports `brain_service.export.bundle` and must not pull in JAX with the rest of `export`; a robot
controller imports `EpisodeLogger` and must not pull in FastAPI.
"""

import importlib
from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["lazy_names"]


def lazy_names(package: str, modules: Mapping[str, str]) -> Callable[[str], Any]:
    """Return a module `__getattr__` that imports `{public name: module below the package}` on first use.

    Raises:
        AttributeError: from the returned function, for every other name, as a module does.
    """

    def find(name: str) -> Any:
        if name not in modules:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(importlib.import_module(f"{package}.{modules[name]}"), name)

    return find
