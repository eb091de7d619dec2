"""A Raspberry Pi as files on which every probe of the doctor passes, for tests to spoil one thing at a time."""

import os
import socket
from pathlib import Path
from typing import Any

from brain_service.health.doctor import Machine
from brain_service.settings import Settings
from tests.hardware.sysfs import set_temperature, set_under_voltage, write

NOW_S = 1_795_773_600.0  # 2026-11-27
DATA_DIR, TOKENS = Path("/var/lib/continuon-brain"), Path("/etc/continuon-brain/tokens")
UNIT = """\
[Service]
User=continuon
Environment=BRAIN_DATA_DIR=/var/lib/continuon-brain
ExecStart=/opt/continuon-brain/bin/brain serve
"""
MOUNT = "25 1 179:2 / / rw,noatime shared:1 - ext4 /dev/root rw"


def healthy_root(root: Path) -> Path:
    """Write the files of a machine on which every probe passes."""
    set_temperature(root / "sys", 52.0)
    set_under_voltage(root / "sys", alarm=False)
    for name, text in {
        "proc/cmdline": "console=tty1 root=/dev/mmcblk0p2 cgroup_disable=memory cgroup_enable=memory",
        "proc/self/cgroup": "0::/system.slice/continuon-brain.service",
        "proc/self/mountinfo": MOUNT,
        "proc/swaps": "Filename Type Size Used Priority\n/dev/zram0 partition 2097148 0 100",
        "proc/meminfo": "MemTotal:        4000000 kB",
        "proc/net/tcp": "  sl  local_address rem_address   st\n   0: 0100007F:0277 00000000:0000 0A 0 0 0",
        "proc/device-tree/model": "Raspberry Pi 5 Model B Rev 1.0",
        "sys/fs/cgroup/cgroup.controllers": "cpuset cpu io memory pids",
        "sys/class/watchdog/watchdog0/state": "active",
        "sys/block/mmcblk0/device/life_time": "0x01 0x02",
        "sys/block/mmcblk0/device/pre_eol_info": "0x01",
        "sys/fs/ext4/mmcblk0p2/errors_count": "0",
        "run/systemd/timesync/synchronized": "",
        "etc/passwd": f"root:x:0:0::/root:/bin/sh\ncontinuon:x:{root.stat().st_uid}:99::/:/bin/false",
        f"etc/systemd/system/{'continuon-brain.service'}": UNIT,
        "etc/systemd/system/multi-user.target.wants/continuon-brain.service": UNIT,
        "opt/continuon-brain/bin/brain": "#!/bin/sh",
        f"{TOKENS}".lstrip("/"): "robot-token-0123456789 control,read",
        "var/lib/continuon-brain/models/starts.json": (
            '{"model_id": "m", "phase": "healthy", "crashes": 0, "safe_mode": null}'
        ),
    }.items():
        write(root / name, text)
    (root / "sys/dev/block").mkdir(parents=True)
    (root / "sys/devices/mmcblk0p2").mkdir(parents=True)
    (root / "sys/dev/block/179:2").symlink_to(root / "sys/devices/mmcblk0p2")
    (root / str(TOKENS).lstrip("/")).chmod(0o600)
    data_dir = root / str(DATA_DIR).lstrip("/")
    data_dir.chmod(0o750)
    return root


def machine(root: Path, **changes: Any) -> Machine:
    """Return the machine of a root, on which this program's settings are as installed."""
    settings = Settings(
        data_dir=DATA_DIR, tokens_file=TOKENS, capture={"min_free_bytes": 1}, **changes.pop("settings", {})
    )
    known: dict[str, Any] = {
        "python": (3, 11, 2),
        "requirements": ("uvloop>=0.21", "orjson>=3.10", "psutil"),
        "version_of": lambda name: "99.0",
        "kernel_clock": True,
        "now_s": NOW_S,
    }
    return Machine(root, settings, **(known | changes))


def bind_socket(path: Path, mode: int) -> None:
    """Leave a Unix socket at a path, as a daemon does."""
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        # A test's folder may have a longer name than an address of a socket can be.
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind(f"/proc/self/fd/{folder}/{path.name}")
    finally:
        os.close(folder)
    path.chmod(mode)
