"""What `brain convert` tells a person."""

import os
import pty
import subprocess
import sys
from pathlib import Path

from brain_service.cli_convert import summary
from brain_service.datasets.convert import convert_directory_to_tfrecord
from tests.datasets.logs import write_log


def test_the_summary_says_what_went_where_and_what_is_next(tmp_path: Path) -> None:
    for n in range(3):
        write_log(tmp_path / "in" / f"e{n}.jsonl", seed=n)
    (tmp_path / "in" / "noise.json").write_text("hello")
    report = convert_directory_to_tfrecord(tmp_path / "in", tmp_path / "out")
    first, *rest = summary(report).splitlines()
    assert first == f"wrote {report.dataset_dir}"
    assert (
        rest[0] == f"  3 episodes ({report.splits['train']} train, {report.splits['val']} val), 9 steps, 2 shards"
    )
    assert rest[1] == "  files: 4 new, 0 changed, 0 unchanged"
    assert rest[2] == "  left out: 1"
    # The file is named once.
    assert rest[3].count("noise.json") == 1
    assert rest[4] == f"next: brain datasets report {report.dataset_dir}"
    again = summary(convert_directory_to_tfrecord(tmp_path / "in", tmp_path / "out"))
    assert again.startswith(f"unchanged since {report.dataset_dir}")
    assert "shared" not in again


def test_a_rival_is_named_with_its_file(tmp_path: Path) -> None:
    write_log(tmp_path / "in" / "a.jsonl")
    write_log(tmp_path / "in" / "b.jsonl", "a")
    text = summary(convert_directory_to_tfrecord(tmp_path / "in", tmp_path / "out"))
    assert "    b.jsonl: episode_id 'a' was already read from a.jsonl" in text


def test_a_terminal_gets_the_summary_and_a_pipe_the_report(tmp_path: Path) -> None:
    write_log(tmp_path / "in" / "a.jsonl")
    command = [sys.executable, "-m", "brain_service", "convert", "--input-dir", str(tmp_path / "in")]
    command += ["--output-dir", str(tmp_path / "out")]
    ours, theirs = pty.openpty()
    with subprocess.Popen(command, stdout=theirs, stderr=subprocess.DEVNULL) as process:
        os.close(theirs)
        shown = b""
        while True:
            try:
                block = os.read(ours, 1 << 16)
            except OSError:  # the process has closed its side
                break
            if not block:
                break
            shown += block
    os.close(ours)
    assert process.returncode == 0
    assert b"1 episodes (1 train), 3 steps, 1 shards" in shown
    piped = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert piped.startswith("{")
