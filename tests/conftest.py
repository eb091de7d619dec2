"""What every test gets: array shapes checked at run time, Hypothesis profiles, a running daemon on request."""

import atexit
import builtins
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import blockbuster  # noqa: F401  (imported first, for what is undone below)
import pytest
from hypothesis import settings as hypothesis_settings
from jaxtyping import install_import_hook

# Before anything of these packages is imported: their shape and dtype annotations are then checked at each call.
install_import_hook(
    ["brain_service.spec", "brain_service.model", "brain_service.datasets", "brain_service.training"],
    "beartype.beartype",
)

# Before JAX is imported: programs that one test has compiled serve all others, in whatever process they run. What
# starts the other test processes comes here first, and they inherit its choice.
if "BRAIN_CACHE_DIR" not in os.environ:
    os.environ["BRAIN_CACHE_DIR"] = tempfile.mkdtemp(prefix="brain-tests-")
    atexit.register(shutil.rmtree, os.environ["BRAIN_CACHE_DIR"], ignore_errors=True)
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(Path(os.environ["BRAIN_CACHE_DIR"]) / "xla")
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
# What a test compiles runs for moments, which never earns back what LLVM spends on it: two fifths of the time.
# `make demo` compiles as a user's daemon does.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")

# Beside another test that takes its core, a job that has what others leave stands still for minutes.
os.environ["BRAIN_JOBS__BACKGROUND"] = "false"

from tests.processes import Daemon, running_daemon  # noqa: E402

# forbiddenfruit, which BlockBuster patches with, replaces `dir` by one that fails on objects without a name, and
# Orbax then cannot save. To be removed when BlockBuster does without it.
builtins.dir = getattr(dir, "__wrapped__", dir)

# A timing out of the machine's mood is no failure: laws are about values.
hypothesis_settings.register_profile("default", deadline=None, max_examples=60)
hypothesis_settings.register_profile("thorough", deadline=None, max_examples=1000)
hypothesis_settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    """A daemon in a process of its own, on an empty data directory."""
    with running_daemon(tmp_path / "brain") as running:
        yield running
