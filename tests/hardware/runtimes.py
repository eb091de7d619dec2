"""A robot as the probes meet it: device files in folders, and packages that real child processes import."""

from pathlib import Path

import pytest

from brain_service.hardware.detection import Machine

GOOD_TORCH = """
class Tensor(list):
    grad = None
    def __matmul__(self, other): return self
    def sum(self): return self
    def backward(self): self.grad = Tensor([[2.0] * 4] * 4)
    def tolist(self): return list(self)
__version__ = "2.13.0+fake"
def eye(size, requires_grad): return Tensor()
"""
WRONG_TORCH = GOOD_TORCH.replace("2.0", "float('nan')")
OLD_TORCH = GOOD_TORCH.replace("2.13.0+fake", "2.0.1")
CUDA_TORCH = "raise ImportError('libcudart.so.13: cannot open shared object file: No such file or directory')"
GONE_TORCH = "raise ModuleNotFoundError(\"No module named 'torch'\", name='torch')"
CRASHING_TORCH = "import os, signal; os.kill(os.getpid(), signal.SIGILL)"
HANGING_TORCH = "import time; time.sleep(600)"

GOOD_JAX = """
__version__ = "0.10.0"
class Device:
    device_kind, id = "fake {platform}", 0
def devices():
    import os
    if os.environ["JAX_PLATFORMS"] not in {platforms!r}:
        raise RuntimeError("Unable to initialize backend")
    Device.device_kind = "fake " + os.environ["JAX_PLATFORMS"]
    return [Device]
"""
BROKEN_JAX = "raise ImportError('jaxlib was built for AVX, which this processor has not')"


def jax_on(*platforms: str) -> str:
    """Return the source of a `jax` that has devices of these platforms."""
    return GOOD_JAX.replace("{platforms!r}", repr(platforms))


class Robot:
    """One machine below a folder; packages that are installed here come first for every child process."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.counts = folder / "counts"
        self.counts.mkdir(parents=True)
        self._packages = folder / "packages"
        self._packages.mkdir()
        monkeypatch.setenv("PYTHONPATH", str(self._packages))

    def machine(self, *, cache_dir: Path | None = None, timeout_s: float = 60.0) -> Machine:
        return Machine(self.folder / "sys", self.folder / "dev", self.folder, timeout_s, cache_dir)

    def install(self, package: str, source: str) -> None:
        """Put a package in the place of the real one; each import of it is counted."""
        path = self._packages / f"{package}.py"
        count = f"import pathlib; pathlib.Path({str(self.counts / package)!r}).open('a').write('x')\n"
        path.write_text(count + source)

    def imports(self, package: str) -> int:
        """Return how often child processes have imported it."""
        path = self.counts / package
        return len(path.read_text()) if path.exists() else 0

    def add_pci(self, vendor: int, device: int, address: str = "0000:01:00.0") -> None:
        folder = self.folder / "sys/bus/pci/devices" / address
        folder.mkdir(parents=True)
        (folder / "vendor").write_text(f"{vendor:#06x}\n")
        (folder / "device").write_text(f"{device:#06x}\n")

    def add_tpu(self) -> None:
        self.add_pci(0x1AE0, 0x0063, "0000:05:00.0")

    def add_hailo(self) -> None:
        self.add_pci(0x1E60, 0x2864)
        (self.folder / "dev").mkdir()
        (self.folder / "dev/hailo0").touch()
