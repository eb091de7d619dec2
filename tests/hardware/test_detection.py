"""Which accelerators a machine has: device files, PCI ids and packages as files, runtimes as real processes."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from brain_service.hardware import accelerators, detect_jax_backends, probes

PROJECT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def ask_afresh() -> Iterator[None]:
    probes.forget()
    yield
    probes.forget()


@pytest.fixture
def no_jax(monkeypatch: pytest.MonkeyPatch) -> None:
    """Answer for JAX's child process, so that only the rest is looked at."""
    asked = probes._run

    def answer(command: tuple[str, ...], environment: dict[str, str], timeout_s: float) -> dict[str, Any]:
        if "brain_service.hardware.jax_probe" in command:
            return {"version": "0", "devices": [f"{environment['JAX_PLATFORMS']} 0"]}
        return asked(command, environment, timeout_s)

    monkeypatch.setattr(probes, "_run", answer)


def add_pci(root: Path, vendor: int, device: int, address: str = "0000:01:00.0") -> None:
    folder = root / "sys/bus/pci/devices" / address
    folder.mkdir(parents=True)
    (folder / "vendor").write_text(f"{vendor:#06x}\n")
    (folder / "device").write_text(f"{device:#06x}\n")


def add_hailo(root: Path, script: str) -> None:
    """A Pi with an AI HAT+ whose system Python runs `script`."""
    add_pci(root, 0x1E60, 0x2864)
    (root / "dev").mkdir()
    (root / "dev/hailo0").touch()
    (root / "usr/lib/python3/dist-packages/hailo_platform").mkdir(parents=True)
    python = root / "usr/bin/python3"
    python.parent.mkdir(parents=True)
    python.write_text(f"#!/bin/sh\n{script}\n")
    python.chmod(0o755)


def detect(root: Path, **options: Any) -> dict[str, Any]:
    return detect_jax_backends(sysfs=root / "sys", dev=root / "dev", root=root, **options)


def test_a_bare_machine_has_jax_on_its_cpu_and_says_what_lacks_for_the_rest(tmp_path: Path) -> None:
    found = detect(tmp_path)
    assert found.keys() == {"backends", "best_for_training", "best_for_inference"}
    backends = found["backends"]
    assert backends.keys() == {"cpu", "gpu", "tpu", "hailo"}
    assert backends["cpu"]["available"] and backends["cpu"]["reason"] is None
    assert backends["cpu"]["devices"] == ["cpu 0"] and "jax" in backends["cpu"]["runtimes"]
    for name, reason in (("gpu", "nvidia0"), ("tpu", "0x1ae0"), ("hailo", "0x1e60")):
        assert not backends[name]["available"] and reason in backends[name]["reason"]
    for reason in ("PCI vendor", "hailo0", "apt install hailo-all"):
        assert reason in backends["hailo"]["reason"]
    assert found["best_for_training"] == found["best_for_inference"] == "cpu"
    json.dumps(found)


@pytest.mark.usefixtures("no_jax")
def test_a_hailo_is_found_by_pci_id_device_file_and_runtime(tmp_path: Path) -> None:
    add_hailo(tmp_path, """echo 'a banner'; echo '{"version": "4.23.0"}'""")
    found = detect(tmp_path)
    hailo = found["backends"]["hailo"]
    assert hailo["available"] and hailo["reason"] is None
    assert hailo["devices"] == ["Hailo-8 or 8L at 0000:01:00.0"]
    assert hailo["runtime"]["version"] == "4.23.0"
    assert found["best_for_inference"] == "hailo" and found["best_for_training"] == "cpu"
    assert accelerators.hailo_obstacle(tmp_path / "sys", tmp_path / "dev", tmp_path) is None


@pytest.mark.usefixtures("no_jax")
@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("echo 'ImportError: libhailort.so.4.23.0' >&2; exit 1", "libhailort.so"),
        ("kill -SEGV $$", "exit code -11"),
        ("exit 0", "it printed nothing"),
        ("exec sleep 600", "no answer within"),
    ],
)
def test_a_runtime_that_fails_is_a_reason_and_not_an_error(tmp_path: Path, script: str, reason: str) -> None:
    add_hailo(tmp_path, script)
    hailo = detect(tmp_path, timeout_s=2.0)["backends"]["hailo"]
    assert not hailo["available"] and hailo["reason"].startswith("runtime: ") and reason in hailo["reason"]


@pytest.mark.parametrize("missing", ["sys/bus/pci/devices/0000:01:00.0/vendor", "dev/hailo0"])
def test_a_hailo_without_one_of_its_parts_is_not_usable(tmp_path: Path, missing: str) -> None:
    add_hailo(tmp_path, "exit 0")
    (tmp_path / missing).unlink()
    reason = accelerators.hailo_obstacle(tmp_path / "sys", tmp_path / "dev", tmp_path)
    assert reason is not None and ("hailo0" if "dev" in missing[:3] else "PCI") in reason


@pytest.mark.skipif(os.geteuid() == 0, reason="root may use every device file")
def test_a_device_file_without_permission_is_a_reason(tmp_path: Path) -> None:
    add_hailo(tmp_path, "exit 0")
    (tmp_path / "dev/hailo0").chmod(0)
    reason = accelerators.hailo_obstacle(tmp_path / "sys", tmp_path / "dev", tmp_path)
    assert reason is not None and "no permission" in reason


def test_a_gpu_and_a_tpu_need_their_packages_as_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev/nvidiactl").touch()
    add_pci(tmp_path, 0x1AE0, 0x0063)
    installed = {"jax"}
    monkeypatch.setattr(accelerators, "find_spec", lambda name: name in installed)
    assert "CUDA plugin" in (accelerators.gpu_obstacle(tmp_path / "dev") or "")
    assert "libtpu is not installed" in (accelerators.tpu_obstacle(tmp_path / "sys") or "")
    installed |= {"jax_cuda12_plugin", "libtpu"}
    assert accelerators.gpu_obstacle(tmp_path / "dev") is None
    assert accelerators.tpu_obstacle(tmp_path / "sys") is None


def test_a_platform_that_jax_cannot_start_is_told_in_its_words() -> None:
    answer = probes._run(
        (sys.executable, "-m", "brain_service.hardware.jax_probe"), {"JAX_PLATFORMS": "cuda"}, 60.0
    )
    assert "no device of platform 'cuda'" in answer["error"]


@pytest.mark.usefixtures("no_jax")
def test_what_a_runtime_answered_is_kept_for_a_while(tmp_path: Path) -> None:
    count = tmp_path / "count"
    add_hailo(tmp_path, f"""echo x >> {count}; echo '{{"version": "5.2"}}'""")
    for _ in range(3):
        assert detect(tmp_path)["backends"]["hailo"]["available"]
    assert count.read_text() == "x\n"


def test_it_imports_no_runtime_into_its_own_process() -> None:
    code = (
        "import sys; from brain_service import detect_jax_backends; "
        "found = detect_jax_backends(); assert found['backends']['cpu']['available'], found; print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=PROJECT)
    loaded = {name.split(".")[0] for name in done.stdout.split()}
    assert not loaded & {"jax", "jaxlib", "onnxruntime", "hailo_platform", "tensorflow", "torch"}
