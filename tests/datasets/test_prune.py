"""Old versions go, what the newer ones share with them stays."""

import subprocess
import sys
from pathlib import Path

import pytest

from brain_service.datasets.convert import ConvertReport, convert_directory_to_tfrecord
from brain_service.datasets.dataset import open_dataset
from brain_service.datasets.prune import prune_versions
from brain_service.datasets.versions import list_versions
from brain_service.errors import InvalidError, NotFoundError

from .logs import write_log


def _grow(root: Path, versions: int) -> list[ConvertReport]:
    """Convert a directory that grows by one episode a version."""
    reports = []
    for n in range(versions):
        write_log(root / "in" / f"e{n}.jsonl", seed=n, steps=40)
        reports.append(
            convert_directory_to_tfrecord(root / "in", root / "out", shard_bytes=9000, compress=n % 2 == 0)
        )
    return reports


def _require_whole(folder: Path) -> None:
    dataset = open_dataset(folder)
    for split in dataset.splits:
        for index in range(len(dataset.entries(split))):
            dataset.read(split, index)


def test_a_dry_run_tells_what_the_other_does(tmp_path: Path) -> None:
    reports = _grow(tmp_path, 4)
    folder = reports[0].dataset_dir.parent
    before = sorted(path.name for path in folder.iterdir())
    used_bytes = _used_bytes(folder)
    planned = prune_versions(folder, 2)
    assert (planned.removed, planned.kept, planned.dry_run) == (["1.0.0", "1.0.1"], ["1.0.2", "1.0.3"], True)
    assert sorted(path.name for path in folder.iterdir()) == before
    done = prune_versions(folder, 2, dry_run=False)
    assert (done.removed, done.kept, done.freed_bytes) == (planned.removed, planned.kept, planned.freed_bytes)
    assert used_bytes - _used_bytes(folder) == done.freed_bytes > 0
    assert sorted(path.name for path in folder.iterdir()) == [
        ".lock",
        ".sources.json",
        "1.0.2",
        "1.0.2-archive",
        "1.0.3",
    ]
    _require_whole(folder / "1.0.2")
    _require_whole(folder / "1.0.3")
    # The next conversion builds on what is left, and no version number comes twice.
    write_log(tmp_path / "in" / "late.jsonl", seed=9, steps=40)
    report = convert_directory_to_tfrecord(tmp_path / "in", tmp_path / "out", shard_bytes=9000)
    assert (report.version, report.episodes, report.new) == ("1.0.4", 5, ["late.jsonl"])
    assert prune_versions(folder, 5, dry_run=False).removed == []


def _used_bytes(folder: Path) -> int:
    """Return what the files take, each counted once however many names it has."""
    stats = {path.stat().st_ino: path.stat().st_size for path in folder.rglob("*") if path.is_file()}
    return sum(stats.values())


def test_each_profile_keeps_its_newest_and_damage_is_left_alone(tmp_path: Path) -> None:
    _grow(tmp_path, 3)
    convert_directory_to_tfrecord(tmp_path / "in", tmp_path / "out", profile="rlds")
    folder = tmp_path / "out" / "episodes"
    (folder / "1.0.0" / "manifest.json").write_bytes(b"{")
    done = prune_versions(folder, 1, dry_run=False)
    assert (done.removed, done.kept, done.damaged) == (["1.0.1"], ["1.0.2", "1.0.3"], ["1.0.0"])
    assert list_versions(folder) == ["1.0.0", "1.0.2", "1.0.3"]


def test_the_newest_is_never_removed_and_a_wrong_place_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidError, match="the newest version is never removed"):
        prune_versions(tmp_path, 0)
    with pytest.raises(NotFoundError, match="brain datasets ls"):
        prune_versions(tmp_path, 1)
    assert list(tmp_path.iterdir()) == []


def test_the_command_asks_for_yes(tmp_path: Path) -> None:
    _grow(tmp_path, 2)
    command = [sys.executable, "-m", "brain_service", "datasets", "prune", "episodes", "--keep", "1"]
    command += ["--output-dir", str(tmp_path / "out")]
    asked = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "would remove 1.0.0" in asked
    assert "--yes" in asked
    assert list_versions(tmp_path / "out" / "episodes") == ["1.0.0", "1.0.1"]
    done = subprocess.run([*command, "--yes"], capture_output=True, text=True, check=True).stdout
    assert done.startswith("removed 1.0.0")
    assert list_versions(tmp_path / "out" / "episodes") == ["1.0.1"]
