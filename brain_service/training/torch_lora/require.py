"""Can torch be had here? Found out by importing it, never by the package's presence alone."""

import importlib
import re
from types import ModuleType

from brain_service.errors import UnavailableError

__all__ = ["OLDEST", "require_torch"]

OLDEST = (2, 4)
"""First torch that was built for NumPy 2, which this package uses."""

INSTALL = (
    "install the CPU build with `pip install 'continuon-brain[torch]' --extra-index-url "
    "https://download.pytorch.org/whl/cpu`, or train with trainer 'jax'"
)


def require_torch() -> ModuleType:
    """Import torch and return it.

    Raises:
        UnavailableError: it is not installed, does not load (a wheel for CUDA without CUDA's libraries), or is too
            old; the message says what to do.
    """
    try:
        torch = importlib.import_module("torch")
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise UnavailableError(
                f"torch is installed but does not load: it needs {error.name}, which is not; {INSTALL}"
            ) from error
        raise UnavailableError(f"torch is not installed; {INSTALL}") from error
    except (ImportError, OSError, ValueError) as error:
        # ValueError is what torch raises where it looked for a CUDA library on sys.path in vain.
        raise UnavailableError(
            f"torch is installed but does not load: {_first_line(error)}; a build for CUDA needs libraries that "
            f"are not here: uninstall it and {INSTALL}"
        ) from error
    version = str(getattr(torch, "__version__", "unknown"))
    numbers = re.match(r"(\d+)\.(\d+)", version)
    if numbers is None or (int(numbers[1]), int(numbers[2])) < OLDEST:
        raise UnavailableError(
            f"torch is of version {version}, at least {OLDEST[0]}.{OLDEST[1]} is needed; uninstall it and "
            f"{INSTALL}"
        )
    return torch


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
