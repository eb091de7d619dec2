"""Ask PyTorch to compute something: `python -m brain_service.hardware.torch_probe` prints JSON.

Run as a child process only: the daemon never imports PyTorch. That it is installed proves little: a wheel for CUDA
imports its libraries first, and a build for another processor dies at its first instruction.
"""

import json
import os
import sys
from importlib import import_module
from typing import Any

__all__ = ["main"]

NICE = 10  # the robot's control path comes first


def main() -> int:
    """Print `{"version", "devices": [...]}` or `{"error"}` as the last line; returns the exit code."""
    os.nice(NICE)
    try:
        found = _compute()
    except ModuleNotFoundError as error:
        found = {"error": f"torch is not installed ({error}); pip install 'continuon-brain[torch]'"}
    except Exception as error:  # noqa: BLE001  (a library that does not load may raise anything; the parent tells it)
        found = {
            "error": f"torch is installed and does not work here: {type(error).__name__}: {error}; "
            "install PyTorch's build for this machine's CPU (docs/lora.md)"
        }
    print(json.dumps(found))  # noqa: T201
    return "error" in found


def _compute() -> dict[str, Any]:
    """Take the gradient of a sum of products, which is known: what training rests on, in miniature."""
    torch: Any = import_module("torch")  # typed so, since what checks the types need not have it
    identity = torch.eye(4, requires_grad=True)
    (identity @ identity).sum().backward()
    gradient = identity.grad.tolist() if identity.grad is not None else None
    if gradient != [[2.0] * 4] * 4:
        raise ArithmeticError(f"a gradient came out as {gradient} and should be 2 everywhere")
    return {"version": str(torch.__version__), "devices": ["cpu"]}


if __name__ == "__main__":
    sys.exit(main())
