"""Check that every locked runtime dependency has a wheel for a Raspberry Pi: aarch64, CPython 3.11 and 3.13.

`pip download` evaluates environment markers for the interpreter it runs on, so the lock is filtered for the
target first. Exits 1 and names the package when one has no wheel, or when one is locked that a robot must do
without: TensorFlow and torch are gigabytes. Run it through `make check-wheels`.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from packaging.requirements import Requirement

LOCK = Path(__file__).with_name("runtime.txt")
PYTHONS = ("3.11", "3.13")
# Raspberry Pi OS Bookworm has glibc 2.36: every manylinux tag up to it installs there.
PLATFORMS = ["manylinux2014_aarch64", *(f"manylinux_2_{minor}_aarch64" for minor in range(17, 37))]

UNWANTED = ("tensorflow", "torch", "nvidia-", "triton", "libtpu")


def unwanted(requirements: list[str]) -> list[str]:
    """Return those that a robot must do without."""
    return [line for line in requirements if line.startswith(UNWANTED)]


def requirements_for(python: str, lock: Path = LOCK) -> list[str]:
    """Return the `name==version` lines of `lock` whose markers hold on a Pi with this Python (`3.13`)."""
    target = {
        "python_version": python,
        "python_full_version": f"{python}.0",
        "sys_platform": "linux",
        "platform_system": "Linux",
        "platform_machine": "aarch64",
        "implementation_name": "cpython",
        "platform_python_implementation": "CPython",
        "os_name": "posix",
        "extra": "",
    }
    lines = (line.strip() for line in lock.read_text().splitlines())
    parsed = [Requirement(line) for line in lines if line and not line.startswith("#")]
    return [f"{r.name}{r.specifier}" for r in parsed if r.marker is None or r.marker.evaluate(dict(target))]


def download(python: str, requirements: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    """Download the wheels for this Python on aarch64 into `folder`; sdists are refused."""
    tag = "cp" + python.replace(".", "")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--only-binary=:all:", "--dest", str(folder), "--python-version", python]
    command += ["--implementation", "cp", "--abi", tag, "--abi", "abi3", "--abi", "none"]
    for platform in PLATFORMS:
        command += ["--platform", platform]
    return subprocess.run([*command, *requirements], capture_output=True, text=True)


def main() -> int:
    """Check both Pythons and print a line each; return the exit code."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    status = 0
    for python in PYTHONS:
        requirements = requirements_for(python)
        if heavy := unwanted(requirements):
            status = 1
            print(f"CPython {python}: a robot does without {', '.join(heavy)}", file=sys.stderr)
        with tempfile.TemporaryDirectory() as folder:
            done = download(python, requirements, Path(folder))
            wheels = sorted(Path(folder).glob("*.whl"))
            size = sum(wheel.stat().st_size for wheel in wheels)
        if done.returncode == 0 and len(wheels) == len(requirements):
            print(f"CPython {python}, aarch64: {len(wheels)} wheels, {size / 1e6:.0f} MB")
        else:
            status = 1
            print(f"CPython {python}, aarch64: a wheel is missing\n{done.stderr.strip()}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
