"""A Hailo for tests: the stand-in in each of its versions, or the real thing where there is one."""

import contextlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from brain_service.export.bundle import Bundle
from brain_service.inference.arena import Layout
from brain_service.inference.backends.hailo import HailoPolicy, load
from tests.export.hailo_toy import FAKES
from tests.inference.toy import Floats

PROFILES = ("4.20", "4.23", "5.2")


@dataclass(frozen=True)
class Chip:
    """The stand-in's device as a test handles it."""

    profile: str
    folder: Path

    @property
    def is_old_line(self) -> bool:
        return self.profile.startswith("4.")

    def set(self, **faults: Any) -> None:
        """Put these faults in the place of those before."""
        fresh = self.folder / "faults.json.set"
        fresh.write_text(json.dumps(faults))
        fresh.replace(self.folder / "faults.json")

    @property
    def crimes(self) -> str:
        """What would have crashed HailoRT or harmed the device."""
        path = self.folder / "crimes"
        return path.read_text() if path.exists() else ""


def plug_in(profile: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Chip:
    """Make `import hailo_platform` find the stand-in, here and in child processes, behaving as `profile`."""
    folder.mkdir(parents=True, exist_ok=True)
    monkeypatch.syspath_prepend(str(FAKES))
    before = os.environ.get("PYTHONPATH")
    monkeypatch.setenv("PYTHONPATH", f"{FAKES}{os.pathsep}{before}" if before else str(FAKES))
    monkeypatch.setenv("HAILO_FAKE_PROFILE", profile)
    monkeypatch.setenv("HAILO_FAKE_DIR", str(folder))
    return Chip(profile, folder)


@contextlib.contextmanager
def opened(bundle: Bundle) -> Any:
    """The bundle's policy on the device; closed at the end."""
    policy = load(bundle, Layout.of(bundle.manifest), Path("/nonexistent"))
    try:
        yield policy
    finally:
        policy.close()


@dataclass
class Driver:
    """Runs a policy over a bundle's golden sequence, its state fed back."""

    policy: HailoPolicy
    bundle: Bundle

    def __post_init__(self) -> None:
        layout = Layout.of(self.bundle.manifest)
        self.golden = self.bundle.golden()
        self.carry = np.zeros((1, layout.carry_size), np.float32)
        self.response = np.zeros((1, layout.response_size), np.float32)
        self.t = 0

    def step(self) -> tuple[Floats, Floats]:
        """Run the next step; return the actions [H, A] and what they should be."""
        golden, t = self.golden, self.t
        request = np.concatenate(
            [
                golden.observation[t],
                golden.previous_action[t],
                [golden.previous_reward[t], golden.is_first[t]],
            ]
        ).astype(np.float32)
        fresh = np.full_like(self.carry, np.nan)
        self.policy.run(self.carry, request[None], fresh, self.response)
        self.carry = fresh
        self.t += 1
        return self.response.reshape(golden.action[t].shape).copy(), golden.action[t]

    def worst(self, steps: int | None = None) -> float:
        """Run to the end, or so many steps; return the largest difference as a share of the action range."""
        manifest = self.bundle.manifest
        span = np.asarray(manifest.action_high) - np.asarray(manifest.action_low)
        found = [self.step() for _ in range(steps or len(self.golden.action) - self.t)]
        return max(float((np.abs(action - expected) / span).max()) for action, expected in found)
