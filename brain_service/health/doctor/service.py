"""Probes of the installation: unit, permissions, tokens, socket, port, the last start."""

import ipaddress
import json
import stat
from pathlib import Path

from brain_service.errors import BrainError
from brain_service.health.check import Check
from brain_service.health.doctor.machine import UNIT, Machine, daemon_pid, read_text, unit_values

__all__ = [
    "data_dir_probe",
    "last_start_probe",
    "port_probe",
    "socket_probe",
    "tokens_probe",
    "unit_probe",
]

_LISTEN = "0A"
_MAKE_ONE = 'printf "%s control,operate,read\\n" "$(openssl rand -hex 32)"'


def unit_probe(machine: Machine) -> Check:
    """Whether the unit is installed, starts what is there, is this version's, and comes up at boot."""
    unit = machine.unit
    if unit is None:
        return Check("warn", "missing", "", "the daemon does not come up at boot", fix="sudo deploy/install.sh")
    command = (unit_values(unit, "ExecStart") or [""])[-1].split()
    program = command[0].lstrip("-@:+!") if command else ""
    if not program or not machine.path(program).exists():
        reason = f"{UNIT} starts {program or 'nothing'}, which is not there"
        return Check("fail", "broken", "", reason, fix="sudo deploy/install.sh")
    ours = machine.units / UNIT if machine.units is not None else None
    if ours is not None and ours.is_file() and read_text(ours) != read_text(unit):
        fix = f"sudo install -m 644 {ours} {unit} && sudo systemctl daemon-reload"
        return Check("warn", "another version", "", f"{unit} differs from this version's", fix=fix)
    if not any(machine.root.glob(f"etc/systemd/system/*.wants/{UNIT}")):
        fix = f"sudo systemctl enable --now {UNIT}"
        return Check("warn", "not enabled", "", "the daemon does not come up at boot", fix=fix)
    return Check("pass", "installed", "")


def data_dir_probe(machine: Machine) -> Check:
    """Who owns the data directory, and who may write there."""
    data_dir = machine.settings.data_dir
    path = machine.path(data_dir)
    try:
        found = path.stat()
    except FileNotFoundError:
        return Check("pass", None, "", f"{data_dir} is not there yet; the first start makes it")
    except OSError as error:
        fix = "sudo brain doctor"
        return Check("warn", None, "", f"cannot look at {data_dir}: {error.strerror}", fix=fix)
    mode = f"{stat.S_IMODE(found.st_mode):04o}"
    if not stat.S_ISDIR(found.st_mode):
        return Check("fail", mode, "", f"{data_dir} is no directory", fix=f"sudo mv {data_dir} {data_dir}.old")
    if found.st_mode & stat.S_IWOTH:
        return Check("fail", mode, "", f"every user may write to {data_dir}", "0750", f"sudo chmod o-w {data_dir}")
    user = _unit_user(machine)
    uid = _uid_of(machine, user)
    if uid is not None and uid != found.st_uid:
        reason = f"{data_dir} belongs to uid {found.st_uid}, the daemon runs as {user}"
        return Check("fail", mode, "", reason, user, f"sudo chown -R {user}: {data_dir}")
    return Check("pass", mode, "")


def tokens_probe(machine: Machine) -> Check:
    """The tokens file: there where one is needed, private, and right."""
    tokens_file, host = machine.settings.tokens_file, machine.settings.host
    if tokens_file is None:
        if _is_loopback(host):
            return Check("pass", 0, "tokens", f"none, and none needed: only {host} is listened on")
        fix = f"{_MAKE_ONE} | install -m 600 /dev/stdin tokens, then set tokens_file"
        return Check("fail", 0, "tokens", f"host is {host} and there are no tokens: no start", 1, fix)
    path = machine.path(tokens_file)
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
    except OSError as error:
        fix = f"{_MAKE_ONE} | sudo install -m 600 /dev/stdin {tokens_file}"
        return Check("fail", None, "tokens", f"cannot look at {tokens_file}: {error.strerror}", fix=fix)
    if mode & 0o027:
        reason = f"{tokens_file} has mode {mode:04o}: others can read or change it"
        return Check("fail", f"{mode:04o}", "", reason, "0600", f"sudo chmod 600 {tokens_file}")
    # Here, since no other probe needs the HTTP layer.
    from brain_service.api.auth import Tokens

    try:
        count = len(Tokens.read(path).by_digest)
    except BrainError as error:
        return Check("fail", 0, "tokens", error.detail, 1, f"sudoedit {tokens_file}")
    return Check("pass", count, "tokens")


