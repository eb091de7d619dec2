"""Datasets merged by manifest: a law of sets, whatever the order. Buckets are simulated."""

import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from brain_service.datasets import merge_statistics as merging
from brain_service.datasets.convert import convert_directory_to_tfrecord
from brain_service.datasets.dataset import Dataset, open_dataset
from brain_service.datasets.manifest import MergedPart
from brain_service.datasets.merge import merge_datasets
from brain_service.datasets.merge_plan import Part, manifest_sha256, plan_merge
from brain_service.datasets.statistics import Statistics
from brain_service.datasets.verify import verify_dataset
from brain_service.errors import CorruptDataError, InvalidError, NotFoundError
from brain_service.spec import EpisodeSpec, Feature
from cloud_trainer.cli import main
from tests.cloud_trainer.fleet_here import figures
from tests.fakes.gcs import FakeGcs, fake_gcs

from .recording import record
from .samples import VECTOR_SPEC, make_episode


@pytest.fixture(scope="module")
def server() -> Iterator[FakeGcs]:
    """A server with the bucket `fleet`."""
    with fake_gcs() as running:
        running.make_bucket("fleet")
        yield running


def _dataset(root: Path, robot: str, shared: tuple[str, ...], others: tuple[str, ...]) -> Path:
    """A robot's dataset: its own episodes, some that all robots have, some whose id alone they share."""
    metadata = {"robot_id": robot}
    own = [make_episode(f"{robot}-{n}", 3 + n, metadata=metadata) for n in range(5)]
    for name in shared:
        log = root / "shared" / f"{name}.jsonl"
        if not log.exists():
            record(log.parent, [make_episode(name, 6)])
        (root / robot / "in").mkdir(parents=True, exist_ok=True)
        shutil.copy(log, root / robot / "in")
    rivals = [make_episode(name, 4 + len(robot), seed=ord(robot[-1]), metadata=metadata) for name in others]
    record(root / robot / "in", [*own, *rivals])
    report = convert_directory_to_tfrecord(
        root / robot / "in", root / robot / "out", name=robot, val_fraction=0.3, shard_bytes=6000
    )
    return report.dataset_dir


