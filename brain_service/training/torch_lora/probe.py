"""Have PyTorch compute something: `python -m brain_service.training.torch_lora.probe` prints JSON.

Run as a child process only (`hardware.trainers` starts it by its name): the daemon never imports PyTorch. That it
is installed proves little: a wheel for CUDA imports its libraries first, and a build for another processor dies at
its first instruction.
"""

import json
import os
import sys
from typing import Any

from brain_service.errors import UnavailableError
from brain_service.processes import die_with_parent
from brain_service.training.torch_lora.require import require_torch

__all__ = ["main"]

NICE = 10  # the robot's control path comes first


def main() -> int:
    """Print `{"version", "devices": [...]}` or `{"error"}` as the last line; returns the exit code."""
    die_with_parent(os.getppid())  # a library that hangs as it loads would otherwise outlive a killed daemon
    os.nice(NICE)
    try:
        found = _compute()
    except UnavailableError as error:
        found = {"error": error.detail}
    except Exception as error:  # noqa: BLE001  (a library that half works may raise anything; the parent tells it)
        found = {
            "error": f"torch is installed and does not compute here: {type(error).__name__}: {error}; install "
            "PyTorch's build for this machine's CPU (docs/lora.md), or train with trainer 'jax'"
        }
    print(json.dumps(found))  # noqa: T201
    return "error" in found


def _compute() -> dict[str, Any]:
    """Take the gradient of a sum of products, which is known: what training rests on, in miniature."""
    torch: Any = require_torch()
    identity = torch.eye(4, requires_grad=True)
    (identity @ identity).sum().backward()
    gradient = identity.grad.tolist() if identity.grad is not None else None
    if gradient != [[2.0] * 4] * 4:
        raise ArithmeticError(f"a gradient came out as {gradient} and should be 2 everywhere")
    return {"version": str(torch.__version__), "devices": ["cpu"]}


if __name__ == "__main__":
    sys.exit(main())
