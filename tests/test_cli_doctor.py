"""`brain doctor`: a table with a fix below each finding, JSON, and an exit code for scripts."""

import json
from pathlib import Path

import pytest

from brain_service.cli import main
from tests.hardware.sysfs import write
from tests.health.robot import healthy_root


def test_it_finds_what_the_installed_unit_uses_and_exits_by_the_worst(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = healthy_root(tmp_path)
    assert main(["doctor", "--root", str(root), "--json"]) in (0, 1, 2)
    found = json.loads(capsys.readouterr().out)
    # Of the unit's own data directory, not of whoever asks.
    assert found["checks"]["last_start"][0]["reason"] == "the last start is healthy"
    assert set(found["checks"]["mount"][0]) >= {
        "status",
        "observed_value",
        "observed_unit",
        "limit",
        "reason",
        "fix",
    }
    write(root / "sys/fs/ext4/mmcblk0p2/errors_count", "1")
    assert main(["doctor", "--root", str(root)]) == 2
    lines = capsys.readouterr().out.splitlines()
    (at,) = [number for number, line in enumerate(lines) if "medium_errors" in line]
    assert lines[at].startswith("fail")
    assert lines[at + 1].strip().startswith("fix: ")
    assert "fsck" in lines[at + 1]


def test_broken_settings_are_one_of_its_findings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "brain.toml").write_text("prot = 8080\n")
    root = tmp_path / "root"
    root.mkdir()
    healthy_root(root)
    assert main(["doctor", "--root", str(root), "--config", str(tmp_path / "brain.toml"), "--json"]) == 2
    check = json.loads(capsys.readouterr().out)["checks"]["settings"][0]
    assert check["status"] == "fail"
    assert "port" in check["reason"], "the nearest known key is named"


def test_on_this_very_machine_it_looks_at_everything(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["doctor", "--data-dir", str(tmp_path), "--json"])
    found = json.loads(capsys.readouterr().out)
    assert code == {"pass": 0, "warn": 1, "fail": 2}[found["status"]]
    assert found["checks"]["packages"][0]["status"] == "pass"
    for name, (check,) in found["checks"].items():
        assert check["status"] == "pass" or check["fix"], f"{name} is not well and has no fix"
