"""The checks of machine and parts: what is within its limit passes, what is not names the reason and the fix."""

from pathlib import Path
from typing import Any

import pytest

from brain_service.hardware.cgroups import CgroupMemory, read_cgroup_memory
from brain_service.hardware.clock import ClockState, kernel_synchronised, read_clock
from brain_service.hardware.hailo_versions import HailoVersions, read_hailo_versions
from brain_service.hardware.thermals import Sensors
from brain_service.hardware.throttling import Throttling, read_throttling
from brain_service.health.check import Check
from brain_service.health.disk_probe import DiskView
from brain_service.health.host import (
    cgroup_check,
    clock_check,
    cpu_check,
    event_loop_check,
    host_checks,
    power_check,
    temperature_check,
    write_latency_check,
)
from brain_service.health.parts import (
    backends_check,
    hailo_check,
    last_error_check,
    latency_check,
    model_check,
    queue_check,
    uploads_check,
)
from tests.hardware.sysfs import write

NO_SENSORS = Sensors(None, None, None, None)
P99: dict[str, Any] = {"total_us": {"p50": 500.0, "p99": 900.0, "count": 10}, "deadline_misses": 0}
GONE = HailoVersions(None, None, ())
SAME, OTHER = HailoVersions("4.21.0", "4.21.0", ()), HailoVersions("4.20.0", "4.21.0", ())

CASES: list[tuple[Check, str, str]] = [
    (cgroup_check(CgroupMemory(False, True, None, None)), "warn", "cgroup_disable=memory"),
    (cgroup_check(CgroupMemory(True, False, 100, 95)), "warn", "90%"),
    (cgroup_check(CgroupMemory(True, False, 100, 50)), "pass", ""),
    (cgroup_check(CgroupMemory(None, False, None, None)), "pass", "no unified"),
    (cpu_check(2.0, 4), "pass", ""),
    (cpu_check(20.0, 4), "warn", "20.0 processes want 4 cores"),
    (temperature_check(NO_SENSORS), "pass", "no sensor"),
    (temperature_check(Sensors(79.9, None, None, None)), "pass", ""),
    (temperature_check(Sensors(80.0, None, None, None)), "warn", "slows down"),
    (temperature_check(Sensors(85.0, None, None, None)), "fail", "slows down hard"),
    (power_check(NO_SENSORS, None), "pass", "no sensor"),
    (power_check(Sensors(None, True, None, None), None), "warn", "now"),
    (power_check(NO_SENSORS, Throttling.of(0x50000)), "pass", "since boot: under-voltage, throttled"),
    (power_check(NO_SENSORS, Throttling.of(0x50005)), "warn", "now; since boot"),
    (clock_check(ClockState(True, True, 2026)), "pass", ""),
    (clock_check(ClockState(None, True, 2026)), "pass", "nobody"),
    (clock_check(ClockState(False, True, 2026)), "warn", "no time server"),
    (clock_check(ClockState(None, False, 1970)), "warn", "1970"),
    (clock_check(ClockState(True, True, 2025), 365 * 86_400.0), "warn", "set back"),
    (event_loop_check(0.002), "pass", ""),
    (event_loop_check(0.4), "warn", "400 ms"),
    (write_latency_check(DiskView(None, 0.0, "")), "pass", "not measured yet"),
    (write_latency_check(DiskView(0.02, 0.0, "")), "pass", ""),
    (write_latency_check(DiskView(0.9, 0.0, "")), "warn", "900 ms"),
    (write_latency_check(DiskView(0.02, 12.0, "")), "fail", "waiting for 12 s"),
    (write_latency_check(DiskView(0.02, 0.0, "cannot write: Read-only file system")), "fail", "Read-only"),
    (latency_check(P99, 20.0), "pass", ""),
    (latency_check(P99, 0.5), "warn", "too late"),
    (latency_check({"total_us": {"p99": None}}, 20.0), "pass", "no action"),
    (
        backends_check({"why": [{"backend": "hailo", "reason": "no /dev/hailo0"}], "backend": "jax-cpu"}),
        "pass",
        "hailo0",
    ),
    (backends_check({"warnings": ["backend onnx-cpu stands in for jax-cpu: it died"]}), "warn", "stands in"),
    (hailo_check(None, False, GONE, None), "pass", "not present"),
    (hailo_check(None, True, SAME, {"firmware": "4.21.0", "temperature_c": 61.0}), "pass", "firmware 4.21.0"),
    (hailo_check(None, True, OTHER, None), "warn", "4.20.0"),
    (hailo_check("no /dev/hailo0", True, SAME, None), "warn", "no /dev/hailo0"),
    (hailo_check(None, True, SAME, {"warning": "Hailo: 99 C", "temperature_c": 99.0}), "warn", "99 C"),
    (model_check(None, None), "pass", "no model"),
    (model_check(10**9, "m1", now_s=86_401.0), "pass", "m1"),
    (queue_check({("train", "queued"): 2, ("convert", "failed"): 1}), "pass", "1 failed"),
    (uploads_check({}), "pass", ""),
    (uploads_check({"waiting": 3}), "pass", ""),
    (uploads_check({"waiting": 3, "failed": 1}), "warn", "1 failed"),
    (last_error_check(None), "pass", "none"),
    (last_error_check((100.0, "the worker died"), now_s=130.0), "warn", "the worker died"),
    (last_error_check((100.0, "the worker died"), now_s=1000.0), "pass", "the worker died"),
]


