"""The clients that others publish, as judges: an environment of their own, and robots that run in it.

openpi-client needs NumPy < 2 and tritonclient an older ml_dtypes than JAX, so neither fits beside the daemon. The
environment is made once by plain pip, below the tests' cache, and kept as long as the versions asked for.
"""

import fcntl
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROBOTS = Path(__file__).parent / "robots"
CLIENTS = ("openpi-client==0.1.2", "tritonclient[http]==2.73.0")
# What it imports beside what it requires.
EXTRAS = ("typing-extensions>=4",)
# No NumPy below 2 has wheels for Python 3.13; there the client runs, unchanged, on one that it does not ask for.
LOOSE = ("openpi-client==0.1.2",)
LOOSE_NEEDS = ("dm-tree>=0.1.9", "msgpack>=1.0.5", "numpy>=2", "pillow>=9", "websockets>=11")


def judges_python() -> Path:
    """Return the interpreter of the clients' environment, which is made if it is not there yet."""
    new = sys.version_info >= (3, 13)
    wanted = (*EXTRAS, *(LOOSE_NEEDS if new else ()), *(name for name in CLIENTS if not (new and name in LOOSE)))
    name = hashlib.sha256(json.dumps([sys.version, wanted]).encode()).hexdigest()[:12]
    folder = Path(os.environ["BRAIN_CACHE_DIR"]) / f"judges-{name}"
    python, stamp = folder / "bin" / "python", folder / "complete"
    folder.mkdir(parents=True, exist_ok=True)
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two test processes may want it at once
        if not stamp.exists():
            _run(sys.executable, "-m", "venv", "--clear", "--without-pip", str(folder))
            _install(python, *wanted)
            if new:
                _install(python, "--no-deps", *LOOSE)
            stamp.touch()
    return python


def drive(robot: str, **order: Any) -> dict[str, Any]:
    """Run `robots/<robot>.py` with an order and return what it reports; both are JSON."""
    done = subprocess.run(
        [str(judges_python()), str(ROBOTS / f"{robot}.py"), json.dumps(order)],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _install(python: Path, *wanted: str) -> None:
    pip = (sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-compile")
    _run(*pip, "--disable-pip-version-check", *wanted)


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=550)
    assert done.returncode == 0, f"{' '.join(command)}:\n{done.stderr[-4000:]}"
