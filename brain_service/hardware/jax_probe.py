"""Ask JAX for its devices: `JAX_PLATFORMS=cuda python -m brain_service.hardware.jax_probe` prints JSON.

Run as a child process only: the daemon never imports JAX, and a driver that hangs or crashes takes only this down.
"""

import json
import os
import sys
from typing import Any

from brain_service.processes import die_with_parent

__all__ = ["main"]

NICE = 10  # the robot's control path comes first


def main() -> int:
    """Print `{"version", "devices": [...]}` or `{"error"}` as the last line; returns the exit code."""
    die_with_parent(os.getppid())  # a library that hangs as it loads would otherwise outlive a killed daemon
    os.nice(NICE)
    try:
        import jax

        found: dict[str, Any] = {
            "version": jax.__version__,
            "devices": [f"{device.device_kind} {device.id}" for device in jax.devices()],
        }
    except Exception as error:  # noqa: BLE001  (a driver's error may be of any type; the parent gets its text)
        platform = os.environ.get("JAX_PLATFORMS")
        found = {"error": f"jax finds no device of platform {platform!r}: {type(error).__name__} {error}".rstrip()}
    print(json.dumps(found))  # noqa: T201
    return "error" in found


if __name__ == "__main__":
    sys.exit(main())
