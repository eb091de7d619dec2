"""Whether torch can be had, asked in interpreters of their own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import brain_service

ASK = """
from brain_service.errors import UnavailableError
from brain_service.training.torch_lora import require_torch
try:
    print("torch", require_torch().__version__)
except UnavailableError as error:
    print("unavailable:", error.detail)
"""
CUDA = """
import ctypes
ctypes.CDLL("libcudart-of-no-machine.so.12", mode=ctypes.RTLD_GLOBAL)
"""
NEXT_STEP = "pip install 'continuon-brain[torch]'"


def ask(*first_on_path: Path, isolated: bool = False) -> str:
    """Return what an interpreter says; an isolated one has no package but what is on this path."""
    source = Path(brain_service.__file__).parents[1]
    path = os.pathsep.join(str(folder) for folder in (*first_on_path, source))
    done = subprocess.run(
        # Without `site` there are no installed packages at all.
        [sys.executable, *(["-S"] if isolated else []), "-c", ASK],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def fake(folder: Path, code: str) -> Path:
    """Return a folder with a package `torch` that runs this code."""
    (folder / "torch").mkdir()
    (folder / "torch/__init__.py").write_text(code)
    return folder


def test_the_torch_that_is_here_is_taken() -> None:
    import torch

    assert ask() == f"torch {torch.__version__}"


def test_an_interpreter_without_torch_is_told_how_to_get_it() -> None:
    said = ask(isolated=True)
    assert said.startswith("unavailable: torch is not installed;")
    assert NEXT_STEP in said and "or train with trainer 'jax'" in said


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (CUDA, "does not load: libcudart-of-no-machine.so.12"),
        ("raise ImportError('libcublas.so.12: cannot open shared object file')", "does not load: libcublas.so.12"),
        (
            "raise ValueError('libcublas.so.*[0-9] not found in the system path [...]')",
            "does not load: libcublas.so",
        ),
        ("import triton_that_is_not_here", "does not load: it needs triton_that_is_not_here"),
    ],
)
def test_a_torch_that_does_not_load_is_told_apart_from_none(tmp_path: Path, code: str, reason: str) -> None:
    said = ask(fake(tmp_path, code))
    assert said.startswith("unavailable: torch is installed but ") and reason in said
    assert NEXT_STEP in said


@pytest.mark.parametrize("version", ["2.3.1+cu121", "1.13.1", "odd"])
def test_a_torch_that_is_too_old_is_refused(tmp_path: Path, version: str) -> None:
    said = ask(fake(tmp_path, f"__version__ = {version!r}"))
    assert f"unavailable: torch is of version {version}, at least 2.4 is needed" in said
    assert NEXT_STEP in said


def test_a_newer_torch_is_taken(tmp_path: Path) -> None:
    assert ask(fake(tmp_path, "__version__ = '10.0.1+cpu'")) == "torch 10.0.1+cpu"
