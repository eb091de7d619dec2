"""The package: light to import, its example runs, its errors are one tree."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import brain_service.client
from brain_service.client import ClientError, ProblemError, errors
from tests.processes import Daemon

DOCS = Path(__file__).parents[2] / "docs" / "client.md"
HEAVY = {"fastapi", "starlette", "uvicorn", "uvloop", "orjson", "pydantic", "jax", "flax", "tensorflow", "torch"}


def test_importing_it_brings_neither_the_daemon_nor_a_framework() -> None:
    program = "import sys, brain_service.client; print(*sorted({name.split('.')[0] for name in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert loaded & HEAVY == set()
    assert {"numpy", "httpx", "msgspec", "websockets"} <= loaded
    program = (
        "import sys, brain_service.client; print(*sorted(n for n in sys.modules if n.startswith('brain_service')))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    others = {name for name in done.stdout.split() if not name.startswith("brain_service.client")}
    assert others == {"brain_service", "brain_service.durable", "brain_service.lazy"}


def test_the_example_is_short_and_runs(shared_daemon: Daemon) -> None:
    example, _ = re.findall(r"^```python\n(.*?)^```$", DOCS.read_text(), re.MULTILINE | re.DOTALL)
    assert len(example.strip().splitlines()) <= 20
    program = example.replace("http://127.0.0.1:8080", shared_daemon.url)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "100 steps" in done.stdout


ALL = [getattr(errors, name) for name in errors.__all__ if name.endswith("Error")]


@pytest.mark.parametrize("kind", ALL)
def test_every_error_is_public_and_stands_in_the_drawn_tree(kind: type[ClientError]) -> None:
    assert issubclass(kind, ClientError)
    assert kind.__name__ in brain_service.client.__all__
    assert re.search(rf"\b{kind.__name__}\b", errors.__doc__ or "")


def test_a_status_that_nobody_foresaw_is_still_a_problem() -> None:
    error = errors.problem_error({"status": 418, "title": "Teapot", "detail": "short and stout", "next_step": 3})
    assert type(error) is ProblemError
    assert (error.status, error.next_step, error.field) == (418, 3, None)
    assert "short and stout" in str(error)
