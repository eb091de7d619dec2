"""A probe of a library that hangs ends with its daemon, however that ends."""

import os
import subprocess
import sys
from pathlib import Path

import psutil

from tests.jobs.running import gone, wait_until

HANGS = "import os, pathlib, time; pathlib.Path(os.environ['TOLD']).write_text(str(os.getpid())); time.sleep(3600)"
ASKS = "import subprocess, sys; subprocess.run([sys.executable, '-m', 'brain_service.training.torch_lora.probe'])"


def test_a_probe_that_hangs_does_not_outlive_a_killed_parent(tmp_path: Path) -> None:
    package = tmp_path / "packages" / "torch"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(HANGS)
    told = tmp_path / "pid"
    path = os.pathsep.join([str(package.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = os.environ | {"PYTHONPATH": path, "TOLD": str(told)}
    parent = subprocess.Popen([sys.executable, "-c", ASKS], env=environment)
    wait_until(lambda: told.exists() and bool(told.read_text()), "the probe to hang")
    pid = int(told.read_text())
    assert psutil.pid_exists(pid)
    parent.kill()
    parent.wait()
    wait_until(lambda: gone(pid), "the probe to end")
