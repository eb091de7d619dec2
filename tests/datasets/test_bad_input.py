"""Episodes that cannot be stored: each is named and left out with the reason, the others are converted."""

import gzip
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest

from brain_service.datasets.convert import convert_directory_to_tfrecord
from brain_service.datasets.dataset import open_dataset
from brain_service.episodes import text_lines
from brain_service.episodes.archive import compress_log
from brain_service.errors import InvalidError, UnavailableError

from .logs import end, header, step, write_lines, write_log

RNG = np.random.default_rng(0)


def _seed(path: Path, *steps: Any) -> None:
    path.write_bytes(b"".join(item if isinstance(item, bytes) else orjson.dumps(item) + b"\n" for item in steps))


def _seed_step(**members: Any) -> dict[str, Any]:
    return {"observation": {"state": [1.0, 2.0, 3.0]}, "action": {"command": [0.5, 0.5]}, "reward": 0.0} | members


def _log(path: Path, *records: dict[str, Any]) -> None:
    write_lines(path, [header("bad"), *records])


def _without(name: str) -> dict[str, Any]:
    return {key: value for key, value in _seed_step().items() if key != name}


def _ragged(path: Path) -> None:
    _seed(path, _seed_step(observation={"state": [[1.0, 2.0], [3.0]]}))


def _truncated_archive(path: Path) -> None:
    archive = compress_log(write_log(path))
    assert archive is not None
    archive.write_bytes(archive.read_bytes()[:-40])


CASES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no observation": (
        lambda path: _seed(path, _seed_step(), _without("observation")),
        "needs an observation and an action",
    ),
    "no action in a log": (
        lambda path: _log(path, {k: v for k, v in step(0, RNG).items() if k != "action"}, end()),
        "the step has no 'action'",
    ),
    "a missing feature": (
        lambda path: _log(path, step(0, RNG, observation={}), end()),
        "observation: the map is empty",
    ),
    "another feature": (
        lambda path: _log(path, step(0, RNG), step(1, RNG, observation={"pose": [1.0]}), end()),
        "unknown pose; missing state",
    ),
    "a string for a number": (
        lambda path: _seed(path, _seed_step(), _seed_step(observation={"state": [1.0, "2.0", 3.0]})),
        "observation/state",
    ),
    "a string in a log": (
        lambda path: _log(path, step(0, RNG), step(1, RNG, reward="0.5"), end()),
        "reward: '0.5' is not a number",
    ),
    "a boolean for a number": (
        lambda path: _log(path, step(0, RNG), step(1, RNG, observation={"state": [True, 1.0, 2.0]}), end()),
        "observation/state: mixes booleans and numbers",
    ),
    "a ragged vector": (_ragged, "rows differ in length"),
    "a shorter vector": (
        lambda path: _log(path, step(0, RNG), step(1, RNG, state=2), end()),
        r"observation/state: expected shape \[3\], got \[2\]",
    ),
    "no steps": (lambda path: _log(path, end()), "holds no steps"),
    "a step after the end": (
        lambda path: _log(path, step(0, RNG), end(), step(1, RNG), end()),
        "stands behind the end",
    ),
    "a step missing": (lambda path: _log(path, step(0, RNG), step(2, RNG), end()), "the line is not step 1"),
    "a terminal in the middle": (
        lambda path: _log(path, step(0, RNG), step(1, RNG, is_terminal=True), step(2, RNG), end()),
        "step 1 of 3 is terminal and others follow it",
    ),
    "not UTF-8": (lambda path: _seed(path, b'{"observation": {"n\xff": 1}, "action": 1}\n', b"{}\n"), "no JSON"),
    "not UTF-8 in a log": (
        lambda path: path.write_bytes(write_log(path).read_bytes().replace(b"reach", b"\xff\xfeach")),
        "checksum",
    ),
    "a truncated archive": (_truncated_archive, "cut short|checksum|index"),
    "NaN": (
        lambda path: _seed(path, b'{"observation": {"state": [NaN, 1, 2]}, "action": {"command": [1, 2]}}\n'),
        "NaN",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_it_is_left_out_with_the_reason_and_the_others_are_converted(tmp_path: Path, case: str) -> None:
    write, reason = CASES[case]
    for n in range(3):
        write_log(tmp_path / "in" / f"good{n}.jsonl", seed=n)
    write(tmp_path / "in" / "bad.jsonl")
    report = convert_directory_to_tfrecord(tmp_path / "in", tmp_path / "out")
    assert report.episodes == 3
    (left_out,) = report.quarantined
    assert left_out["file"] == "bad.jsonl"
    with pytest.raises(AssertionError, match=reason):
        raise AssertionError(left_out["reason"])
    # It is told again as long as it lies there, and is not read again for that.
    again = convert_directory_to_tfrecord(tmp_path / "in", tmp_path / "out")
    assert (again.reused, again.quarantined) == (True, report.quarantined)


def test_a_line_without_end_is_refused_before_it_fills_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_lines, "MAX_LINE_BYTES", 1 << 20)
    write_log(tmp_path / "in" / "good.jsonl")
    path = write_log(tmp_path / "in" / "bad.jsonl")
    first, *rest = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join((first, b"x" * (4 << 20), b"\n", *rest)))
    seed = tmp_path / "in" / "seed.jsonl"
    seed.write_bytes(orjson.dumps(_seed_step()) + b"\n" + b" " * (4 << 20))
    found = convert_directory_to_tfrecord(tmp_path / "in", tmp_path / "out")
    assert found.episodes == 1
    assert [item["file"] for item in found.quarantined] == ["bad.jsonl", "seed.jsonl"]
    assert all(":2: the line is longer than 1048576 bytes" in item["reason"] for item in found.quarantined)


