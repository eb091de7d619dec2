"""What the daemon imports of this package loads no learning framework."""

import subprocess
import sys

import pytest

HEAVY = ("jax", "flax", "orbax", "optax", "tensorflow", "torch")


@pytest.mark.parametrize("module", ["table", "kinds", "params", "events", "runner", "loop", "stages", "worker"])
def test_importing_it_loads_no_learning_framework(module: str) -> None:
    program = (
        f"import sys, brain_service.jobs.{module}; print([name for name in {HEAVY!r} if name in sys.modules])"
    )
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"


def test_the_public_names_exist() -> None:
    import brain_service.jobs as package

    assert all(getattr(package, name) is not None for name in package.__all__)
