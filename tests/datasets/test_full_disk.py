"""A medium that fills up while something is written to it: one error with the next step, and nothing half-done."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from brain_service.cli import main
from brain_service.datasets.convert import convert_directory_to_tfrecord
from brain_service.datasets.formats import export_dataset, import_dataset
from brain_service.errors import UnavailableError
from brain_service.settings import CaptureSettings

from .recording import record_many

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mounting a file system needs root")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("this container may not mount")
    try:
        yield disk
    finally:
        subprocess.run(["umount", disk], check=True)


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """A version of twelve episodes."""
    record_many(tmp_path / "in", [90] * 12)
    return convert_directory_to_tfrecord(tmp_path / "in", tmp_path / "out").dataset_dir


@pytest.mark.parametrize("format", ["lerobot", "mcap"])
def test_an_export_leaves_nothing(disk: Path, dataset: Path, format: str) -> None:
    with pytest.raises(UnavailableError, match="free space"):
        export_dataset(dataset, disk / "new", format, fps=20)
    assert os.listdir(disk) == []


def test_an_import_keeps_what_came_in_and_goes_on_where_it_stopped(
    disk: Path, dataset: Path, tmp_path: Path
) -> None:
    # Capture keeps a reserve, and what is imported is captured.
    reserve_bytes = CaptureSettings().min_free_bytes
    subprocess.run(["mount", "-o", f"remount,size={reserve_bytes + 100 * 1024}", disk], check=True)
    with pytest.raises(UnavailableError, match="kept in reserve"):
        import_dataset(dataset, disk / "episodes", "rlds")
    kept = [path.name for path in (disk / "episodes").iterdir() if not path.name.startswith(".")]
    assert 0 < len(kept) < 12
    subprocess.run(["mount", "-o", f"remount,size={reserve_bytes + 4 * 1024**2}", disk], check=True)
    report = import_dataset(dataset, disk / "episodes", "rlds")
    assert (report.skipped, report.episodes) == (len(kept), 12 - len(kept))


def test_a_report_says_where_it_could_not_be_written(
    disk: Path, dataset: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (disk / "filler").write_bytes(bytes(60 * 1024))
    assert main(["datasets", "report", str(dataset), "--html", str(disk / "page.html")]) == 2
    assert f"cannot write the report to {disk / 'page.html'}: No space left" in capsys.readouterr().err
    assert os.listdir(disk) == ["filler"]
