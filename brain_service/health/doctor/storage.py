"""Probes of the medium under the data directory: its mount, its errors, its wear, its room.

Sources: proc(5) on mountinfo; the kernel's ABI of ext4 (`errors_count`) and of eMMC (`life_time`, in tenths of the
life that is used up, `pre_eol_info`). An SD card tells nothing of its wear.
"""

import re
from pathlib import Path
from typing import NamedTuple

from brain_service.health.check import Check
from brain_service.health.checks import disk_check
from brain_service.health.doctor.machine import Machine, read_text

__all__ = ["Mount", "errors_probe", "find_mount", "mount_probe", "room_probe", "wear_probe"]

IN_MEMORY = ("tmpfs", "ramfs", "overlay")
_WORN, _WORN_OUT = 0x09, 0x0B


class Mount(NamedTuple):
    """The file system that holds a path."""

    point: str
    kind: str
    options: frozenset[str]
    source: str
    device: str
    """Name of the block device (`mmcblk0p2`), empty where there is none."""

    @property
    def card(self) -> bool:
        """Whether it lies on an SD card or eMMC."""
        return self.device.startswith("mmcblk")


def find_mount(machine: Machine) -> Mount | None:
    """Return the mount of the data directory, from the kernel's list."""
    wanted = str(machine.settings.data_dir)
    best: Mount | None = None
    for line in read_text(machine.root / "proc/self/mountinfo").splitlines():
        head, _, tail = line.partition(" - ")
        words, rest = head.split(), tail.split()
        if len(words) < 6 or len(rest) < 2:
            continue
        point = words[4].replace("\\040", " ")
        inside = wanted == point or wanted.startswith(point.rstrip("/") + "/")
        if inside and (best is None or len(point) >= len(best.point)):
            options = frozenset((*words[5].split(","), *(rest[2].split(",") if len(rest) > 2 else ())))
            best = Mount(point, rest[0], options, rest[1], _device(machine.root, words[2], rest[1]))
    return best


def mount_probe(machine: Machine) -> Check:
    """How the data directory's file system is mounted."""
    mount = find_mount(machine)
    if mount is None:
        return Check("pass", None, "", "the kernel's list of mounts cannot be read")
    said = f"{mount.kind} on {mount.source}"
    if mount.kind in IN_MEMORY:
        fix = "set data_dir to a directory on a disk; raspi-config switches an overlay file system off"
        return Check("fail", mount.kind, "", f"{said} is gone with the next reboot", "on a disk", fix)
    if "ro" in mount.options:
        fix = f"sudo mount -o remount,rw {mount.point}; if that fails, see 'medium_errors'"
        return Check("fail", mount.kind, "", f"{said} is mounted read-only", "rw", fix)
    if mount.card and "noatime" not in mount.options:
        fix = f"sudo mount -o remount,noatime {mount.point}, and put noatime into its line of /etc/fstab"
        return Check(
            "warn", mount.kind, "", f"{said}: every read wears the card with a write of its time", "noatime", fix
        )
    return Check("pass", mount.kind, "", said)


def errors_probe(machine: Machine) -> Check:
    """Errors that ext4 has noted in the file system itself; they stay noted until it was checked."""
    mount = find_mount(machine)
    text = (
        read_text(machine.root / "sys/fs/ext4" / mount.device / "errors_count") if mount and mount.device else ""
    )
    if not text.isdigit():
        return Check("pass", None, "errors", "this file system does not count its errors", 0)
    if int(text):
        fix = (
            "save what matters, then sudo sed -i '1s/$/ fsck.mode=force fsck.repair=yes/' "
            "/boot/firmware/cmdline.txt && sudo reboot; if it comes back, replace the card"
        )
        return Check("fail", int(text), "errors", f"ext4 found errors on {mount.source if mount else ''}", 0, fix)
    return Check("pass", 0, "errors", limit=0)


def wear_probe(machine: Machine) -> Check:
    """How much of its life an eMMC has used up, in percent."""
    mount = find_mount(machine)
    disk = re.sub(r"p\d+$", "", mount.device) if mount else ""
    folder = machine.root / "sys/block" / disk / "device"
    words = read_text(folder / "life_time").split() if disk else []
    used = max((int(word, 16) for word in words if re.fullmatch(r"0x[0-9a-fA-F]+", word)), default=0)
    ending = read_text(folder / "pre_eol_info") if disk else ""
    if not used:
        return Check("pass", None, "percent", "this medium does not tell its wear", 90)
    fix = "replace the medium; a copy: sudo dd if=/dev/<old> of=/dev/<new> bs=4M status=progress"
    if used >= _WORN_OUT or ending == "0x03":
        return Check("fail", min(10 * used, 110), "percent", "the medium is worn out", 90, fix)
    if used >= _WORN or ending == "0x02":
        return Check("warn", 10 * used, "percent", "the medium is nearly worn out", 90, fix)
    return Check("pass", 10 * used, "percent", limit=90)


def room_probe(machine: Machine) -> Check:
    """Free space where the data lies, or will lie."""
    path = machine.path(machine.settings.data_dir)
    while not path.exists() and path != path.parent:
        path = path.parent
    return disk_check(path, machine.settings.capture.min_free_bytes)


def _device(root: Path, number: str, source: str) -> str:
    try:
        return (root / "sys/dev/block" / number).resolve(strict=True).name
    except OSError:
        return source.removeprefix("/dev/") if source.startswith("/dev/") and source != "/dev/root" else ""
