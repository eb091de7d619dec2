"""`brain pipeline`: the loop by hand, and by a running daemon."""

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from brain_service.jobs.table import JobTable
from tests.jobs.recordings import write_episodes
from tests.processes import Daemon


def pipeline(*arguments: str, expected: int = 0) -> list[dict[str, object]]:
    command = [sys.executable, "-m", "brain_service", "pipeline", "--json", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == expected, done.stderr
    reports: list[dict[str, object]] = json.loads(done.stdout)
    return reports


def test_a_dry_run_tells_every_step_and_makes_nothing(tmp_path: Path) -> None:
    write_episodes(tmp_path / "episodes", 3, 2)
    reports = pipeline("--data-dir", str(tmp_path), "--dry-run", "--steps", "7")
    assert [report["name"] for report in reports] == [
        *("health", "convert_tfrecord", "train_local", "evaluate", "export")
    ]
    assert [report["status"] for report in reports] == ["done", *["skipped"] * 4]
    assert "--steps 7" in str(reports[2]["command"])
    assert [path.name for path in tmp_path.iterdir()] == ["episodes"]


def test_the_steps_that_are_named_are_those_that_are_taken(tmp_path: Path) -> None:
    write_episodes(tmp_path / "in", 3, 2)
    out = tmp_path / "rlds"
    reports = pipeline(
        *("--data-dir", str(tmp_path), "--episodes-dir", str(tmp_path / "in"), "--tfrecord-dir", str(out)),
        *("--health", "--convert-tfrecord"),
    )
    assert [(report["name"], report["status"]) for report in reports] == [
        ("health", "done"),
        ("convert_tfrecord", "done"),
    ]
    assert (out / "episodes" / "1.0.0" / "dataset_info.json").is_file()
    # What it names does the same by hand: there is nothing new to convert.
    words = shlex.split(str(reports[1]["command"]))[1:]
    again = subprocess.run([sys.executable, "-m", "brain_service", *words], capture_output=True, check=True)
    assert json.loads(again.stdout)["reused"]


def test_a_step_that_fails_ends_it_with_the_reason(tmp_path: Path) -> None:
    reports = pipeline("--data-dir", str(tmp_path), "--episodes-dir", str(tmp_path / "none"), expected=2)
    assert [report["status"] for report in reports] == ["done", "failed"]


def test_without_a_daemon_the_url_is_named(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "brain_service", "pipeline", "--url", "http://127.0.0.1:9"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "brain serve" in done.stderr


@pytest.mark.long
def test_a_daemon_rehearses_it_and_nothing_is_trained(tmp_path: Path) -> None:
    write_episodes(tmp_path / "brain" / "episodes", 3, 2)
    daemon = Daemon(tmp_path / "brain").start()
    try:
        reports = pipeline("--url", daemon.url, "--dry-run", "--steps", "9")
    finally:
        daemon.stop()
    assert [report["name"] for report in reports][:4] == ["health", "inventory", "convert", "train"]
    assert [report["status"] for report in reports] == ["done", "done", *["skipped"] * 6]
    assert "brain train" in str(reports[3]["command"]) and "--steps 9" in str(reports[3]["command"])
    assert not (tmp_path / "brain" / "checkpoints").exists()
    table = JobTable(tmp_path / "brain" / "brain.db")
    assert table.latest(("pipeline",)) is None
    assert table.list().jobs[0].result["dry_run"]
    table.close()
