"""The doctor's probes: a machine that is well passes all, and each thing that is spoilt is found with its fix."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from brain_service.health.check import overall
from brain_service.health.doctor import PROBES, Machine, examine
from tests.hardware.sysfs import set_temperature, set_under_voltage, write
from tests.health.robot import DATA_DIR, TOKENS, UNIT, bind_socket, healthy_root, machine

Spoil = Callable[[Path], Any]


def text(name: str, content: str) -> Spoil:
    return lambda root: write(root / name.lstrip("/"), content)


def tokens(content: str, mode: int = 0o600) -> Spoil:
    def spoil(root: Path) -> None:
        write(root / str(TOKENS).lstrip("/"), content)
        (root / str(TOKENS).lstrip("/")).chmod(mode)

    return spoil


def pci(root: Path, driver: str = "4.21.0", library: str = "4.21.0", node: bool = True) -> None:
    write(root / "sys/bus/pci/devices/0001:01:00.0/vendor", "0x1e60")
    write(root / "sys/bus/pci/devices/0001:01:00.0/device", "0x2864")
    write(root / "sys/module/hailo_pci/version", driver)
    write(root / f"usr/lib/aarch64-linux-gnu/libhailort.so.{library}", "")
    write(root / "usr/lib/python3/dist-packages/hailo_platform/__init__.py", "")
    if node:
        write(root / "dev/hailo0", "")


def lost_hailo(root: Path) -> None:
    pci(root)
    (root / "sys/bus/pci/devices/0001:01:00.0/vendor").unlink()


def no_memory_controller(root: Path) -> None:
    write(root / "proc/cmdline", "console=tty1 cgroup_disable=memory")
    write(root / "sys/fs/cgroup/cgroup.controllers", "cpu")


def no_data_dir_mode(root: Path) -> None:
    (root / str(DATA_DIR).lstrip("/")).chmod(0o777)


def test_a_machine_that_is_well_passes_every_probe(tmp_path: Path) -> None:
    found = examine(machine(healthy_root(tmp_path)))
    assert {name: check.output for name, check in found.items() if check.status != "pass"} == {}
    assert overall(found) == "pass"
    assert list(found) == list(PROBES)


SPOILT: list[tuple[str, Spoil, str, str, str]] = [
    ("memory_cgroup", no_memory_controller, "warn", "cgroup_disable=memory", "cmdline.txt"),
    ("memory_cgroup", text("sys/fs/cgroup/cgroup.controllers", "cpu io"), "warn", "memory", "cmdline.txt"),
    (
        "unit",
        lambda root: (root / "etc/systemd/system/continuon-brain.service").unlink(),
        "warn",
        "boot",
        "install.sh",
    ),
    ("unit", lambda root: (root / "opt/continuon-brain/bin/brain").unlink(), "fail", "not there", "install.sh"),
    (
        "unit",
        lambda root: (root / "etc/systemd/system/multi-user.target.wants/continuon-brain.service").unlink(),
        "warn",
        "boot",
        "systemctl enable",
    ),
    ("watchdog", text("sys/class/watchdog/watchdog0/state", "inactive"), "warn", "frozen", "RuntimeWatchdogSec"),
    ("swap", text("proc/swaps", "F T S U P\n/var/swap file 524284 0 -2"), "warn", "wears", "dphys-swapfile"),
    ("swap", text("proc/swaps", "F T S U P"), "warn", "no swap", "zram"),
    ("mount", text("proc/self/mountinfo", "25 1 179:2 / / ro - ext4 /dev/root ro"), "fail", "read-only", "rw"),
    (
        "mount",
        text("proc/self/mountinfo", "25 1 179:2 / / rw,relatime - ext4 /dev/root rw"),
        "warn",
        "time",
        "noatime",
    ),
    ("mount", text("proc/self/mountinfo", "25 1 0:2 / /var rw - tmpfs tmpfs rw"), "fail", "reboot", "data_dir"),
    ("medium_errors", text("sys/fs/ext4/mmcblk0p2/errors_count", "3"), "fail", "ext4", "fsck"),
    ("medium_wear", text("sys/block/mmcblk0/device/life_time", "0x01 0x09"), "warn", "nearly", "dd "),
    ("medium_wear", text("sys/block/mmcblk0/device/pre_eol_info", "0x03"), "fail", "worn out", "dd "),
    ("temperature", lambda root: set_temperature(root / "sys", 86.0), "fail", "85 C", "cooling"),
    ("temperature", lambda root: set_temperature(root / "sys", 81.0), "warn", "80 C", "cooling"),
    ("power", lambda root: set_under_voltage(root / "sys", alarm=True), "warn", "now", "27 W"),
    ("power", text("sys/devices/platform/soc/soc:firmware/get_throttled", "50000"), "warn", "since boot", "27 W"),
    ("power", text("sys/devices/platform/soc/soc:firmware/get_throttled", "4"), "warn", "now", "cooling"),
    ("tokens", tokens("robot-token-0123456789 control", 0o644), "fail", "0644", "chmod 600"),
    ("tokens", tokens("short control"), "fail", "line 1", "sudoedit"),
    ("tokens", lambda root: (root / str(TOKENS).lstrip("/")).unlink(), "fail", "No such file", "openssl rand"),
    ("data_dir", no_data_dir_mode, "fail", "every user", "chmod o-w"),
    (
        "socket",
        lambda root: bind_socket(root / str(DATA_DIR).lstrip("/") / "brain.sock", 0o666),
        "warn",
        "every user",
        "chmod 660",
    ),
    ("port", text("proc/net/tcp", "h\n0: 00000000:1F90 00000000:0000 0A 0 0"), "fail", "8080", "ss -ltnp"),
    (
        "last_start",
        text(
            f"{DATA_DIR}/models/starts.json",
            '{"model_id":"m","phase":"starting","crashes":2,"safe_mode":null}',
        ),
        "warn",
        "2 starts",
        "journalctl",
    ),
    (
        "last_start",
        text(
            f"{DATA_DIR}/models/starts.json",
            '{"model_id":"m","phase":"healthy","crashes":0,"safe_mode":"m0 stands in"}',
        ),
        "fail",
        "m0 stands in",
        "activate",
    ),
    ("last_start", text(f"{DATA_DIR}/models/starts.json", "{torn"), "warn", "cannot be read", "rm "),
    ("hailo", lambda root: pci(root, driver="4.20.0"), "fail", "4.20.0", "reinstall"),
    ("hailo", lambda root: pci(root, node=False), "fail", "hailo0", "hailo-all"),
    (
        "hailo",
        lost_hailo,
        "warn",
        "software",
        "reseat",
    ),
]


@pytest.mark.parametrize(
    ("name", "spoil", "status", "reason", "fix"), SPOILT, ids=[f"{case[0]}-{n}" for n, case in enumerate(SPOILT)]
)
def test_what_is_spoilt_is_found_with_its_fix(
    tmp_path: Path, name: str, spoil: Spoil, status: str, reason: str, fix: str
) -> None:
    root = healthy_root(tmp_path)
    spoil(root)
    found = examine(machine(root))
    assert found[name].status == status, found[name]
    assert reason in found[name].reason
    assert fix in found[name].fix
    assert {other for other, check in found.items() if check.status != "pass"} == {name}, "nothing else is blamed"


def test_another_owner_of_the_data_directory_is_found(tmp_path: Path) -> None:
    root = healthy_root(tmp_path)
    write(root / "etc/passwd", f"continuon:x:{os.getuid() + 54321}:99::/:/bin/false")
    check = examine(machine(root))["data_dir"]
    assert (check.status, check.fix) == ("fail", f"sudo chown -R continuon: {DATA_DIR}")


def test_the_daemon_itself_may_hold_the_port(tmp_path: Path) -> None:
    root = healthy_root(tmp_path)
    write(root / "proc/net/tcp", "h\n0: 00000000:1F90 00000000:0000 0A 0 0")
    lock = root / str(DATA_DIR).lstrip("/") / ".lock"
    lock.touch()
    write(root / "proc/locks", f"1: FLOCK  ADVISORY  WRITE 4242 b3:02:{lock.stat().st_ino} 0 EOF")
    check = examine(machine(root))["port"]
    assert (check.status, check.reason) == ("pass", "the daemon runs as process 4242")


def test_software_that_is_missing_or_old_is_named(tmp_path: Path) -> None:
    root = healthy_root(tmp_path)
    versions = {"uvloop": "0.20.9", "psutil": "6.0"}
    found = examine(machine(root, version_of=versions.get, python=(3, 10, 4)))
    assert found["python"].status == found["packages"].status == found["speed"].status == "fail"
    assert "uvloop 0.20.9 is older than 0.21" in found["packages"].reason
    assert "orjson is missing" in found["packages"].reason
    assert found["packages"].fix.endswith("uvloop orjson")
    assert "httptools" in found["speed"].fix


def test_a_unit_of_another_version_is_told(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    root = healthy_root(tmp_path / "root")
    write(tmp_path / "systemd/continuon-brain.service", UNIT + "Restart=always\n")
    check = examine(machine(root, units=tmp_path / "systemd"))["unit"]
    assert (check.status, check.observed_value) == ("warn", "another version")
    assert "daemon-reload" in check.fix


def test_tokens_are_needed_where_the_network_listens(tmp_path: Path) -> None:
    root = healthy_root(tmp_path)
    open_to_all = machine(root, settings={"host": "0.0.0.0"})
    bare = machine(root)
    for host, status in (("0.0.0.0", "fail"), ("127.0.0.1", "pass")):
        settings = bare.settings.model_copy(update={"tokens_file": None, "host": host})
        found = examine(Machine(root, settings))["tokens"]
        assert found.status == status
    assert examine(open_to_all)["tokens"].status == "pass", "they are there"


def test_a_clock_set_back_a_year_is_told_and_never_fails(tmp_path: Path) -> None:
    root = healthy_root(tmp_path)
    write(root / "var/lib/continuon-brain/brain.db", "")
    back = machine(root, now_s=(root / "var/lib/continuon-brain/brain.db").stat().st_mtime - 365 * 86_400)
    check = examine(back)["clock"]
    assert check.status == "warn"
    assert "set back" in check.reason or "year" in check.reason
    (root / "run/systemd/timesync/synchronized").unlink()
    for kernel in (True, False, None):
        assert examine(machine(root, kernel_clock=kernel))["clock"].status in ("pass", "warn")


def test_a_probe_that_may_not_look_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from brain_service.health import doctor

    def refused(_: Any) -> Any:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(doctor, "PROBES", {"tokens": refused})
    check = examine(machine(healthy_root(tmp_path)))["tokens"]
    assert (check.status, check.fix) == ("warn", "sudo brain doctor")