@pytest.mark.parametrize("name", ["packed.jsonl.gz", "packed.json.gz"])
@pytest.mark.parametrize("cut_bytes", [0, 20])
def test_gzip_is_told_and_not_passed_by_in_silence(tmp_path: Path, name: str, cut_bytes: int) -> None:
    write_log(tmp_path / "in" / "good.jsonl")
    packed = gzip.compress(write_log(tmp_path / "packed.jsonl", seed=1).read_bytes())
    (tmp_path / "in" / name).write_bytes(packed[: len(packed) - cut_bytes])
    report = convert_directory_to_tfrecord(tmp_path / "in", tmp_path / "out")
    assert report.episodes == 1
    (left_out,) = report.quarantined
    assert left_out["file"] == name
    assert f"gunzip {name}" in left_out["reason"]
    # By itself it is refused, with the same words.
    with pytest.raises(InvalidError, match=f"gunzip {name}"):
        convert_directory_to_tfrecord(tmp_path / "in" / name, tmp_path / "out", name="alone")


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a file system needs root")
@pytest.mark.parametrize("limit_kb", [96, 160, 256])
def test_a_disk_that_fills_up_leaves_the_old_version_alone(tmp_path: Path, limit_kb: int) -> None:
    for n in range(4):
        write_log(tmp_path / "in" / f"e{n}.jsonl", seed=n, steps=30)
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={limit_kb}k", "tmpfs", disk], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("this container may not mount")
    try:
        first = convert_directory_to_tfrecord(tmp_path / "in", disk)
        for n in range(40):
            write_log(tmp_path / "in" / f"late{n}.jsonl", seed=n, steps=60)
        with pytest.raises(UnavailableError, match="free space"):
            convert_directory_to_tfrecord(tmp_path / "in", disk)
        names = {path.name for path in first.dataset_dir.parent.iterdir()}
        assert names <= {".lock", ".sources.json", "1.0.0"}
        dataset = open_dataset(disk)
        assert sum(len(dataset.read(split, 0)["reward"]) > 0 for split in dataset.splits) == len(dataset.splits)
    finally:
        subprocess.run(["umount", disk], check=True)


def test_a_process_that_dies_is_named_with_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("brain_service.datasets.build._WORTH_PROCESSES_BYTES", 0)
    for n in range(4):
        write_log(tmp_path / "in" / f"e{n}.jsonl", seed=n)
    first = convert_directory_to_tfrecord(tmp_path / "in", tmp_path / "out", jobs=2)
    killer = tmp_path / "python"
    killer.write_text("#!/bin/sh\nread name\nkill -9 $$\n")
    killer.chmod(0o755)
    write_log(tmp_path / "in" / "late0.jsonl", seed=8)
    write_log(tmp_path / "in" / "late1.jsonl", seed=9)
    monkeypatch.setattr(sys, "executable", str(killer))
    with pytest.raises(UnavailableError, match=r"converting late0\.jsonl was killed by signal 9 .*--jobs 1"):
        convert_directory_to_tfrecord(tmp_path / "in", tmp_path / "out", jobs=2)
    assert open_dataset(tmp_path / "out").path == first.dataset_dir
