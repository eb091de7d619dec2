"""A robot's system for install.sh: a tree of files, and programs on PATH that record what they are asked.

`systemctl` starts a real process that answers `/readyz` on the real socket path, as the release's script says. The
account's tools (systemd-sysusers, systemd-tmpfiles) are the real ones, with `--root`.
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parents[2]
INSTALL = PROJECT / "deploy" / "install.sh"

_PYTHON = """#!/bin/bash
echo "python $*" >> {calls}
case "$1 $2" in
  "-m venv") mkdir -p "$3/bin"; cp "$0" "$3/bin/python"; printf '#!/bin/bash\\n' > "$3/bin/brain"
             chmod +x "$3/bin/brain" ;;
  "-m pip") [ ! -e {state}/pip-fails ] || { echo "no space" >&2; exit 1; }
            [ ! -e {state}/pip-hangs ] || sleep 60 ;;
  *) exec {python} "$@" ;;
esac
""".replace("{ echo", "{{ echo").replace("exit 1; }", "exit 1; }}")

_RECORDER = """#!/bin/bash
echo "$(basename "$0") $*" >> {calls}
"""

_SYSTEMCTL = '''#!{python}
"""systemctl of a system with our units alone; `behaviour.json` says what each release does."""
import json, os, signal, subprocess, sys
from pathlib import Path

root, state = Path("{root}"), Path("{state}")
with open("{calls}", "a") as calls:
    print("systemctl", *sys.argv[1:], file=calls)
words = [word for word in sys.argv[1:] if not word.startswith("--") and word != "MainPID"]
verb, units = words[0], words[1:]
MAIN = "continuon-brain.service"

def alive(unit):
    try:
        pid = int((state / unit).read_text())
        os.kill(pid, 0)
        if Path(f"/proc/{{pid}}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
            return 0
    except (OSError, ValueError):
        return 0
    return pid

def behaviour():
    release = os.path.basename(os.readlink(root / "opt/continuon-brain/current"))
    known = json.loads((state / "behaviour.json").read_text())
    return next((how for version, how in known.items() if release.startswith(version + "-")), "ready")

def start(unit):
    if unit != MAIN:
        (state / unit).write_text("1")
        return
    child = subprocess.Popen(
        [sys.executable, "{service}", str(root / "run/continuon-brain/brain.sock"), behaviour()],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )
    (state / unit).write_text(str(child.pid))

def stop(unit):
    pid = alive(unit)
    if pid > 1:
        os.killpg(pid, signal.SIGKILL)
    (state / unit).unlink(missing_ok=True)

if verb == "is-enabled":
    sys.exit(not all((state / f"{{unit}}.enabled").exists() for unit in units))
elif verb == "enable":
    for unit in units:
        assert (root / "etc/systemd/system" / unit).exists(), unit
        (state / f"{{unit}}.enabled").touch()
elif verb == "disable":
    for unit in units:
        (state / f"{{unit}}.enabled").unlink(missing_ok=True)
elif verb == "is-active":
    if MAIN in units and not alive(MAIN) and (state / MAIN).exists() and behaviour() == "crashes":
        start(MAIN)
    sys.exit(not all(alive(unit) for unit in units))
elif verb in ("start", "restart"):
    for unit in units:
        if verb == "restart":
            stop(unit)
        if not alive(unit):
            start(unit)
elif verb == "stop":
    for unit in units:
        stop(unit)
elif verb == "show":
    print(alive(units[0]))
'''

_SERVICE = '''"""A daemon as far as install.sh sees it: /readyz on a Unix socket."""
import os, socket, sys, threading, time

path, how = sys.argv[1:]
if how == "dies":
    sys.exit(1)
try:
    os.unlink(path)
except FileNotFoundError:
    pass
bound = socket.socket(socket.AF_UNIX)
bound.bind(path)
bound.listen()
if how == "crashes":
    threading.Timer(0.15, lambda: os._exit(1)).start()
while True:
    asked, _ = bound.accept()
    asked.recv(1000)
    asked.sendall(b"HTTP/1.1 503 Unavailable\\r\\n\\r\\n" if how == "never" else b"HTTP/1.1 200 OK\\r\\n\\r\\n")
    asked.close()
'''


class FakeSystem:
    """One robot's files and programs; `close` ends what runs."""

    def __init__(self) -> None:
        # Short: the socket's path below it has 107 bytes at most.
        memory = Path("/dev/shm")  # flushing a tree there costs nothing
        self.base = Path(tempfile.mkdtemp(prefix="brain-", dir=memory if memory.is_dir() else None))
        self.root, self.state, self.bin = (self.base / name for name in ("root", "state", "bin"))
        self.calls = self.base / "calls"
        for folder in (self.root / "etc", self.root / "run/systemd/system", self.state, self.bin):
            folder.mkdir(parents=True)
        (self.root / "etc/os-release").write_text('ID=debian\nVERSION_CODENAME="bookworm"\n')
        self.behave()
        self.calls.touch()
        service = self.base / "service.py"
        service.write_text(_SERVICE)
        names: dict[str, Any] = {"calls": self.calls, "state": self.state, "root": self.root, "service": service}
        programs = {"fakepython": _PYTHON, "systemctl": _SYSTEMCTL}
        programs |= dict.fromkeys(("apt-get", "journalctl", "udevadm"), _RECORDER)
        for name, text in programs.items():
            (self.bin / name).write_text(text.format(python=sys.executable, **names))
            (self.bin / name).chmod(0o755)
        (self.bin / "dpkg-query").write_text("#!/bin/bash\necho installed\n")
        (self.bin / "dpkg-query").chmod(0o755)

    @property
    def prefix(self) -> Path:
        """Where releases are."""
        return self.root / "opt/continuon-brain"

    def behave(self, **versions: str) -> None:
        """Say what a release does when it is started, by its version: `ready`, `never`, `dies`, `crashes`."""
        named = {name.removeprefix("v").replace("_", "."): how for name, how in versions.items()}
        (self.state / "behaviour.json").write_text(json.dumps(named))

    def wheel(self, version: str, content: str = "") -> Path:
        """Return a file by the name of a wheel."""
        path = self.base / f"continuon_brain-{version}-py3-none-any.whl"
        path.write_text(content or version)
        return path

    def start(self, *arguments: str) -> "subprocess.Popen[str]":
        """Start install.sh as the leader of a process group of its own."""
        command = ["bash", str(INSTALL), "--root", str(self.root), "--python", "fakepython", *arguments]
        return subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            env={**os.environ, "PATH": f"{self.bin}:{os.environ['PATH']}", "INSTALL_SETTLE_S": "0.3"},
        )

    def run(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        """Run install.sh to its end."""
        process = self.start(*arguments)
        output, _ = process.communicate(timeout=60)
        return subprocess.CompletedProcess(process.args, process.returncode, output, "")

    def install(self, version: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
        """Install a wheel of this version."""
        return self.run("--wheel", str(self.wheel(version)), "--ready-timeout", "30", *arguments)

    def release(self, link: str = "current") -> str:
        """Return the version that a link names; nothing where there is none."""
        path = self.prefix / link
        return path.readlink().name.split("-")[0] if path.is_symlink() else ""

    def releases(self) -> list[str]:
        """Return the versions on disk."""
        return sorted(path.name.split("-")[0] for path in (self.prefix / "releases").iterdir())

    def files(self) -> dict[str, str]:
        """Return every file and link of the tree with what it holds, its mode and its time of change."""
        found = {}
        for path in self.root.rglob("*"):
            stat = path.lstat()
            content = os.readlink(path) if path.is_symlink() else path.read_text() if path.is_file() else ""
            if not path.is_socket():
                found[str(path.relative_to(self.root))] = (
                    f"{stat.st_mode} {stat.st_uid} {content} {stat.st_mtime_ns}"
                )
        return found

    def close(self) -> None:
        """End the service and remove the tree."""
        pid_file = self.state / "continuon-brain.service"
        if pid_file.exists() and (pid := int(pid_file.read_text())) > 1:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)
        shutil.rmtree(self.base)