@pytest.mark.parametrize(("check", "status", "reason"), CASES)
def test_a_state_becomes_its_status(check: Check, status: str, reason: str) -> None:
    assert check.status == status
    assert reason in check.reason
    assert check.status == "pass" or check.fix or "99 C" in check.reason
    assert model_check(10**9, "m1", now_s=86_401.0).observed_value == 1.0
    assert queue_check({("train", "queued"): 2}).observed_value == 2


def test_this_machine_can_be_looked_at() -> None:
    found = host_checks()
    assert set(found) == {"cgroup", "cpu", "temperature", "power", "clock"}
    assert found["clock"].status != "fail"
    assert kernel_synchronised() in (True, False, None)


def test_the_tightest_limit_on_the_way_up_counts(tmp_path: Path) -> None:
    group = tmp_path / "sys/fs/cgroup"
    write(group / "cgroup.controllers", "cpu memory")
    write(tmp_path / "proc/self/cgroup", "0::/system.slice/brain.service")
    write(group / "memory.max", "max")
    write(group / "system.slice/memory.max", "1000")
    write(group / "system.slice/memory.current", "400")
    write(group / "system.slice/brain.service/memory.max", "2000")
    found = read_cgroup_memory(tmp_path)
    assert found == CgroupMemory(True, False, 1000, 400)
    write(tmp_path / "proc/self/cgroup", "0::/../../elsewhere")
    assert read_cgroup_memory(tmp_path).limit_bytes is None


def test_the_last_word_of_the_command_line_wins(tmp_path: Path) -> None:
    write(tmp_path / "proc/cmdline", "cgroup_disable=memory cgroup_enable=memory")
    assert not read_cgroup_memory(tmp_path).disabled_by_cmdline
    write(tmp_path / "proc/cmdline", "cgroup_enable=memory cgroup_disable=memory")
    assert read_cgroup_memory(tmp_path).disabled_by_cmdline


def test_the_firmware_is_read_from_sysfs_before_any_command_is_asked(tmp_path: Path) -> None:
    assert read_throttling(tmp_path / "none") is None
    assert read_throttling(tmp_path / "none", lambda: 0x1) == Throttling(("under-voltage",), ())
    write(tmp_path / "devices/platform/soc/soc:firmware/get_throttled", "80000")
    found = read_throttling(tmp_path, lambda: pytest.fail("not asked"))
    assert found == Throttling((), ("soft temperature limit",))


def test_versions_of_a_hailo_come_from_its_files(tmp_path: Path) -> None:
    write(tmp_path / "sys/module/hailo_pci/version", "4.21.0")
    write(tmp_path / "usr/lib/libhailort.so.4.9.0", "")
    write(tmp_path / "usr/lib/libhailort.so.4.21.0", "")
    write(tmp_path / "lib/firmware/hailo/hailo8_fw.4.21.0.bin", "")
    found = read_hailo_versions(tmp_path / "sys", tmp_path)
    assert found == HailoVersions("4.21.0", "4.21.0", ("hailo8_fw.4.21.0.bin",))
    assert found.mismatch == ""
    assert HailoVersions("4.20.0", None, ()).mismatch == "", "what is unknown is no mismatch"


def test_a_time_daemons_stamp_counts_more_than_the_kernel(tmp_path: Path) -> None:
    assert read_clock(tmp_path, kernel=False).synchronised is False
    write(tmp_path / "run/systemd/timesync/synchronized", "")
    assert read_clock(tmp_path, kernel=False).synchronised is True
    assert not read_clock(tmp_path, now_s=0.0).plausible