@pytest.fixture(scope="module")
def robots(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three datasets that overlap."""
    root = tmp_path_factory.mktemp("robots")
    return [
        _dataset(root, "a", ("s1", "s2"), ("x",)),
        _dataset(root, "bb", ("s2", "s3"), ("x", "y")),
        _dataset(root, "c", ("s1", "s3"), ("y",)),
    ]


def _episodes(place: str | Path) -> set[tuple[str, str, str, str]]:
    dataset = open_dataset(place)
    return {
        (split, entry.episode_id, entry.sha256, entry.source)
        for split in dataset.splits
        for entry in dataset.entries(split)
    }


def _without_sources(episodes: set[tuple[str, str, str, str]]) -> set[tuple[str, str, str]]:
    return {item[:3] for item in episodes}


def _require_close(ours: Statistics, theirs: Statistics) -> None:
    assert (ours.num_transitions, ours.num_trajectories) == (theirs.num_transitions, theirs.num_trajectories)
    for name, its in figures(theirs).items():
        for figure in its.__struct_fields__:
            found = getattr(figures(ours)[name], figure)
            np.testing.assert_allclose(found, getattr(its, figure), rtol=1e-9, atol=1e-9)


def _merge(tree: object, robots: list[Path], root: Path) -> Path:
    """Merge a tree of lists of datasets' numbers."""
    if isinstance(tree, int):
        return robots[tree]
    assert isinstance(tree, list)
    inputs = [_merge(child, robots, root) for child in tree]
    digest = hashlib.sha256(repr(tree).encode()).hexdigest()[:8]
    return Path(merge_datasets(inputs, root / digest).dataset_dir)


_TREES = st.permutations([0, 1, 2]).flatmap(
    lambda order: st.sampled_from(
        [
            list(order),
            [[order[0], order[1]], order[2]],
            [order[0], [order[1], order[2]]],
            [*order, order[0]],
            [[order[0], order[1]], [order[1], order[2]]],
        ]
    )
)


@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(tree=_TREES)
def test_order_grouping_and_repetition_make_no_difference(
    tree: list[object], robots: list[Path], tmp_path: Path
) -> None:
    merged, plain = _merge(tree, robots, tmp_path), _merge([0, 1, 2], robots, tmp_path)
    assert _without_sources(_episodes(merged)) == _without_sources(_episodes(plain))
    found, expected = open_dataset(merged), open_dataset(plain)
    _require_close(found.statistics, expected.statistics)
    assert found.control_period_s == expected.control_period_s
    assert found.manifest.merged == expected.manifest.merged
    assert verify_dataset(merged).damages == []


def test_every_episode_is_there_once_and_tells_where_it_came_from(robots: list[Path], tmp_path: Path) -> None:
    report = merge_datasets(robots, tmp_path, name="all")
    episodes = _episodes(tmp_path / "all")
    expected = {name for robot in robots for _, name, _, _ in _episodes(robot)}
    assert sorted(name for _, name, _, _ in episodes) == sorted(expected)
    # Of a rival pair the longest stays: robot bb's are one step longer.
    assert {source.split("/")[0] for _, name, _, source in episodes if name in "xy"} == {"bb"}
    assert (report.duplicates, len(report.rivals)) == (3, 2)
    assert "episode_id 'x' is another episode in bb/1.0.0-" in report.rivals[0]["reason"]
    manifest = open_dataset(tmp_path).manifest
    parts = [
        MergedPart(robot, robot, "1.0.0", manifest_sha256((path / "manifest.json").read_bytes()))
        for robot, path in zip(("a", "bb", "c"), robots, strict=True)
    ]
    assert manifest.merged == parts
    assert {entry.file for entry in manifest.sources} >= {source for _, _, _, source in episodes}
    held_out = {name for robot in robots for split, name, _, _ in _episodes(robot) if split == "val"}
    assert held_out == {name for split, name, _, _ in episodes if split == "val"}


def test_whole_shards_are_links_and_the_same_merge_is_not_done_again(robots: list[Path], tmp_path: Path) -> None:
    report = merge_datasets(robots, tmp_path)
    assert 0 < report.whole_shards < report.shards
    inodes = {path.stat().st_ino for robot in robots for path in robot.glob("*.tfrecord*")}
    linked = [path for path in Path(report.dataset_dir).glob("*.tfrecord*") if path.stat().st_ino in inodes]
    assert len(linked) == report.whole_shards
    again = merge_datasets([*reversed(robots), robots[0]], tmp_path)
    assert (again.reused, again.version) == (True, "1.0.0")
    assert merge_datasets(robots[:2], tmp_path).version == "1.0.1"
    assert not (tmp_path / "fleet" / ".work").exists()


def test_statistics_are_those_of_one_conversion(tmp_path: Path) -> None:
    parts = []
    for robot, period_ns in (("a", 20_000_000), ("b", 50_000_000)):
        episodes = [make_episode(f"{robot}{n}", 5 + n, final=True) for n in range(8)]
        for episode in episodes:
            episode.timestamp_ns[:] = period_ns * np.arange(len(episode))
        record(tmp_path / robot, episodes)
        record(tmp_path / "all", episodes)
        parts.append(
            convert_directory_to_tfrecord(
                tmp_path / robot, tmp_path / "out", name=robot, val_fraction=0.0, profile="rlds"
            ).dataset_dir
        )
    expected = open_dataset(
        convert_directory_to_tfrecord(
            tmp_path / "all", tmp_path / "out", name="all", val_fraction=0.0, profile="rlds"
        ).dataset_dir
    )
    merged = open_dataset(merge_datasets([f"left={parts[0]}", parts[1]], tmp_path / "merged").dataset_dir)
    _require_close(merged.statistics, expected.statistics)
    assert merged.control_period_s == expected.control_period_s
    assert isinstance(merged.manifest.merged, list)
    assert [part.robot for part in merged.manifest.merged] == ["b", "left"]


def _parts(places: list[Path]) -> list[Part]:
    return [
        Part(open_dataset(path), manifest_sha256((path / "manifest.json").read_bytes()), "") for path in places
    ]


def test_beyond_the_sample_quantiles_come_from_the_same_episodes(robots: list[Path]) -> None:
    plans = [plan_merge(_parts(order)) for order in (robots, robots[::-1])]
    exact, period_s = merging.merge_statistics(plans[0])
    (one, one_s), (two, two_s) = (merging.merge_statistics(plan, sample_steps=20) for plan in plans)
    assert (one, one_s) == (two, two_s)
    assert one_s == period_s
    for name, its in figures(one).items():
        theirs = figures(exact)[name]
        assert (its.mean, its.std, its.min, its.max) == (theirs.mean, theirs.std, theirs.min, theirs.max)
        assert all(low <= q for low, q in zip(its.min, its.q01, strict=True))


def test_datasets_that_do_not_go_together_are_refused(robots: list[Path], tmp_path: Path) -> None:
    wide = EpisodeSpec({"state": Feature("float32", (4,))}, VECTOR_SPEC.action)
    record(tmp_path / "in", [make_episode("w", 3, spec=wide)])
    other = convert_directory_to_tfrecord(tmp_path / "in", tmp_path / "out").dataset_dir
    with pytest.raises(
        InvalidError, match=r"observation/state is float32 \[[34]\], not float32 \[[34]\]"
    ) as refused:
        merge_datasets([robots[0], other], tmp_path / "merged")
    assert str(other) in refused.value.detail
    assert str(robots[0]) in refused.value.detail
    record(tmp_path / "in2", [make_episode("w", 3)])
    rlds = convert_directory_to_tfrecord(tmp_path / "in2", tmp_path / "out2", profile="rlds").dataset_dir
    with pytest.raises(InvalidError, match="have the profiles"):
        merge_datasets([robots[0], rlds], tmp_path / "merged")
    with pytest.raises(NotFoundError, match="no dataset at"):
        merge_datasets([robots[0], tmp_path / "nothing"], tmp_path / "merged")
    with pytest.raises(InvalidError, match="no dataset to merge"):
        merge_datasets([], tmp_path / "merged")
    with pytest.raises(InvalidError, match="dataset name 'A b'"):
        merge_datasets(robots, tmp_path / "merged", name="A b")
    assert not list((tmp_path / "merged").rglob("manifest.json"))


def test_all_training_episodes_held_out_elsewhere_are_told(tmp_path: Path) -> None:
    for robot, order in (("a", (0, 1)), ("b", (1, 0))):
        record(tmp_path / robot, [make_episode(f"e{n}", 3) for n in range(2)])
        made = convert_directory_to_tfrecord(tmp_path / robot, tmp_path / "out", name=robot, val_fraction=0.1)
        path = made.dataset_dir / "manifest.json"
        manifest = open_dataset(made.dataset_dir).manifest
        if order[0]:
            swapped = dict(zip(("val", "train"), manifest.splits.values(), strict=True))
            path.write_bytes(msgspec.json.encode(msgspec.structs.replace(manifest, splits=swapped)))
    with pytest.raises(InvalidError, match="held out by another"):
        plan_merge(_parts([tmp_path / "out" / "a" / "1.0.0", tmp_path / "out" / "b" / "1.0.0"]))


@pytest.mark.parametrize("whole", [True, False])
def test_a_part_that_rots_is_named(tmp_path: Path, whole: bool) -> None:
    one = _dataset(tmp_path, "a", ("s1",), ())
    two = _dataset(tmp_path, "b", ("s1",), ())
    rotten = two if whole else one
    damaged = []
    for shard in rotten.glob("*-train.tfrecord*"):
        data = bytearray(shard.read_bytes())
        # In every episode: which of two equal ones is read depends on the parts' hashes.
        for entry in open_dataset(rotten).entries("train"):
            if entry.shard == shard.name:
                data[entry.offset_bytes + entry.size_bytes - 30] ^= 1
        shard.unlink()
        shard.write_bytes(data)
        damaged.append(str(shard))
    with pytest.raises(CorruptDataError) as told:
        merge_datasets([one, two], tmp_path / "merged")
    assert any(name in told.value.detail for name in damaged)
    assert not list((tmp_path / "merged").rglob("manifest.json"))


def test_buckets_are_merged_inside_the_service(server: FakeGcs, robots: list[Path], tmp_path: Path) -> None:
    places = [server.upload(path, "fleet", f"{path.parent.name}/1.0.0") for path in robots]
    here = merge_datasets(robots, tmp_path)
    there = merge_datasets(places, "gs://fleet/merged")
    assert there.dataset_dir == "gs://fleet/merged/fleet/1.0.0"
    found, expected = Dataset(open_dataset(there.dataset_dir).folder), open_dataset(here.dataset_dir)
    assert found.manifest == expected.manifest
    assert found.statistics == expected.statistics
    assert found.folder.read(found.manifest.shards[0].file) == expected.folder.read(found.manifest.shards[0].file)
    assert merge_datasets(places, "gs://fleet/merged").reused
    mixed = merge_datasets([places[0], *robots[1:]], tmp_path / "mixed")
    assert open_dataset(mixed.dataset_dir).manifest == expected.manifest


def test_the_command_tells_what_it_did(
    robots: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["merge", "--inputs", *map(str, robots), "--output-dir", str(tmp_path), "--name", "all"]
    assert main(arguments) == 0
    said = capsys.readouterr().out
    assert said.startswith(f"{tmp_path / 'all' / '1.0.0'}: 20 episodes (")
    assert "3 episodes were doubled" in said
    assert said.count("left out: ") == 2
    assert main([*arguments, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["reused"]
    assert main(["merge", "--inputs", str(tmp_path / "none"), "--output-dir", str(tmp_path)]) == 78
    assert "no dataset at" in capsys.readouterr().err


def test_a_conversion_goes_on_from_a_merged_version(robots: list[Path], tmp_path: Path) -> None:
    merged = merge_datasets(robots, tmp_path, name="all")
    record(tmp_path / "in", [make_episode("late", 4)])
    report = convert_directory_to_tfrecord(tmp_path / "in", tmp_path, name="all", val_fraction=0.3)
    assert (report.version, report.episodes) == ("1.0.1", merged.episodes + 1)
    assert verify_dataset(report.dataset_dir).damages == []
