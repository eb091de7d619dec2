"""The units as systemd itself judges them."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.systemd.harness import UNITS, read_unit

SERVICES = ("continuon-brain", "continuon-brain-jobs")

needs_systemd = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed"
)


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The units as they would be installed, but with programs that exist here."""
    folder = tmp_path_factory.mktemp("units")
    for unit in UNITS.glob("continuon*.*"):
        text = re.sub(r"^(ExecStart=)\S+", r"\1/bin/true", unit.read_text(), flags=re.MULTILINE)
        (folder / unit.name).write_text(text)
    return folder


@needs_systemd
def test_systemd_finds_nothing_to_say_about_the_units(installed: Path) -> None:
    units = [str(path) for kind in ("service", "socket", "slice") for path in sorted(installed.glob(f"*.{kind}"))]
    assert len(units) == 4
    done = subprocess.run(
        ["systemd-analyze", "verify", *units],
        capture_output=True,
        text=True,
        env={"SYSTEMD_UNIT_PATH": f"{installed}:", "PATH": "/usr/bin:/bin"},
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


@needs_systemd
@pytest.mark.parametrize(("service", "limit"), [("continuon-brain", 1.6), ("continuon-brain-jobs", 1.6)])
def test_little_of_the_system_is_exposed(installed: Path, service: str, limit: float) -> None:
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", str(installed / f"{service}.service")],
        capture_output=True,
        text=True,
    )
    exposure = re.search(r"exposure level for .*: ([0-9.]+)", done.stdout)
    assert exposure, done.stdout + done.stderr
    assert float(exposure[1]) <= limit, done.stdout


@needs_systemd
@pytest.mark.parametrize("service", SERVICES)
def test_what_is_left_open_has_its_reason_in_the_unit(installed: Path, service: str) -> None:
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", str(installed / f"{service}.service")],
        capture_output=True,
        text=True,
    )
    text = (UNITS / f"{service}.service").read_text()
    open_ones = re.findall(r"^✗ ([A-Za-z]+)=", done.stdout, re.MULTILINE)
    assert open_ones
    for name in open_ones:
        # Set to something, with a comment above or beside it, or named among what is left out.
        assert re.search(rf"^(# )?{name}=", text, re.MULTILINE), f"{name}: {done.stdout}"


@pytest.mark.parametrize("service", SERVICES)
def test_no_unit_forbids_what_xla_and_the_runner_need(service: str) -> None:
    unit = read_unit(f"{service}.service")
    assert "MemoryDenyWriteExecute" not in unit
    allowed = unit["SystemCallFilter"][-1].split()
    assert {"sched_setscheduler", "ioprio_set"} <= set(allowed)
    assert unit["NoNewPrivileges"] == ["yes"]


def test_the_daemon_outlives_memory_and_crashes_and_the_jobs_do_not_outrank_it() -> None:
    daemon, jobs = (read_unit(f"{service}.service") for service in SERVICES)
    assert daemon["OOMPolicy"] == ["continue"]
    assert int(daemon["OOMScoreAdjust"][0]) < 0 < int(jobs["OOMScoreAdjust"][0])
    assert daemon["StartLimitIntervalSec"] == ["0"]
    (name,) = jobs["Slice"]
    # A dash would nest it, and its weight would count against nobody.
    assert "-" not in name
    assert read_unit(name)["CPUWeight"] == ["idle"]
    assert daemon["Environment"] == jobs["Environment"], "both read the same settings"


@pytest.mark.skipif(shutil.which("systemd-tmpfiles") is None, reason="systemd-tmpfiles is not installed")
def test_accounts_and_directories_are_made_by_systemds_own_tools(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    for folder, name in (("sysusers.d", "sysusers"), ("tmpfiles.d", "tmpfiles")):
        place = tmp_path / "usr/lib" / folder
        place.mkdir(parents=True)
        shutil.copy(UNITS / f"continuon-brain.{name}.conf", place / "continuon-brain.conf")
    for command in (("systemd-sysusers",), ("systemd-tmpfiles", "--create")):
        done = subprocess.run(
            [*command, f"--root={tmp_path}", "continuon-brain.conf"], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
    account = next(line for line in (tmp_path / "etc/passwd").read_text().splitlines() if "continuon" in line)
    assert account.endswith(":/var/lib/continuon-brain:/usr/sbin/nologin")
    data = (tmp_path / "var/lib/continuon-brain").stat()
    assert (oct(data.st_mode & 0o777), str(data.st_uid)) == ("0o750", account.split(":")[2])


def test_the_hailo_belongs_to_the_daemons_group_alone() -> None:
    rules = (UNITS / "60-continuon-brain.rules").read_text()
    (rule,) = [line for line in rules.splitlines() if not line.startswith("#")]
    assert 'GROUP="continuon"' in rule
    assert 'MODE="0660"' in rule
    assert "uaccess" not in rule
    assert "/dev/hailo0 rw" in read_unit("continuon-brain.service")["DeviceAllow"]