def socket_probe(machine: Machine) -> Check:
    """The Unix socket's permissions."""
    name = machine.settings.uds or machine.settings.data_dir / "brain.sock"
    try:
        mode = machine.path(name).stat().st_mode
    except OSError:
        return Check("pass", None, "", f"{name} is not there; the daemon makes it")
    if not stat.S_ISSOCK(mode):
        return Check("fail", None, "", f"{name} is no socket", fix=f"sudo mv {name} {name}.old")
    permissions = f"{stat.S_IMODE(mode):04o}"
    if mode & 0o007:
        reason = f"every user of this machine may drive the robot through {name}"
        return Check("warn", permissions, "", reason, "0660", f"sudo chmod 660 {name}")
    return Check("pass", permissions, "", limit="0660")


def port_probe(machine: Machine) -> Check:
    """Whether the daemon's port is free, or is the daemon's."""
    port, pid = machine.settings.port, daemon_pid(machine)
    tables = (read_text(machine.root / "proc/net" / name) for name in ("tcp", "tcp6"))
    taken = any(_listens(line, port) for table in tables for line in table.splitlines()[1:])
    if pid is not None:
        return Check("pass", port, "", f"the daemon runs as process {pid}")
    if taken:
        fix = f"sudo ss -ltnp 'sport = :{port}' shows which; or choose another with --port"
        return Check("fail", port, "", f"another program listens on port {port}", "free", fix)
    return Check("pass", port, "", "free; no daemon runs on this data directory")


def last_start_probe(machine: Machine) -> Check:
    """Hours since the last start that came well, and whether the one after it did."""
    path = machine.path(machine.settings.models_dir) / "starts.json"
    try:
        record, written_s = json.loads(path.read_text()), path.stat().st_mtime
        phase, crashes, safe_mode = record["phase"], int(record["crashes"]), record["safe_mode"]
    except FileNotFoundError:
        return Check("pass", None, "h", "no model was loaded here yet")
    except (OSError, ValueError, KeyError, TypeError) as error:
        fix = f"sudo rm {machine.settings.models_dir / 'starts.json'}: crashes at start are then counted anew"
        return Check("warn", None, "h", f"{path.name} cannot be read: {error}", fix=fix)
    hours = round(max(0.0, machine.now_s - written_s) / 3600, 1)
    if safe_mode:
        fix = "brain health, then POST /models/{id}/activate of the model that shall serve"
        return Check("fail", hours, "h", f"safe mode: {safe_mode}", fix=fix)
    if phase == "starting" and crashes:
        fix = "journalctl -u continuon-brain -p warning"
        return Check("warn", hours, "h", f"the last {crashes} starts crashed", fix=fix)
    return Check("pass", hours, "h", f"the last start is {phase}")


def _unit_user(machine: Machine) -> str:
    unit = machine.unit
    return (unit_values(unit, "User") or [""])[-1] if unit is not None else ""


def _uid_of(machine: Machine, user: str) -> int | None:
    for line in read_text(Path(machine.root) / "etc/passwd").splitlines():
        words = line.split(":")
        if user and words[0] == user and len(words) > 2 and words[2].isdigit():
            return int(words[2])
    return None


def _listens(line: str, port: int) -> bool:
    words = line.split()
    return len(words) > 3 and words[3] == _LISTEN and words[1].endswith(f":{port:04X}")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
