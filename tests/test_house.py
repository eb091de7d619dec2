"""The house keeps its own rules: public surfaces, locks without hosts, wheels for the robot."""

import importlib
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).parent.parent

_spec = importlib.util.spec_from_file_location("check_wheels", PROJECT / "deploy" / "locks" / "check_wheels.py")
assert _spec is not None and _spec.loader is not None
check_wheels = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(check_wheels)

PACKAGES = [
    "brain_service",
    *(f"brain_service.{path.parent.name}" for path in sorted((PROJECT / "brain_service").glob("*/__init__.py"))),
]


@pytest.mark.parametrize("name", PACKAGES)
def test_a_public_surface_is_sorted_and_every_name_imports(name: str) -> None:
    package = importlib.import_module(name)
    assert package.__doc__, f"{name} says what it is for"
    # As ruff sorts: constants, then classes, then functions, each by name.
    order = sorted(package.__all__, key=lambda n: (not n.isupper(), not n[0].isupper(), n))
    assert list(package.__all__) == order
    for public in package.__all__:
        assert getattr(package, public) is not None


def test_an_unknown_public_name_is_an_attribute_error() -> None:
    package = importlib.import_module("brain_service")
    with pytest.raises(AttributeError, match="CoreModle"):
        package.CoreModle  # noqa: B018


@pytest.mark.parametrize("lock", ["runtime", "demo", "dev", "fleet"])
def test_a_lock_is_exact_and_names_no_host(lock: str) -> None:
    lines = (PROJECT / "deploy" / "locks" / f"{lock}.txt").read_text().splitlines()
    assert len(lines) > 30
    for line in lines:
        assert re.fullmatch(r"[a-z0-9._-]+==[^ ]+( ; .+)?", line), line


def test_what_a_robot_installs_is_what_the_tests_ran() -> None:
    locks = {
        lock: set((PROJECT / "deploy" / "locks" / f"{lock}.txt").read_text().splitlines())
        for lock in ("runtime", "demo", "dev")
    }
    assert locks["runtime"] <= locks["demo"] <= locks["dev"]


def test_the_ci_script_runs_what_the_readme_says() -> None:
    commands = re.findall(r"^```sh\n(make test)\n```$", (PROJECT / "README.md").read_text(), re.MULTILINE)
    assert commands == ["make test"]


@pytest.mark.parametrize("python", check_wheels.PYTHONS)
def test_a_robot_installs_neither_tensorflow_nor_torch(python: str) -> None:
    locked = check_wheels.requirements_for(python)
    assert len(locked) > 50
    assert check_wheels.unwanted(locked) == []
    assert check_wheels.unwanted(["torch==2.13.0", "torch-geometric==1", "numpy==2.3"]) == [
        "torch==2.13.0",
        "torch-geometric==1",
    ]


@pytest.mark.wheels
def test_every_runtime_dependency_has_an_aarch64_wheel() -> None:
    done = subprocess.run(
        [sys.executable, str(PROJECT / "deploy" / "locks" / "check_wheels.py")], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("wheels") == 2
