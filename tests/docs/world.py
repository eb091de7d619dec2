"""Where documents are run: a home without anything in it, or one in which a robot has lived for a while."""

import os
import shutil
import stat
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from brain_service import EpisodeLogger
from tests.docs.markdown import PROJECT
from tests.docs.shell import Shell

__all__ = ["World", "empty_world", "lived_world"]

_SCRIPTS = {"brain": "brain_service.cli", "cloud-trainer": "cloud_trainer.cli"}
_DATA_DIR = ".local/share/continuon-brain"


@dataclass(frozen=True)
class World:
    """A home and the folder in which a reader types; `programs` comes first on the path."""

    root: Path

    @property
    def home(self) -> Path:
        """What `~` is."""
        return self.root / "home"

    @property
    def folder(self) -> Path:
        """Where commands begin."""
        return self.root / "work"

    def environment(self) -> dict[str, str]:
        """Return the whole environment of its commands."""
        kept = ("BRAIN_CACHE_DIR", "JAX_COMPILATION_CACHE_DIR", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS")
        return {
            **{name: os.environ[name] for name in kept},
            "PATH": f"{self.root / 'bin'}:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin",
            "PYTHONPATH": str(PROJECT),
            "HOME": str(self.home),
            "LANG": "C.UTF-8",
            "HAILO_COMPILER": str(self.root / "hailo"),
        }

    def shell(self, **options: bool) -> Shell:
        """Start a shell in it."""
        return Shell(self.folder, self.environment(), scripts=self.root / "commands", **options)

    def copy(self, root: Path) -> "World":
        """Return the same world elsewhere: what is done there stays there."""
        shutil.copytree(self.root, root, symlinks=True)
        return World(root)


def empty_world(root: Path) -> World:
    """Make a world with the project's programs and nothing else."""
    world = World(root)
    for folder in (world.home, world.folder, root / "bin", root / "hailo"):
        folder.mkdir(parents=True)
    for name, module in _SCRIPTS.items():
        # As pip writes them: the current folder is not on the path of a program.
        text = f"#!{sys.executable}\nimport sys\nfrom {module} import main\nsys.exit(main())"
        _program(root / "bin" / name, text)
    _program(root / "bin" / "python", f'#!/bin/sh\nexec {sys.executable} "$@"')
    _program(root / "hailo" / "hailo", f'#!/bin/sh\nexec {sys.executable} -m tests.fakes.hailo_compiler "$@"')
    # curl says by its exit code what a reader sees in the answer.
    _program(
        root / "bin" / "curl", f'#!/bin/sh\nexec {shutil.which("curl")} --fail-with-body --max-time 900 -sS "$@"'
    )
    return world


def lived_world(root: Path, run: Callable[[Shell, str], None]) -> World:
    """Make a world with recordings, a dataset, a checkpoint and a model that serves; `run` checks each command.

    They lie in the daemon's own place, `~/.local/share/continuon-brain`, which is also `./brain` and `~/brain`;
    and, as commands by hand leave them, in `./episodes`, `./datasets`, `./checkpoints/run1` and `./models`.
    """
    world = empty_world(root)
    data_dir = world.home / _DATA_DIR
    _record(data_dir / "episodes")
    (world.folder / "brain").symlink_to(Path("../home") / _DATA_DIR)
    (world.home / "brain").symlink_to(_DATA_DIR)
    with world.shell() as shell:
        run(shell, "cp -r brain/episodes episodes")
        run(shell, "brain convert --input-dir episodes --output-dir datasets")
        run(shell, "brain train --data-path datasets --checkpoint-dir checkpoints/run1 --steps 4")
        run(shell, "brain export --checkpoint-dir checkpoints/run1 --output-dir models")
        run(shell, "cp -r datasets checkpoints models brain/")
        run(shell, "ln -s $(ls models) brain/models/active")
    return world


def _record(folder: Path, episodes: int = 30, steps: int = 60) -> None:
    """Record episodes of a robot with two numbers of state and one of command, 20 ms a step."""
    with EpisodeLogger(folder) as logger:
        for episode in range(episodes):
            logger.start_episode(environment_id="pi5-dev", xr_mode="trainer", tags=["demo"])
            for step in range(steps):
                state = [0.01 * (step + episode), -0.02 * step]
                at_ns = (1_000 * episode + step) * 20_000_000
                logger.log_step(
                    {"state": state}, {"command": [state[0] / 2 + 0.1 * state[1]]}, reward=0.5, timestamp_ns=at_ns
                )
            logger.end_episode("terminated")


def _program(path: Path, text: str) -> None:
    path.write_text(f"{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
