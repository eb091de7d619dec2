"""`brain export-dataset` and `brain import-dataset` as a person meets them."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from brain_service.cli import main
from brain_service.datasets.columns import PROFILES
from brain_service.datasets.convert import convert_directory_to_tfrecord
from brain_service.datasets.formats import EXPORT_FORMATS, IMPORT_FORMATS
from tests.datasets.recording import record
from tests.datasets.samples import make_episode

FOREIGN = Path(__file__).parent / "datasets" / "formats" / "lerobot_0_4_4"


def brain(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "brain_service", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    record(tmp_path / "in", [make_episode(f"e{n}", 3 + n) for n in range(4)])
    return convert_directory_to_tfrecord(tmp_path / "in", tmp_path / "out").dataset_dir


@pytest.mark.parametrize("command", ["export-dataset", "import-dataset"])
def test_help_shows_examples(command: str) -> None:
    done = brain(command, "--help")
    assert done.returncode == 0
    assert done.stdout.count(f"brain {command} --") == 3


def test_out_and_in_again(dataset: Path, tmp_path: Path) -> None:
    out = ("--dataset", dataset, "--output-dir", tmp_path / "lr", "--format", "lerobot")
    done = brain("export-dataset", *out, "--robot-type", "arm", "--fps", 10)
    assert done.returncode == 0, done.stderr
    assert "4 episodes, 18 steps" in done.stdout
    assert json.loads((tmp_path / "lr/meta/info.json").read_text())["robot_type"] == "arm"
    again = brain("export-dataset", *out)
    assert again.returncode == 2
    assert "is there already; give a new folder" in again.stderr
    back = ("import-dataset", "--from", tmp_path / "lr", "--format", "lerobot", "--output-dir", tmp_path / "back")
    assert json.loads(brain(*back, "--json").stdout)["episodes"] == 4
    assert "4 were there already" in brain(*back).stdout


def test_what_is_left_out_is_shown(tmp_path: Path) -> None:
    done = brain("import-dataset", "--from", FOREIGN, "--format", "lerobot", "--output-dir", tmp_path)
    assert done.returncode == 0, done.stderr
    assert "without       note: " in done.stdout


def test_mcap_as_json(dataset: Path, tmp_path: Path) -> None:
    out = ("--output-dir", tmp_path / "mcap", "--format", "mcap", "--split", "val", "--json")
    report = json.loads(brain("export-dataset", "--dataset", dataset, *out).stdout)
    assert report["episodes"] == len(list((tmp_path / "mcap").glob("*.mcap"))) == 1


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (
            ("export-dataset", "--dataset", "nowhere", "--output-dir", "x", "--format", "mcap"),
            "no dataset at nowhere",
        ),
        (("import-dataset", "--from", "nowhere", "--output-dir", "x", "--format", "rlds"), "no TFDS dataset at"),
        (
            ("import-dataset", "--from", "nowhere", "--output-dir", "x", "--format", "lerobot"),
            "no LeRobot dataset",
        ),
    ],
)
def test_a_failure_is_one_line(arguments: tuple[str, ...], word: str) -> None:
    done = brain(*arguments)
    assert done.returncode == 2
    assert word in done.stderr
    assert done.stderr.count("\n") == 1


def test_nothing_that_the_command_line_loads_needs_the_extra() -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "brain_service", "--help"], capture_output=True, text=True
    )
    for name in ("pyarrow", "mcap", "rich"):
        assert f" {name}" not in done.stderr


def test_the_choices_are_those_of_the_code(capsys: pytest.CaptureFixture[str]) -> None:
    # Spelled out where they are parsed, so that the command line loads neither NumPy nor the formats.
    for command, option, known in (
        ("export-dataset", "--format", EXPORT_FORMATS),
        ("import-dataset", "--format", IMPORT_FORMATS),
        ("import-dataset", "--profile", PROFILES),
        ("convert", "--profile", PROFILES),
    ):
        with pytest.raises(SystemExit):
            main([command, option, "?"])
        told = capsys.readouterr().err.partition("choose from ")[2].strip(" ()\n")
        assert {name.strip("' ") for name in told.split(",")} == set(known)
