"""Conversion at fleet scale is the converter's, whatever machine does what when. Buckets are simulated."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from brain_service.datasets.columns import Profile
from brain_service.datasets.convert import convert_directory_to_tfrecord
from brain_service.datasets.dataset import open_dataset
from brain_service.datasets.places import open_place
from brain_service.datasets.statistics import OCTO_FILE, STATISTICS_FILE, read_statistics
from brain_service.datasets.verify import verify_dataset
from brain_service.errors import CorruptDataError, InvalidError, NotFoundError
from brain_service.spec import EpisodeSpec, Feature
from cloud_trainer.fleet import shard
from cloud_trainer.fleet.encode import encode_stem
from cloud_trainer.fleet.plan import ShardTask, make_plan
from cloud_trainer.fleet.publish import FleetReport, Outcome
from cloud_trainer.fleet.run import Run
from cloud_trainer.fleet.sources import find_folders, list_stems
from tests.datasets.recording import record, record_many, write_seed_file
from tests.datasets.samples import RICH_SPEC, VECTOR_SPEC, make_episode
from tests.fakes.gcs import FakeGcs, fake_gcs

from .fleet_here import convert_here, figures

IMAGE_SPEC = EpisodeSpec({"eye": Feature("image", (4, 4, 3)), **VECTOR_SPEC.observation}, VECTOR_SPEC.action)


@pytest.fixture(scope="module")
def server() -> Iterator[FakeGcs]:
    """A server with the bucket `fleet`."""
    with fake_gcs() as running:
        running.make_bucket("fleet")
        yield running


def _report(outcome: Outcome) -> FleetReport:
    assert outcome.report is not None, outcome.problem
    return outcome.report


def _require_same(found: Path, expected: Path) -> None:
    """Every file is the same to the byte; of the figures the last digits may differ."""
    files = {path.name for path in expected.iterdir()}
    assert {path.name for path in found.iterdir()} == files
    for name in files - {STATISTICS_FILE, OCTO_FILE}:
        assert (found / name).read_bytes() == (expected / name).read_bytes(), name
    ours, theirs = figures(read_statistics(found)), figures(read_statistics(expected))
    for feature, its in theirs.items():
        for name in its.__struct_fields__:
            np.testing.assert_allclose(getattr(ours[feature], name), getattr(its, name), rtol=1e-9, atol=1e-9)
    assert verify_dataset(found).damages == []


def _record_mixed(folder: Path, spec: EpisodeSpec) -> None:
    """Good episodes, compressed ones, a seed file, one still open, a broken one, one of other features."""
    record(folder, [make_episode(f"e{n:02d}", 3 + 7 * n % 11, spec=spec, final=n % 2 == 0) for n in range(9)])
    record(folder, [make_episode("other", 4, spec=EpisodeSpec({"odd": Feature("int64")}, VECTOR_SPEC.action))])
    record(folder, [make_episode("doc", 4, spec=spec)], format="json")
    write_seed_file(folder / "seed.jsonl", [[0.0, 1.0, 2.0]] * 3)
    (folder / "broken.json").write_text("{")
    (folder / "packed.json.gz").write_bytes(b"\x1f\x8b")
    lines = (folder / "e00.jsonl").read_bytes().splitlines(keepends=True)
    (folder / "open.jsonl").write_bytes(b"".join(lines[:-1]).replace(b"e00", b"open"))
    (folder / "notes.txt").write_text("no episode")


@pytest.mark.parametrize("profile", ["oxe", "rlds"])
@pytest.mark.parametrize("spec", [VECTOR_SPEC, RICH_SPEC, IMAGE_SPEC], ids=["vectors", "rich", "images"])
def test_the_dataset_is_the_converters(tmp_path: Path, profile: Profile, spec: EpisodeSpec) -> None:
    _record_mixed(tmp_path / "in", spec)
    expected = convert_directory_to_tfrecord(
        tmp_path / "in", tmp_path / "one", name="fleet", profile=profile, val_fraction=0.3, shard_bytes=3000
    )
    for seed in range(3):
        out = tmp_path / f"many{seed}"
        report = _report(
            convert_here([tmp_path / "in"], out, profile=profile, shard_bytes=3000, seed=seed, twice=seed == 2)
        )
        _require_same(out / "fleet" / "1.0.0", expected.dataset_dir)
        assert (report.episodes, report.steps, report.splits) == (
            expected.episodes,
            expected.steps,
            expected.splits,
        )
        assert report.quarantined == expected.quarantined
        assert report.skipped_open == expected.skipped_open
        assert not (out / "fleet" / ".work").exists()


def test_the_same_input_is_converted_once(tmp_path: Path) -> None:
    record_many(tmp_path / "in", [3, 4, 5])
    first = _report(convert_here([tmp_path / "in"], tmp_path / "out"))
    again = _report(convert_here([tmp_path / "in"], tmp_path / "out", seed=1))
    assert (first.version, first.reused, again.version, again.reused) == ("1.0.0", False, "1.0.0", True)
    # And the converter knows it for its own.
    assert convert_directory_to_tfrecord(tmp_path / "in", tmp_path / "out", name="fleet", val_fraction=0.3).reused
    record(tmp_path / "in", [make_episode("new", 4)])
    later = _report(convert_here([tmp_path / "in"], tmp_path / "out"))
    assert (later.version, later.episodes, later.reused) == ("1.0.1", 4, False)


def test_episodes_of_many_robots_count_once(tmp_path: Path) -> None:
    for robot in ("r1", "r2", "r3"):
        record(tmp_path / robot / "episodes", [make_episode(f"{robot}-{n}", 4 + n) for n in range(3)])
    same, other = make_episode("shared", 5), make_episode("shared", 6, seed=9)
    record(tmp_path / "r1" / "episodes", [same])
    shutil.copy(tmp_path / "r1" / "episodes" / "shared.jsonl", tmp_path / "r2" / "episodes")
    record(tmp_path / "r3" / "episodes", [other])
    report = _report(convert_here([tmp_path / "r*" / "episodes"], tmp_path / "out"))
    assert report.episodes == 10
    assert [item["file"] for item in report.quarantined] == [
        "r2/episodes/shared.jsonl",
        "r3/episodes/shared.jsonl",
    ]
    assert all("already read from r1/episodes/shared.jsonl" in item["reason"] for item in report.quarantined)
    dataset = open_dataset(tmp_path / "out")
    entries = [entry for split in dataset.splits for entry in dataset.entries(split)]
    assert len({entry.episode_id for entry in entries}) == 10
    (kept,) = [entry for entry in entries if entry.episode_id == "shared"]
    assert (kept.source, kept.length) == ("r1/episodes/shared.jsonl", 5)
    assert verify_dataset(tmp_path / "out").damages == []


def test_folders_are_named_by_what_tells_them_apart(tmp_path: Path) -> None:
    for name in ("a/r1/e", "a/r2/e", "b"):
        record_many(tmp_path / name, [2])
    assert [folder.label for folder in find_folders([str(tmp_path / "a" / "*" / "e")])] == ["r1/e/", "r2/e/"]
    assert [folder.label for folder in find_folders([str(tmp_path / "a/r1/e")])] == [""]
    both = find_folders([str(tmp_path / "b"), str(tmp_path / "a" / "*" / "e")])
    assert [folder.label for folder in both] == ["a/r1/e/", "a/r2/e/", "b/"]
    record_many(tmp_path / "b" / "deeper", [2])
    nested = find_folders([str(tmp_path / "b"), str(tmp_path / "b" / "deeper")])
    assert [folder.label for folder in nested] == ["b/", "b/deeper/"]
    record(tmp_path / "b", [make_episode("x1"), make_episode("x2")])
    (chosen,) = find_folders([str(tmp_path / "b" / "x*.jsonl")])
    assert [stem.name for stem in list_stems(chosen)] == ["x1", "x2"]
    with pytest.raises(NotFoundError, match=r"no folder .*/c'; give folders"):
        find_folders([str(tmp_path / "c")])
    with pytest.raises(InvalidError, match="given twice"):
        find_folders([str(tmp_path / "b"), str(tmp_path / "b" / "x*.jsonl")])


def test_nothing_to_convert_says_why(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "bad.json").write_text("{")
    outcome = convert_here([tmp_path / "in"], tmp_path / "out")
    assert outcome.report is None
    assert outcome.problem is not None
    assert outcome.problem.startswith("no episode to convert in the given folders; bad.json: ")
    assert not list((tmp_path / "out" / "fleet").glob("1*"))


def test_a_part_that_rots_stops_the_conversion(tmp_path: Path) -> None:
    record_many(tmp_path / "in", [3, 4])
    run = Run(str(tmp_path / "out"), str(tmp_path / "work"), "fleet", "oxe", 0.0, 2**20)
    found = [encode_stem(stem, run) for stem in list_stems(find_folders([str(tmp_path / "in")])[0])]
    (task,) = make_plan(found, run)
    assert isinstance(task, ShardTask)
    part = tmp_path / "work" / "parts" / task.origins[1][0]
    data = bytearray(part.read_bytes())
    data[40] ^= 1
    part.write_bytes(data)
    with pytest.raises(CorruptDataError, match="episode e01 is not what was encoded"):
        shard.do_task(task, run)
    assert not list((tmp_path / "work" / "shards").glob("*.tfrecord*"))


def test_buckets_hold_what_disks_hold(server: FakeGcs, tmp_path: Path) -> None:
    for robot in ("r1", "r2"):
        _record_mixed(tmp_path / "robots" / robot, IMAGE_SPEC)
        server.upload(tmp_path / "robots" / robot, "fleet", f"robots/{robot}")
    here = _report(convert_here([tmp_path / "robots" / "*"], tmp_path / "out", shard_bytes=5000))
    there = _report(convert_here(["gs://fleet/robots/*"], "gs://fleet/datasets", shard_bytes=5000))
    assert there.dataset_dir == "gs://fleet/datasets/fleet/1.0.0"
    assert (there.episodes, there.steps, there.skipped_open) == (here.episodes, here.steps, here.skipped_open)
    _require_same_but_paths(Path(here.dataset_dir), there.dataset_dir)
    dataset = open_dataset("gs://fleet/datasets")
    assert dataset.read("train", 0)["reward"].shape == (dataset.entries("train")[0].length,)  # type: ignore[union-attr]
    again = _report(convert_here(["gs://fleet/robots/*"], "gs://fleet/datasets", shard_bytes=5000, seed=3))
    assert (again.version, again.reused) == ("1.0.0", True)
    assert open_place("gs://fleet/datasets/fleet").folder.subfolders() == ["1.0.0"]


def _require_same_but_paths(here: Path, there: str) -> None:
    folder = open_place(there).folder
    assert set(folder.sizes()) == {path.name for path in here.iterdir()} | {".claim"}
    for path in here.iterdir():
        # Reasons tell where a broken file lies.
        if path.name != "manifest.json":
            assert folder.read(path.name) == path.read_bytes(), path.name


def test_an_unfinished_version_is_finished_by_the_same_work_alone(server: FakeGcs, tmp_path: Path) -> None:
    record_many(tmp_path / "in", [3, 4, 5])
    here = _report(convert_here([tmp_path / "in"], tmp_path / "out"))
    digest = open_dataset(here.dataset_dir).manifest.source_digest
    # Another's upload, which has no manifest yet, and an attempt of ours that died.
    server.put("fleet", "resume/fleet/1.0.0/fleet-train.tfrecord-00000", b"half")
    server.put("fleet", "resume/fleet/1.0.1/.claim", digest.encode())
    server.put("fleet", "resume/fleet/1.0.1/fleet-train.tfrecord-00000", b"half")
    there = _report(convert_here([tmp_path / "in"], "gs://fleet/resume"))
    assert there.version == "1.0.1"
    assert open_dataset("gs://fleet/resume").manifest.shards == open_dataset(here.dataset_dir).manifest.shards
    server.put("fleet", "resume/fleet/1.0.2/.claim", b"someone else")
    record(tmp_path / "in", [make_episode("new", 4)])
    assert _report(convert_here([tmp_path / "in"], "gs://fleet/resume")).version == "1.0.3"
