"""A cheap look at what a machine has to compute with: device files, PCI ids, packages. Nothing is loaded.

Each function returns why a device cannot be used, with the next step, or None where nothing speaks against it.
Sources: PCI vendors as in Hailo's driver (`pcie_common.h`) and in JAX (`hardware_utils`).
"""

import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

__all__ = ["gpu_obstacle", "hailo_obstacle", "hailo_parts", "package_obstacle", "tpu_obstacle"]

SYSFS, DEV, ROOT = Path("/sys"), Path("/dev"), Path("/")

HAILO_VENDOR, GOOGLE_VENDOR = 0x1E60, 0x1AE0
# The 8L has the id of the 8; only its firmware tells them apart.
HAILO_NAMES = {0x2864: "Hailo-8 or 8L", 0x45C4: "Hailo-10H", 0x43A2: "Hailo-15L", 0x26A2: "Hailo-10H (Mars)"}

_NVIDIA_FILES = ("nvidia0", "nvidiactl", "dxg")
_CUDA_PLUGINS = ("jax_cuda12_plugin", "jax_cuda13_plugin")
# Raspberry Pi OS installs HailoRT for the system's own Python.
_HAILO_PLACES = ("usr/lib/python3/dist-packages", "usr/local/lib/python3.*/dist-packages")


def package_obstacle(package: str) -> str | None:
    """Tell whether a package is missing from this interpreter; it is not imported."""
    return None if find_spec(package) else f"{package} is not installed; pip install {package}"


def gpu_obstacle(dev: Path = DEV) -> str | None:
    """Look for an NVIDIA driver's device file and JAX's CUDA plugin."""
    if not any((dev / name).exists() for name in _NVIDIA_FILES):
        return f"no NVIDIA GPU: none of {', '.join(_NVIDIA_FILES)} is in {dev}"
    if not any(find_spec(plugin) for plugin in _CUDA_PLUGINS):
        return "a GPU is there, but not JAX's CUDA plugin; pip install 'jax[cuda12]'"
    return package_obstacle("jax")


def tpu_obstacle(sysfs: Path = SYSFS) -> str | None:
    """Look for a TPU on the PCI bus and for libtpu."""
    if not _pci_devices(GOOGLE_VENDOR, sysfs):
        return f"no TPU: no device of PCI vendor {GOOGLE_VENDOR:#06x} in {sysfs / 'bus/pci/devices'}"
    return package_obstacle("libtpu") or package_obstacle("jax")


def hailo_obstacle(sysfs: Path = SYSFS, dev: Path = DEV, root: Path = ROOT) -> str | None:
    """Look for a Hailo: on the PCI bus, its device file, its Python package below `root`."""
    reasons = [part["reason"] for part in hailo_parts(sysfs, dev, root).values() if part["reason"]]
    return "; ".join(reasons) or None


def hailo_parts(sysfs: Path = SYSFS, dev: Path = DEV, root: Path = ROOT) -> dict[str, dict[str, Any]]:
    """Return `pci`, `device_node` and `runtime`: what was `found`, and the `reason` where it is not usable."""
    chips = _pci_devices(HAILO_VENDOR, sysfs)
    nodes = sorted(dev.glob("hailo[0-9]*"))
    packages = [place for pattern in _HAILO_PLACES for place in sorted(root.glob(f"{pattern}/hailo_platform"))]
    return {
        "pci": {
            "found": [
                {"address": address, "device": f"{device:#06x}", "name": HAILO_NAMES.get(device, "unknown Hailo")}
                for address, device in chips
            ],
            "reason": None
            if chips
            else f"no device of PCI vendor {HAILO_VENDOR:#06x} in {sysfs / 'bus/pci/devices'}: is the HAT "
            "seated and PCIe on (raspi-config)?",
        },
        "device_node": {"found": [str(node) for node in nodes], "reason": _node_reason(nodes, dev)},
        "runtime": {
            "found": [str(package) for package in packages],
            "reason": None
            if packages
            else "the system's Python has no hailo_platform: apt install hailo-all (hailo-h10-all for the HAT+ 2)",
        },
    }


def _node_reason(nodes: list[Path], dev: Path) -> str | None:
    if not nodes:
        return f"no {dev / 'hailo0'}: is the driver loaded (lsmod | grep hailo)?"
    if not os.access(nodes[0], os.R_OK | os.W_OK):
        return f"no permission to use {nodes[0]}: check its group and the udev rule"
    return None


def _pci_devices(vendor: int, sysfs: Path) -> list[tuple[str, int]]:
    """Return address and device id of each PCI device of a vendor."""
    found = []
    for folder in sorted(sysfs.glob("bus/pci/devices/*")):
        try:
            if int((folder / "vendor").read_text(), 16) == vendor:
                found.append((folder.name, int((folder / "device").read_text(), 16)))
        except (OSError, ValueError):
            continue
    return found
