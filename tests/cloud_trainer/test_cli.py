"""The command line: one word loads one module, and every refusal is one line and an exit code."""

import json
from pathlib import Path

import pytest

from brain_service.datasets.places import LocalPlace
from brain_service.training.config import TrainConfig
from cloud_trainer.cli import COMMANDS, main
from cloud_trainer.record import RunRecord

SEED = ("--batch-size", "256", "--num-steps", "10000", "--learning-rate", "1e-4")


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert main(arguments) == 78
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert line.startswith("cloud-trainer: ")
    return line


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    told = capsys.readouterr().out
    assert all(f"\n  {name} " in told for name in COMMANDS)


def test_the_seeds_command_is_understood_and_needs_no_word_before_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text("{}")  # ends the run before it begins
    given = ["--data-path", str(tmp_path / "none"), "--output-dir", str(tmp_path / "run"), *SEED]
    assert refused(given, capsys) == refused(["train", *given], capsys)


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (("--set", "weight_decay"), "a value is wrong; use NAME=VALUE"),
        (("--set", "weight_decay=x"), "use NAME=VALUE with the value as JSON"),
        (("--set", "colour=1"), "unknown training setting colour"),
        (("--batch-size", "0"), "batch_size is 0"),
        (("--preset", "huge"), "preset 'huge' is none of"),
        (("--process-id", "1"), "go together"),
        (("--plan",), "--plan needs --topology"),
    ],
)
def test_a_wrong_option_is_one_line(
    more: tuple[str, ...], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "run"
    assert told in refused(["--data-path", "d", "--output-dir", str(output), *more], capsys)
    assert not output.exists()


def test_another_place_than_disk_or_bucket_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert "s3://b/x" in refused(["--data-path", "d", "--output-dir", "s3://b/x"], capsys)


def test_the_directory_of_another_run_stays_as_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    RunRecord(run_id="mine", data_path="d", dataset="d", config=TrainConfig().to_dict()).write(
        LocalPlace(tmp_path)
    )
    before = (tmp_path / "run.json").read_bytes()
    line = refused(["--data-path", "d", "--output-dir", str(tmp_path)], capsys)
    assert "holds run mine with" in line
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]
    assert (tmp_path / "run.json").read_bytes() == before
    assert json.loads(before)["run_id"] == "mine"
