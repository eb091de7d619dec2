"""The fleet's conversion in Apache Beam's own hands: its local runner, and what Dataflow is told."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from brain_service.datasets.convert import convert_directory_to_tfrecord
from brain_service.datasets.dataset import open_dataset
from brain_service.datasets.statistics import read_statistics
from brain_service.datasets.verify import verify_dataset
from cloud_trainer.cli import main
from tests.datasets import judge
from tests.datasets.recording import record
from tests.datasets.samples import RICH_SPEC, make_episode
from tests.fakes.gcs import fake_gcs

from .fleet_here import figures
from .fleet_venv import PYTHON, needs_fleet, run_there

pytestmark = [pytest.mark.slow, needs_fleet]


@pytest.fixture(scope="module")
def robots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two robots' episodes, below one folder."""
    root = tmp_path_factory.mktemp("robots")
    for robot in ("r1", "r2"):
        record(root / robot, [make_episode(f"{robot}-{n}", 3 + n, spec=RICH_SPEC) for n in range(6)])
        (root / robot / f"bad-{robot}.json").write_text("{")
    shutil.copy(root / "r1" / "r1-0.jsonl", root / "r2")
    return root


def _convert(inputs: str, output: str, *more: str) -> dict[str, object]:
    arguments = ["--name", "fleet", "--val-fraction", "0.3", "--shard-bytes", "4000", "--json", *more]
    found: dict[str, object] = json.loads(
        run_there("convert", "--inputs", inputs, "--output-dir", output, *arguments)
    )
    return found


def test_beam_makes_what_the_converter_makes_and_makes_it_once(robots: Path, tmp_path: Path) -> None:
    report = _convert(str(robots / "r1"), str(tmp_path / "out"))
    expected = convert_directory_to_tfrecord(
        robots / "r1", tmp_path / "one", name="fleet", val_fraction=0.3, shard_bytes=4000
    ).dataset_dir
    found = Path(str(report["dataset_dir"]))
    assert {path.name for path in found.iterdir()} == {path.name for path in expected.iterdir()}
    for path in expected.iterdir():
        if "statistics" not in path.name:
            assert (found / path.name).read_bytes() == path.read_bytes(), path.name
    ours, theirs = figures(read_statistics(found)), figures(read_statistics(expected))
    for feature, its in theirs.items():
        for name in its.__struct_fields__:
            np.testing.assert_allclose(getattr(ours[feature], name), getattr(its, name), rtol=1e-6)
    assert verify_dataset(found).damages == []
    again = _convert(str(robots / "r1"), str(tmp_path / "out"), "--runner", "FnApiRunner")
    assert (again["version"], again["reused"]) == ("1.0.0", True)


def test_tensorflow_datasets_reads_a_fleet_in_workers_of_their_own(robots: Path, tmp_path: Path) -> None:
    workers = ("--direct_num_workers", "2", "--direct_running_mode", "multi_processing")
    report = _convert(str(robots / "*"), str(tmp_path / "out"), *workers)
    assert report["episodes"] == 12
    assert [item["file"] for item in report["quarantined"]] == [  # type: ignore[attr-defined]
        "r1/bad-r1.json",
        "r2/bad-r2.json",
        "r2/r1-0.jsonl",
    ]
    output = tmp_path / "seen.npz"
    subprocess.run([sys.executable, judge.__file__, str(report["dataset_dir"]), str(output)], check=True)
    dataset = open_dataset(str(report["dataset_dir"]))
    with np.load(output) as seen:
        for split in dataset.splits:
            assert seen[f"info/examples/{split}"] == len(dataset.entries(split))
            for index, entry in enumerate(dataset.entries(split)):
                rewards = seen[f"{split}/{entry.episode_id}/steps/reward"]
                np.testing.assert_array_equal(rewards, dataset.read(split, index)["reward"])


def test_beam_reads_and_writes_buckets(robots: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with fake_gcs() as server:
        for name, value in server.environment().items():
            monkeypatch.setenv(name, value)
        server.make_bucket("fleet")
        server.upload(robots, "fleet", "robots")
        report = _convert("gs://fleet/robots/*", "gs://fleet/datasets")
        assert (report["dataset_dir"], report["episodes"]) == ("gs://fleet/datasets/fleet/1.0.0", 12)
        assert len(open_dataset("gs://fleet/datasets").entries("train")) > 0


def test_what_is_wrong_is_one_line(robots: Path, tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "e.json").write_text("{")
    for inputs, more, message in (
        (
            str(robots / "r1"),
            ["--runer", "DataflowRunner"],
            "--runer DataflowRunner: neither an option of convert",
        ),
        (str(tmp_path / "none"), [], "no folder"),
        (str(tmp_path / "empty"), [], "no episode to convert in the given folders"),
        (str(tmp_path / "bad"), [], "no episode to convert in the given folders; e.json: "),
        (str(robots / "r1"), ["--runner", "DataflowRunner", "--project", "p"], "no worker of Dataflow sees it"),
    ):
        said = run_there("convert", "--inputs", inputs, "--output-dir", out, *more, code=78)
        assert f"cloud-trainer: {message}" in said or message in said.splitlines()[-1]
        assert "Traceback" not in said


def test_the_documented_dataflow_options_are_beams_own() -> None:
    page = (Path(__file__).parents[2] / "docs" / "cloud-fleet.md").read_text()
    block = page.split("<!-- dataflow -->")[1].split("```")[1].removeprefix("sh\n").replace("\\\n", " ")
    arguments = block.split("cloud_trainer convert")[1].split()
    flags = arguments[arguments.index("--runner") :]
    script = (
        "import json, sys\n"
        "from apache_beam.options.pipeline_options import GoogleCloudOptions as G, WorkerOptions as W\n"
        "from cloud_trainer.fleet.beam import parse_options\n"
        "its = parse_options(sys.argv[1:])\n"
        "cloud, worker = its.view_as(G), its.view_as(W)\n"
        "print(json.dumps([cloud.project, cloud.region, cloud.temp_location, worker.sdk_container_image,"
        " worker.max_num_workers, worker.machine_type]))"
    )
    done = subprocess.run(
        [PYTHON, "-c", script, *flags],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
    )
    project, region, temporary, image, workers, machine = json.loads(done.stdout)
    assert (project, region, temporary) == ("my-project", "europe-west4", "gs://fleet/tmp")
    assert image.startswith("europe-west4-docker.pkg.dev/")
    assert (workers, machine) == (20, "e2-standard-4")


def test_without_beam_the_command_says_where_it_is(
    robots: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["convert", "--inputs", str(robots), "--output-dir", str(tmp_path)]) == 78
    assert "convert needs Apache Beam" in capsys.readouterr().err
