"""A robot's process that kills itself at the k-th step of what it does for a run: `python -m tests.cloud.killing`.

A step is each transaction, each request to the services, each start of a process on this machine, counted once
before and once after. One interpreter forks a process for each k, so that hundreds of kills cost seconds.
"""

import argparse
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from brain_service.cloud.launchers import Launcher
from brain_service.cloud.launchers.local import LocalLauncher
from brain_service.cloud.launchers.queued_resource import QueuedResourceLauncher
from brain_service.cloud.launchers.vertex import VertexLauncher
from brain_service.cloud.rest import RestClient
from brain_service.cloud.run_table import RunTable
from brain_service.cloud.runs import CloudRuns, RunView
from tests.cloud.launching import cloud_settings, heartbeat, request
from tests.fakes.control_plane import ControlPlane

SLEEPER = "import signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: sys.exit(75)); time.sleep(300)"
PATIENCE_S = 30.0


class Killer:
    """Counts steps, and sends SIGKILL at the one it was made for; 0 for none."""

    def __init__(self, at: int) -> None:
        self._at = at
        self._seen = 0

    def around(self, owner: Any, name: str) -> None:
        """Count before and after each call of a method."""
        whole = getattr(owner, name)

        def counted(*args: Any, **kwargs: Any) -> Any:
            self._step()
            try:
                return whole(*args, **kwargs)
            finally:
                self._step()

        setattr(owner, name, counted)

    def _step(self) -> None:
        self._seen += 1
        if self._seen == self._at:
            os.kill(os.getpid(), signal.SIGKILL)


def forked(work: Callable[[], None]) -> bool:
    """Do something in a process of its own; True if it came to its end, False if it was killed."""
    child = os.fork()
    if child == 0:
        try:
            work()
        except BaseException as error:  # noqa: BLE001 - told by the exit code
            print(repr(error), file=sys.stderr)
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return False
    assert os.waitstatus_to_exitcode(status) == 0, "the robot's process failed"
    return True


class Scene:
    """One run of one robot, in a folder of its own."""

    def __init__(self, target: str, url: str, folder: Path, run_id: str, settle_s: float) -> None:
        self.target, self.url, self.folder, self.run_id, self.settle_s = target, url, folder, run_id, settle_s
        folder.mkdir(parents=True)

    def runs(self) -> CloudRuns:
        """Return the robot's runs as after a start."""
        settings = cloud_settings(self.url, robot="killed")
        launchers: dict[str, Launcher] = {
            "vertex": VertexLauncher(settings, settle_s=self.settle_s),
            "queued_resource": QueuedResourceLauncher(settings),
            "process": LocalLauncher(self.folder / "runs", command=(sys.executable, "-c", SLEEPER), grace_s=5),
        }
        return CloudRuns(self.folder / "brain.db", settings, launchers)

    def go_on(self, until: Callable[[RunView], bool], killed_at: int = 0) -> None:
        """Begin, where that is still to be done, and look until something is so."""
        killer = Killer(killed_at)
        killer.around(RestClient, "_once")
        killer.around(RunTable, "change")
        killer.around(RunTable, "add")
        killer.around(subprocess, "run")
        runs = self.runs()
        runs.begin(request(self.target, self.run_id, output_dir=str(self.folder / "out")))
        give_up = time.monotonic() + PATIENCE_S
        while not until(view := runs.advance(self.run_id)):
            assert time.monotonic() < give_up, view
            time.sleep(0.02)

    def finish(self) -> None:
        """Let the run be done, and its capacity go."""
        heartbeat(self.folder / "out", self.run_id, phase="done", attempt=9, model_id="m")
        self.go_on(lambda view: view.state == "done")

    def reap(self) -> None:
        """End whatever is left."""
        self.runs().reap()


def main() -> None:
    """Kill at every step, and print `{"points": n}`; anything unexpected is an exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--target", required=True)
    parser.add_argument("--scenario", choices=["begin", "retry"], required=True)
    parser.add_argument("--url", required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--every", type=int, default=1, help="kill at each n-th step only")
    options = parser.parse_args()
    plane = ControlPlane(options.folder)
    plane.url = options.url
    runs = 0
    for point in itertools.count(1, options.every):
        runs += 1
        run_id = f"{options.scenario}-{point}"
        scene = Scene(options.target, options.url, options.folder / run_id, run_id, settle_s=0.2)
        wanted = 1
        if options.scenario == "retry":
            wanted = 2
            assert forked(partial(scene.go_on, _runs_as(1)))
            _interrupt(scene, plane)
        whole = forked(partial(scene.go_on, _runs_as(wanted), killed_at=point))
        assert forked(partial(scene.go_on, _runs_as(wanted)))
        _expect(scene, plane, created=wanted)
        assert forked(scene.finish)
        assert forked(scene.reap)
        _expect(scene, plane, created=wanted)
        if whole:
            break
    print(json.dumps({"points": runs}))


def _runs_as(attempt: int) -> Callable[[RunView], bool]:
    return lambda view: view.state == "running" and view.attempt == attempt


def _interrupt(scene: Scene, plane: ControlPlane) -> None:
    if scene.target == "process":
        LocalLauncher(scene.folder / "runs", grace_s=5).stop(f"process:{scene.run_id}/1")
    else:
        (mine,) = [one for one in plane.report()["resources"] if one["phase"] == "running"]
        plane.preempt(mine["name"])


def _expect(scene: Scene, plane: ControlPlane, created: int) -> None:
    if scene.target == "process":
        found = [place for place in (scene.folder / "runs" / scene.run_id).iterdir() if (place / "lock").exists()]
    else:
        found = [one for one in plane.report()["resources"] if one["labels"].get("continuon-run") == scene.run_id]
    assert len(found) == created, f"{scene.run_id}: {found}"


if __name__ == "__main__":
    main()
