"""From capture files to a dataset version."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import orjson
import pytest

from brain_service.datasets.convert import ConvertReport, convert_directory_to_tfrecord
from brain_service.datasets.dataset import open_dataset
from brain_service.datasets.tfrecord import read_records
from brain_service.datasets.versions import list_versions
from brain_service.episodes.logger import EpisodeLogger
from brain_service.errors import InvalidError, NotFoundError, UnavailableError
from brain_service.spec import EpisodeSpec, Feature

from .recording import record, record_many, write_seed_file
from .samples import RICH_SPEC, VECTOR_SPEC, assert_equal_columns, make_episode


def _ids(report: ConvertReport) -> set[str]:
    manifest = open_dataset(report.dataset_dir).manifest
    return {entry.episode_id for entries in manifest.splits.values() for entry in entries}


@pytest.mark.parametrize("format", ["jsonl", "json"])
def test_every_value_comes_back_from_either_format(tmp_path: Path, format: str) -> None:
    episodes = {f"e{n}": make_episode(f"e{n}", 3 + n, spec=RICH_SPEC, final=True) for n in range(4)}
    record(tmp_path / "in", episodes.values(), format=format)
    report = convert_directory_to_tfrecord(tmp_path / "in", tmp_path / "out")
    dataset = open_dataset(report.dataset_dir)
    assert dataset.spec == RICH_SPEC
    assert (report.episodes, report.steps, report.quarantined) == (4, 3 + 4 + 5 + 6, [])
    for split in dataset.splits:
        for index, entry in enumerate(dataset.entries(split)):
            columns, episode = dataset.read(split, index), episodes.pop(entry.episode_id)
            for part, expected in (("observation", episode.observation), ("action", episode.action)):
                for path, column in expected.items():
                    assert_equal_columns(columns[f"{part}/{path}"], column)
            assert_equal_columns(columns["reward"], episode.reward)
            assert_equal_columns(columns["timestamp_ns"], episode.timestamp_ns)
    assert not episodes


def test_layout_names_and_report(tmp_path: Path) -> None:
    record_many(tmp_path / "in", [4] * 6)
    seen: list[tuple[int, int]] = []
    report = convert_directory_to_tfrecord(
        str(tmp_path / "in"), str(tmp_path / "out"), name="reach", progress=lambda *args: seen.append(args)
    )
    folder = tmp_path / "out" / "reach" / "1.0.0"
    assert report.dataset_dir == folder
    assert sorted(path.name for path in folder.iterdir()) == [
        "dataset_info.json",
        "dataset_statistics.json",
        "features.json",
        "manifest.json",
        "reach-train.tfrecord-00000",
        "reach-val.tfrecord-00000",
        "statistics.json",
    ]
    assert list(dict.fromkeys(seen)) == [(n, 6) for n in range(7)]
    assert orjson.loads(orjson.dumps(report.to_json()))["splits"] == report.splits
    assert sum(report.splits.values()) == 6
    assert min(report.splits.values()) >= 1
    # Nothing but the version, the lock and what is known of the sources stays: no half-built folder.
    assert sorted(path.name for path in folder.parent.iterdir()) == [".lock", ".sources.json", "1.0.0"]


def test_same_input_is_reused_and_new_input_makes_the_next_version(tmp_path: Path) -> None:
    record_many(tmp_path / "in", [3, 3])
    first = convert_directory_to_tfrecord(tmp_path / "in", tmp_path / "out")
    again = convert_directory_to_tfrecord(tmp_path / "in", tmp_path / "out")
    assert (first.reused, again.reused) == (False, True)
    assert (again.dataset_dir, again.splits) == (first.dataset_dir, first.splits)
    record(tmp_path / "in", [make_episode("later")])
    third = convert_directory_to_tfrecord(tmp_path / "in", tmp_path / "out")
    assert (third.reused, third.version, third.episodes) == (False, "1.0.1", 3)
    other = convert_directory_to_tfrecord(tmp_path / "in", tmp_path / "out", profile="rlds")
    assert (other.reused, other.version, other.profile) == (False, "1.0.2", "rlds")
    assert first.episodes == sum(
        len(entries) for entries in open_dataset(first.dataset_dir).manifest.splits.values()
    )


def test_a_damaged_version_is_not_reused(tmp_path: Path) -> None:
    record_many(tmp_path / "in", [3, 3])
    first = convert_directory_to_tfrecord(tmp_path / "in", tmp_path / "out")
    next(first.dataset_dir.glob("*val.tfrecord*")).unlink()
    second = convert_directory_to_tfrecord(tmp_path / "in", tmp_path / "out")
    assert (second.reused, second.version) == (False, "1.0.1")


def test_open_episodes_wait_and_do_not_make_a_new_version(tmp_path: Path) -> None:
    record_many(tmp_path / "in", [3, 3])
    with EpisodeLogger(tmp_path / "in") as logger:
        running = logger.start_episode(episode_id="running")
        logger.log_step({"state": [1.0, 2.0, 3.0]}, {"command": [0.0, 0.0]})
        report = convert_directory_to_tfrecord(tmp_path / "in", tmp_path / "out")
        assert report.skipped_open == [f"{running}.jsonl"]
        logger.log_step({"state": [1.0, 2.0, 4.0]}, {"command": [0.0, 0.0]})
        assert convert_directory_to_tfrecord(tmp_path / "in", tmp_path / "out").reused
        # Asked for by name, it is read as far as it goes.
        alone = convert_directory_to_tfrecord(tmp_path / "in" / f"{running}.jsonl", tmp_path / "out", name="one")
        assert (alone.episodes, alone.steps, alone.splits) == (1, 2, {"train": 1})


def test_files_of_the_seed_are_read_beside_ours(tmp_path: Path) -> None:
    record_many(tmp_path / "in", [3])
    write_seed_file(tmp_path / "in" / "old.jsonl", [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    report = convert_directory_to_tfrecord(tmp_path / "in", tmp_path / "out")
    assert (report.episodes, report.steps, report.quarantined) == (2, 5, [])


def test_what_cannot_be_converted_is_left_out_with_the_reason(tmp_path: Path) -> None:
    good = record_many(tmp_path / "in", [3, 3, 3])
    odd = EpisodeSpec({"state": Feature("float32", (5,))}, VECTOR_SPEC.action)
    (first,) = record(tmp_path / "in", [make_episode("a-odd", spec=odd)])
    (flipped,) = record(tmp_path / "in", [make_episode("flipped")])
    content = bytearray(flipped.read_bytes())
    content[len(content) // 2] ^= 1
    flipped.write_bytes(content)
    (tmp_path / "in" / "noise.json").write_text("not json")
    (tmp_path / "in" / "empty.jsonl").write_bytes(b"")
    (tmp_path / "in" / "notes.txt").write_text("not an episode, not looked at")
    report = convert_directory_to_tfrecord(tmp_path / "in", tmp_path / "out")
    reasons = {item["file"]: item["reason"] for item in report.quarantined}
    assert reasons.keys() == {first.name, "flipped.jsonl", "noise.json", "empty.jsonl"}
    assert "observation/state is float32 [5], not float32 [3]" in reasons[first.name]
    assert "checksum" in reasons["flipped.jsonl"]
    assert _ids(report) == {episode.episode_id for episode in good}
    # What was left out is still told when the version is reused.
    assert convert_directory_to_tfrecord(tmp_path / "in", tmp_path / "out").quarantined == report.quarantined


def test_the_same_episode_twice_is_taken_once(tmp_path: Path) -> None:
    (path,) = record(tmp_path / "in", [make_episode("a")])
    path.with_name("copy.jsonl").write_bytes(path.read_bytes())
    report = convert_directory_to_tfrecord(tmp_path / "in", tmp_path / "out")
    assert report.episodes == 1
    assert "'a' was already read from a.jsonl" in report.quarantined[0]["reason"]


def test_small_shards_hold_whole_episodes_in_order(tmp_path: Path) -> None:
    record_many(tmp_path / "in", [4] * 8)
    report = convert_directory_to_tfrecord(tmp_path / "in", tmp_path / "out", shard_bytes=1500, val_fraction=0.0)
    manifest = open_dataset(report.dataset_dir).manifest
    assert report.splits == {"train": 8}
    assert len(manifest.shards) > 2
    found = [sum(1 for _ in read_records(report.dataset_dir / shard.file)) for shard in manifest.shards]
    assert found == [shard.episodes for shard in manifest.shards]
    assert [entry.episode_id for entry in manifest.splits["train"]] == [f"e{n:02d}" for n in range(8)]
    info = orjson.loads((report.dataset_dir / "dataset_info.json").read_bytes())
    assert info["splits"][0]["shardLengths"] == [str(count) for count in found]


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"name": "My Robot"}, "name"),
        ({"profile": "tfds"}, "profile"),
        ({"val_fraction": 1.0}, "val_fraction"),
        ({"val_fraction": -0.1}, "val_fraction"),
        ({"shard_bytes": 0}, "shard_bytes"),
    ],
)
def test_a_wrong_option_is_named(tmp_path: Path, options: dict[str, Any], field: str) -> None:
    script = (
        "import sys; from brain_service.datasets import convert_directory_to_tfrecord as c\n"
        "from brain_service.errors import InvalidError\n"
        f"try: c(sys.argv[1], sys.argv[1], **{options!r})\n"
        "except InvalidError as error: print(error.field)"
    )
    # In a process without run-time type checks, as callers have it: the checks would refuse a wrong type first.
    done = subprocess.run([sys.executable, "-c", script, tmp_path], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == field


def test_no_input_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="give a directory of"):
        convert_directory_to_tfrecord(tmp_path / "missing", tmp_path / "out")
    (tmp_path / "in").mkdir()
    with pytest.raises(
        InvalidError, match=r"no episode to convert in .*record one with EpisodeLogger or POST /episodes"
    ):
        convert_directory_to_tfrecord(tmp_path / "in", tmp_path / "out")
    (tmp_path / "in" / "bad.json").write_text("{")
    with pytest.raises(InvalidError, match=r"bad\.json") as caught:
        convert_directory_to_tfrecord(tmp_path / "in", tmp_path / "out")
    assert caught.value.members["quarantined"][0]["file"] == "bad.json"
    assert list_versions(tmp_path / "out" / "episodes") == []


def test_an_output_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    record_many(tmp_path / "in", [3])
    (tmp_path / "out").write_text("a file where the folder should be")
    with pytest.raises(UnavailableError, match="nothing half-written was kept"):
        convert_directory_to_tfrecord(tmp_path / "in", tmp_path / "out")


def test_a_full_disk_leaves_no_version_and_the_old_one_readable(tmp_path: Path) -> None:
    record_many(tmp_path / "in", [40] * 3)
    first = convert_directory_to_tfrecord(tmp_path / "in", tmp_path / "out")
    record(tmp_path / "in", [make_episode("later", 40)])
    # A file-size limit fails a write half way, as a full disk does.
    script = (
        "import resource, signal, sys\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000))\n"
        "from brain_service.datasets import convert_directory_to_tfrecord as c\n"
        "from brain_service.errors import UnavailableError\n"
        "try: c(sys.argv[1], sys.argv[2])\n"
        "except UnavailableError as error: print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, tmp_path / "in", tmp_path / "out"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "free space" in done.stdout
    folder = first.dataset_dir.parent
    assert sorted(path.name for path in folder.iterdir()) == [".lock", ".sources.json", "1.0.0"]
    assert open_dataset(folder).read("train", 0)


def test_what_a_killed_converter_left_is_cleared(tmp_path: Path) -> None:
    record_many(tmp_path / "in", [3, 3])
    stale = tmp_path / "out" / "episodes" / ".work" / "1.0.0"
    stale.mkdir(parents=True)
    (stale / "half-written").write_bytes(b"x")
    report = convert_directory_to_tfrecord(tmp_path / "in", tmp_path / "out")
    assert report.version == "1.0.0"
    assert not stale.parent.exists()
    assert not (report.dataset_dir / "half-written").exists()


def test_two_converters_at_once_agree(tmp_path: Path) -> None:
    record_many(tmp_path / "in", [20] * 10)
    script = (
        "import sys; from brain_service.datasets import convert_directory_to_tfrecord as c\n"
        "report = c(sys.argv[1], sys.argv[2]); print(report.version, report.reused)"
    )
    arguments = [sys.executable, "-c", script, str(tmp_path / "in"), str(tmp_path / "out")]
    running = [subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    answers = sorted(process.communicate(timeout=60)[0].strip() for process in running)
    assert answers == ["1.0.0 False", "1.0.0 True"]


def test_conversion_imports_no_tensorflow_and_no_jax(tmp_path: Path) -> None:
    record_many(tmp_path / "in", [3, 3])
    script = (
        "import sys; from brain_service.datasets import convert_directory_to_tfrecord as c, open_dataset\n"
        "c(sys.argv[1], sys.argv[2]); open_dataset(sys.argv[2]).vectors('train', 0)\n"
        "print(sorted({'tensorflow', 'jax', 'torch', 'fastapi'} & {name.split('.')[0] for name in sys.modules}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, tmp_path / "in", tmp_path / "out"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "[]"
