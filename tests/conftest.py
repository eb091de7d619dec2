"""What every test gets: array shapes checked at run time, Hypothesis profiles, a running daemon on request."""

import builtins
import os
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
