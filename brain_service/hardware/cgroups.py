"""The memory controller of Linux' control groups: whether it is there, and what limit this process is under.

Source: the kernel's Documentation/admin-guide/cgroup-v2. Raspberry Pi's firmware puts `cgroup_disable=memory` into
the kernel's command line on models with little memory: every `Memory*=` of a unit then does nothing, in silence.
"""

import contextlib
from dataclasses import dataclass
from pathlib import Path

__all__ = ["CgroupMemory", "read_cgroup_memory"]

ROOT = Path("/")


@dataclass(frozen=True)
class CgroupMemory:
    """The memory controller; `controller` is None where the machine has no unified hierarchy to ask."""

    controller: bool | None
    disabled_by_cmdline: bool
    limit_bytes: int | None
    """The tightest limit on the way up from this process's group; None for none."""
    used_bytes: int | None
    """What that group uses."""


def read_cgroup_memory(root: Path = ROOT) -> CgroupMemory:
    """Look below a file system's root; what is missing or odd counts as not there."""
    base = root / "sys/fs/cgroup"
    words = _text(root / "proc/cmdline").split()
    # The last one wins, as in the kernel.
    said = [word for word in words if word in ("cgroup_disable=memory", "cgroup_enable=memory")]
    disabled = bool(said) and said[-1] == "cgroup_disable=memory"
    controllers = base / "cgroup.controllers"
    if not controllers.is_file():
        return CgroupMemory(None, disabled, None, None)
    there = "memory" in _text(controllers).split()
    limit, used = _tightest(base, _own_group(root)) if there else (None, None)
    return CgroupMemory(there, disabled, limit, used)


def _own_group(root: Path) -> str:
    lines = [line for line in _text(root / "proc/self/cgroup").splitlines() if line.startswith("0::")]
    return lines[0].removeprefix("0::").strip("/") if lines else ""


def _tightest(base: Path, group: str) -> tuple[int | None, int | None]:
    found: tuple[int | None, int | None] = (None, None)
    parts = Path(group).parts
    if ".." in parts:
        # Seen from another namespace: the path says nothing here.
        parts = ()
    for depth in range(len(parts) + 1):
        folder = base.joinpath(*parts[:depth])
        limit, used = _number(folder / "memory.max"), _number(folder / "memory.current")
        if limit is not None and (found[0] is None or limit < found[0]):
            found = (limit, used)
    return found


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""


def _number(path: Path) -> int | None:
    with contextlib.suppress(ValueError):
        return int(_text(path))
    return None
