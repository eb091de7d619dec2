"""The virtual environment of Apache Beam and KFP, which `make fleet` makes inside the tests' own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

PYTHON = Path(os.environ.get("FLEET_PYTHON", Path(sys.prefix) / "fleet" / "bin" / "python"))

needs_fleet = pytest.mark.skipif(not PYTHON.exists(), reason=f"no Apache Beam and KFP at {PYTHON}: make fleet")


def run_there(*arguments: str, code: int = 0) -> str:
    """Run `cloud-trainer` there and return what it printed: the result, or its one line of error."""
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [PYTHON, "-m", "cloud_trainer", *arguments],
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == code, done.stderr[-3000:]
    return done.stdout if code == 0 else done.stderr
