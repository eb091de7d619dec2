"""A daemon on a real file system (tmpfs) that is filled to the last page, and emptied again."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

__all__ = ["fill_up"]

_SCRIPT = """
    import pathlib, subprocess, sys, httpx
    from tests.processes import Daemon
    from tests.faults.robots import body, differs
    folder = pathlib.Path(sys.argv[1])
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "none", str(folder)], check=True)
    daemon = Daemon(folder / "brain", env={"BRAIN_CAPTURE__MIN_FREE_BYTES": "0"}).start()
    try:
        http = httpx.Client(base_url=daemon.url, timeout=30)
        for name in ("one", "two"):
            assert http.post("/episodes", json={"episode_id": name}).status_code == 201
        stored = {"one": 0, "two": 0}
        def record(name):
            answer = http.post(f"/episodes/{name}/steps", json=body(name, stored[name]))
            stored[name] += answer.status_code == 200
            return answer
        for _ in range(20):
            for name in stored:
                assert record(name).status_code == 200
        ballast = (folder / "ballast").open("ab", buffering=0)
        try:
            while True:
                ballast.write(bytes(4096))
        except OSError:
            pass
        for _ in range(400):
            if record("one").status_code != 200:
                break
        answer = record("one")
        print(answer.status_code, answer.headers.get("retry-after"), answer.json()["detail"])
        health = http.get("/health")
        print(health.status_code, health.json()["checks"]["capture"][0])
        print(http.post("/episodes", json={}).status_code, http.get("/livez").status_code)
        (folder / "ballast").unlink()
        ballast.close()
        for name in stored:
            assert record(name).status_code == 200
        assert http.post("/episodes", json={}).status_code == 201
        print(http.get("/health").json()["checks"]["capture"][0]["status"])
        for name in stored:
            assert http.post(f"/episodes/{name}/end", json={}).json()["steps"] == stored[name]
            steps = http.get(f"/episodes/{name}/steps", params={"limit": 1000}).json()["steps"]
            assert [differs(step, name, index) for index, step in enumerate(steps)] == [None] * stored[name]
    finally:
        daemon.stop()
"""


def fill_up(folder: Path) -> list[str]:
    """Mount a tmpfs over `folder` in a namespace of its own, fill it under a daemon, and empty it again.

    Returns what was refused, what `/health` said, the status of other routes, and `/health` afterwards. Every
    step that was accepted was compared; a difference raises with the script's own message.
    """
    namespace = ["unshare", "--user", "--map-root-user", "--mount"]
    done = subprocess.run(
        [*namespace, sys.executable, "-c", textwrap.dedent(_SCRIPT), str(folder)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    return done.stdout.splitlines()
