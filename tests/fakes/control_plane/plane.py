"""Everything that the server knows, how it gets older by the clock, and the file that it survives in."""

import json
import signal
import threading
import time
from pathlib import Path
from typing import Any

from tests.fakes.control_plane.process import Processes
from tests.fakes.control_plane.resource import LIFE, Resource

__all__ = ["Plane"]

TICK_S = 0.02
EMPTY: dict[str, Any] = {
    "creations": {"vertex": 0, "queued_resource": 0},
    "deletions": 0,
    "cancellations": 0,
    "max_live": 0,
    "requests": 0,
    "billed_gone_s": 0.0,
    "gone": [],
    "script": {},
}


class Plane:
    """All resources. Take `lock` around whatever reads or changes them; a clockwork thread ages them."""

    def __init__(self, folder: Path, *, run: bool) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.lock = threading.RLock()
        self.resources: dict[str, Resource] = {}
        self.book: dict[str, Any] = json.loads(json.dumps(EMPTY))
        self._file = folder / "state.json"
        self._processes = Processes(folder) if run else None
        if self._file.exists():
            found = json.loads(self._file.read_bytes())
            self.book = found["book"]
            self.resources = {item["name"]: Resource(**item) for item in found["resources"]}
        threading.Thread(target=self._clockwork, name="clockwork", daemon=True).start()

    @property
    def script(self) -> dict[str, Any]:
        """The script in force; its faults are used up."""
        found: dict[str, Any] = self.book["script"]
        return found

    @property
    def ahead_s(self) -> float:
        """By how much the service's clock is ahead."""
        return float(self.script.get("clock_ahead_s", 0))

    def save(self) -> None:
        """Write the state so that a SIGKILL leaves the old or the new whole."""
        state = {"book": self.book, "resources": [one.to_json() for one in self.resources.values()]}
        temporary = self._file.with_suffix(".tmp")
        temporary.write_text(json.dumps(state))
        temporary.replace(self._file)

    def add(self, resource: Resource) -> None:
        """Take a new resource up; its life is the next of the script's."""
        index = sum(self.book["creations"].values())
        lives = self.script.get("lives", [])
        scripted = lives[index] if index < len(lives) else self.script.get("life", {})
        resource.life = {**LIFE, **scripted}
        self.book["creations"][resource.kind] += 1
        self.resources[resource.name] = resource
        self.book["max_live"] = max(self.book["max_live"], self._live())
        self.save()

    def cancel(self, resource: Resource) -> None:
        """Begin to end a resource as its owner wants it."""
        self.book["cancellations" if resource.kind == "vertex" else "deletions"] += 1
        if resource.is_live or resource.kind == "vertex":
            self._become(resource, "cancelling")
            self._tell_to_go(resource)
        else:
            self._gone(resource)
        self.save()

    def preempt(self, name: str | None) -> list[str]:
        """Take running resources back; returns their names."""
        taken = [one for one in self.resources.values() if one.phase == "running" and name in (None, one.name)]
        for one in taken:
            self._become(one, "going")
            self._tell_to_go(one)
        self.save()
        return [one.name for one in taken]

    def end(self) -> None:
        """Kill every process."""
        for one in self.resources.values():
            if one.pid is not None and self._processes:
                self._processes.signal(one.pid, signal.SIGKILL)

    def report(self) -> dict[str, Any]:
        """Return what the docstring of the package promises."""
        resources = [
            {
                "name": one.name,
                "kind": one.kind,
                "phase": one.phase,
                "labels": one.labels,
                "billed_s": one.billed_s,
                "runs": one.runs,
                "looks": one.looks,
                "exit_codes": one.exit_codes,
            }
            for one in self.resources.values()
        ]
        book = {key: value for key, value in self.book.items() if key not in ("script", "gone", "billed_gone_s")}
        billed_s = self.book["billed_gone_s"] + sum(one.billed_s for one in self.resources.values())
        return {**book, "live": self._live(), "billed_s": billed_s, "resources": self.book["gone"] + resources}

    def guest_attribute(self, node: str) -> str | None:
        """Return what the named node's script told of its exit."""
        for one in self.resources.values():
            if one.kind == "queued_resource" and one.name.endswith(f"/{node}"):
                if self._processes:
                    return self._processes.guest_attribute(self._key(one))
                return None if one.exit_reported is None else str(one.exit_reported)
        return None

    def _live(self) -> int:
        return sum(one.is_live for one in self.resources.values())

    def _clockwork(self) -> None:
        last_s = time.time()
        while True:
            time.sleep(TICK_S)
            with self.lock:
                now_s = time.time()
                before = [(one.phase, one.pid, one.runs) for one in self.resources.values()]
                for one in list(self.resources.values()):
                    if one.phase in ("running", "going", "cancelling") and one.running_s is not None:
                        one.billed_s += now_s - max(last_s, one.running_s)
                    self._age(one, now_s)
                if before != [(one.phase, one.pid, one.runs) for one in self.resources.values()]:
                    self.save()
            last_s = now_s

    def _age(self, one: Resource, now_s: float) -> None:
        since_s, life = now_s - one.changed_s, one.life
        if one.phase == "queued" and since_s >= life["queue_s"]:
            self._allocate(one)
        elif one.phase == "queued" and one.kind == "queued_resource":
            self._expire(one, since_s)
        elif one.phase == "pending" and since_s >= life["provision_s"]:
            self._become(one, "running")
            one.running_s = now_s
            one.started_s = one.started_s or now_s
            one.runs += 1
            self._launch(one)
        elif one.phase == "running":
            self._age_running(one, now_s)
        elif one.phase in ("going", "cancelling"):
            self._age_leaving(one, since_s)

    def _allocate(self, one: Resource) -> None:
        if one.life["expire"]:
            self._fail(one, 4, "The request was not fulfilled before it expired.", "expired")
        elif one.life["stockout"]:
            self._fail(one, 8, "Resources are insufficient in region: us-central1 (STOCKOUT).")
        else:
            self._become(one, "pending")

    def _expire(self, one: Resource, since_s: float) -> None:
        until = one.body.get("queueingPolicy", {}).get("validUntilDuration")
        if until and since_s > float(until.rstrip("s")):
            self._fail(one, 4, "The request was not fulfilled within its valid-until duration.")

    def _age_running(self, one: Resource, now_s: float) -> None:
        assert one.running_s is not None
        ran_s, life = now_s - one.running_s, one.life
        code = self._exit_code(one, ran_s)
        if code is not None and one.exit_reported is None:
            one.exit_codes.append(code)
            if one.kind == "queued_resource":
                # The machines stay, and bill, whatever became of the program.
                one.exit_reported = code
            elif code == 0:
                self._become(one, "succeeded", ended=True)
            else:
                self._fail(
                    one,
                    3,
                    f"The replica workerpool0-0 exited with a non-zero status of {code}. To find out "
                    "more about why your job exited please check the logs.",
                )
        elif (
            one.spot and life["preempt_after_s"] is not None and ran_s >= life["preempt_after_s"] and one.runs == 1
        ):
            self._become(one, "going")
            self._tell_to_go(one)
        elif one.kind == "vertex":
            timeout = one.body["jobSpec"].get("scheduling", {}).get("timeout")
            if timeout and ran_s > float(timeout.rstrip("s")):
                self._tell_to_go(one, signal.SIGKILL)
                self._fail(one, 4, "The job exceeded its timeout.")

    def _exit_code(self, one: Resource, ran_s: float) -> int | None:
        if self._processes is None:
            return int(one.life["exit_code"]) if ran_s >= one.life["run_s"] else None
        assert one.pid is not None
        told = self._processes.guest_attribute(self._key(one))
        return int(told) if told is not None else self._processes.exit_code(self._key(one), one.pid)

    def _age_leaving(self, one: Resource, since_s: float) -> None:
        if self._processes and one.pid is not None and self._processes.alive(one.pid):
            if since_s < one.life["grace_s"]:
                return
            self._processes.signal(one.pid, signal.SIGKILL)
        if self._processes and one.pid is not None:
            code = self._processes.exit_code(self._key(one), one.pid)
            if code is not None and one.exit_reported is None:
                one.exit_codes.append(code)
        if one.phase == "cancelling":
            self._gone(one)
        elif one.kind == "queued_resource":
            self._become(one, "preempted", ended=True)
        elif one.life["preempt_as"] == "PENDING":
            one.pid, one.running_s = None, None
            self._become(one, "pending")
        else:
            self._fail(one, 14, "The Spot VM of replica workerpool0-0 was preempted (STOCKOUT).")

    def _gone(self, one: Resource) -> None:
        if one.kind == "vertex":
            self._become(one, "cancelled", ended=True)
            return
        self.book["billed_gone_s"] += one.billed_s
        self.book["gone"].append(
            {
                "name": one.name,
                "kind": one.kind,
                "phase": "gone",
                "labels": one.labels,
                "billed_s": one.billed_s,
                "runs": one.runs,
                "exit_codes": one.exit_codes,
            }
        )
        del self.resources[one.name]

    def _launch(self, one: Resource) -> None:
        if self._processes is None:
            return
        if one.kind == "queued_resource":
            node = one.body["tpu"]["nodeSpec"][0]["node"]
            one.pid = self._processes.start_script(self._key(one), node["metadata"]["startup-script"])
            return
        container = one.body["jobSpec"]["workerPoolSpecs"][0]["containerSpec"]
        env = {item["name"]: item["value"] for item in container.get("env", [])}
        command = [*container.get("command", []), *container.get("args", [])]
        one.pid = self._processes.start(self._key(one), command, env)

    def _tell_to_go(self, one: Resource, number: int = signal.SIGTERM) -> None:
        if self._processes and one.pid is not None:
            self._processes.signal(one.pid, number)

    @staticmethod
    def _key(one: Resource) -> str:
        return f"{one.name.rpartition('/')[2]}.{one.runs}"

    @staticmethod
    def _become(one: Resource, phase: str, *, ended: bool = False) -> None:
        one.phase, one.changed_s = phase, time.time()
        if ended:
            one.ended_s = one.changed_s

    def _fail(self, one: Resource, code: int, message: str, phase: str = "failed") -> None:
        one.error = {"code": code, "message": message}
        self._become(one, phase, ended=True)
