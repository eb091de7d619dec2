"""A converter killed at any moment: what stood before stays readable, and the next one finishes the work."""

import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from brain_service.datasets.convert import convert_directory_to_tfrecord
from brain_service.datasets.dataset import open_dataset
from brain_service.datasets.versions import list_versions

from .logs import write_log

SCRIPT = (
    "import sys; from brain_service.datasets import build, convert_directory_to_tfrecord as c\n"
    "build._WORTH_PROCESSES_BYTES = 0; print('ready', flush=True)\n"
    "c(sys.argv[1], sys.argv[2], True, jobs=int(sys.argv[3]))"
)


def _require_whole(out: Path) -> None:
    """Every version that can be seen is whole, each record of it."""
    for version in list_versions(out / "episodes"):
        dataset = open_dataset(out / "episodes" / version)
        for split in dataset.splits:
            for index in range(len(dataset.entries(split))):
                dataset.read(split, index)


@pytest.mark.long
@pytest.mark.parametrize("jobs", [1, 2])
def test_a_kill_at_any_moment_leaves_whole_versions(tmp_path: Path, jobs: int) -> None:
    chance = random.Random(jobs)
    for n in range(10):
        write_log(tmp_path / "in" / f"e{n:03d}.jsonl", seed=n, steps=60)
    convert_directory_to_tfrecord(tmp_path / "in", tmp_path / "out")
    killed = 0
    for round_ in range(4):
        for n in range(20):
            write_log(tmp_path / "in" / f"late{round_}-{n}.jsonl", seed=n, steps=60)
        arguments = [sys.executable, "-c", SCRIPT, str(tmp_path / "in"), str(tmp_path / "out"), str(jobs)]
        with subprocess.Popen(arguments, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            time.sleep(chance.uniform(0.0, 0.5))
            process.kill()
            killed += process.wait() != 0
        _require_whole(tmp_path / "out")
    assert killed
    report = convert_directory_to_tfrecord(tmp_path / "in", tmp_path / "out", compress=True)
    assert (report.episodes, report.quarantined, report.passed_over) == (10 + 4 * 20, [], [])
    assert not (tmp_path / "out" / "episodes" / ".work").exists()


def test_processes_or_none_the_bytes_are_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("brain_service.datasets.build._WORTH_PROCESSES_BYTES", 0)
    for n in range(9):
        write_log(tmp_path / "in" / f"e{n}.jsonl", seed=n, steps=1 + 7 * n)
    (tmp_path / "in" / "bad.jsonl").write_bytes(b"")
    folders = [
        convert_directory_to_tfrecord(tmp_path / "in", tmp_path / f"out{jobs}", jobs=jobs).dataset_dir
        for jobs in (1, 2, 3)
    ]
    first, *others = [{path.name: path.read_bytes() for path in folder.iterdir()} for folder in folders]
    assert all(other == first for other in others)


def test_a_cancelled_conversion_ends_its_processes_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("brain_service.datasets.build._WORTH_PROCESSES_BYTES", 0)
    for n in range(8):
        write_log(tmp_path / "in" / f"e{n}.jsonl", seed=n, steps=200)

    def cancel(done: int, total: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert_directory_to_tfrecord(tmp_path / "in", tmp_path / "out", jobs=2, progress=cancel)
    assert list_versions(tmp_path / "out" / "episodes") == []
    assert not (tmp_path / "out" / "episodes" / ".work").exists()
