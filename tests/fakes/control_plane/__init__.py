"""Vertex AI custom jobs and Cloud TPU queued resources on this machine: one HTTP server, Google's own JSON.

    python -m tests.fakes.control_plane --port 0 --state-dir D [--run] [--script FILE]

prints `{"url": "http://127.0.0.1:PORT"}` once it listens, and keeps its state in D: killed and started again on
the same D (and port), it knows what it knew. Point `cloud.vertex_endpoint` and `cloud.tpu_endpoint` at the url.
What is measured against it is simulated: no machines, no money, and Google's rules only as far as its documents
tell them.

Without `--run` a job's life is what the script says. With it, the container's command runs here, with this
server's environment plus the container's: `python -m cloud_trainer ...`, for queued resources by the real start-up
script with a stand-in for docker. Only the first host of a slice runs. Logs are in `D/logs/`.

The script is JSON, given by file or `POST /_fake/script`; every key may be absent:

    {"life": {...},           how resources live that `lives` does not name
     "lives": [{...}, ...],   how the 1st, 2nd, ... created one lives, whatever its kind
     "list_lag_s": 0,         so long a new resource is missing from lists
     "page_size": 100,        at most so many to a page
     "clock_ahead_s": 0,      of the service's clock: its answers' Date and all its times
     "token": "Invalid JWT",  why `/token`, the token service, gives none
     "faults": [{"kind": ..., "method": "POST", "path": "customJobs", "times": 1}, ...]}

    life = {"queue_s": 0.05, "provision_s": 0.05,
            "run_s": 1.0, "exit_code": 0,      without --run: how the process ends
            "preempt_after_s": 2.0,            seconds of running until it is taken back
            "preempt_as": "FAILED"             Vertex: how that looks, or "PENDING": begins again by itself
            "grace_s": 10.0,                   between SIGTERM and SIGKILL
            "state": "JOB_STATE_NEW",          told instead of the running state: one that nobody knows
            "expire": true, "stockout": true}  never gets machines: EXPIRED or FAILED after queue_s

    kind = drop_before   the connection breaks before anything is done     drop_after   ... after it was done
           unavailable   503     garbage, html   200 without JSON           redirect     302 to a login page
           unauthorized  401     expired         401, date of the answer in order      skew   401, date a day ahead
           permission, disabled, project, billing   403 as Google words it
           quota         429 of a quota          rate    429 of a rate      stockout     429 without machines
           slow          after "s": 5 seconds      invalid 400 with a field

`POST /_fake/preempt` takes back what runs now (`?name=` one alone). `GET /_fake/report` tells
`{"creations", "deletions", "cancellations", "live", "max_live", "billed_s", "requests", "resources": [...]}`;
`live` counts what bills or will. `running_control_plane` starts one for a block.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

__all__ = ["ControlPlane", "running_control_plane"]


class ControlPlane:
    """A server in a process of its own; `url` is where it listens."""

    def __init__(self, state_dir: Path, *, run: bool = False, env: Mapping[str, str] | None = None) -> None:
        self._state_dir = state_dir
        self._run = run
        self._env = {**os.environ, **(env or {})}
        self._process: subprocess.Popen[bytes] | None = None
        self._port = 0
        self.url = ""

    def start(self) -> "ControlPlane":
        """Start it, after the first time on the port it had."""
        command = [sys.executable, "-m", "tests.fakes.control_plane", "--port", str(self._port)]
        command += ["--state-dir", str(self._state_dir), *(["--run"] if self._run else [])]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, env=self._env, start_new_session=True)
        assert self._process.stdout is not None
        with self._process.stdout as out:
            self.url = json.loads(out.readline())["url"]
        self._port = int(self.url.rpartition(":")[2])
        return self

    def kill(self) -> None:
        """SIGKILL the server alone; what it runs goes on."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def stop(self) -> None:
        """End the server and all that it runs."""
        assert self._process is not None
        if self._process.poll() is None:
            with contextlib.suppress(OSError):
                self._call("/_fake/end", b"")
            self._process.send_signal(signal.SIGTERM)
            self._process.wait(20)

    def script(self, **script: Any) -> None:
        """Replace the script."""
        self._call("/_fake/script", json.dumps(script).encode())

    def preempt(self, name: str | None = None) -> list[str]:
        """Take back what runs now, or one; returns the names."""
        query = f"?name={urllib.parse.quote(name)}" if name else ""
        names: list[str] = self._call(f"/_fake/preempt{query}", b"")["preempted"]
        return names

    def report(self) -> dict[str, Any]:
        """Return what was created, deleted and billed."""
        return self._call("/_fake/report", None)

    def _call(self, place: str, data: bytes | None) -> dict[str, Any]:
        request = urllib.request.Request(self.url + place, data, {"Content-Type": "application/json"})
        # No proxy of the environment stands between this machine and itself.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(request, timeout=30) as answer:
            found: dict[str, Any] = json.load(answer)
        return found


@contextlib.contextmanager
def running_control_plane(
    state_dir: Path, *, run: bool = False, env: Mapping[str, str] | None = None, **script: Any
) -> Iterator[ControlPlane]:
    """Run a server for a block, with a script."""
    plane = ControlPlane(state_dir, run=run, env=env).start()
    try:
        if script:
            plane.script(**script)
        yield plane
    finally:
        plane.stop()
