"""LeRobot v3.0: what we write has the types that lerobot declares and every value; what lerobot wrote comes in."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings

from brain_service.datasets.convert import convert_directory_to_tfrecord
from brain_service.datasets.dataset import Dataset, open_dataset
from brain_service.datasets.formats import ImportOptions, export_dataset, import_dataset
from brain_service.datasets.lerobot_parquet import ParquetFiles
from brain_service.episodes.episode import Episode
from brain_service.episodes.reader import read_episode
from brain_service.errors import BrainError, ConflictError, CorruptDataError, InvalidError, NotFoundError
from brain_service.spec import EpisodeSpec, Feature, to_vector
from tests.pictures import decode

from .recording import record
from .samples import RICH_SPEC, VECTOR_SPEC, Recipe, make_episode, recipes

FOREIGN = Path(__file__).parent / "formats" / "lerobot_0_4_4"
"""Written by lerobot 0.4.4 itself, with `LeRobotDataset.create`, `add_frame` and `save_episode`."""

SINGLE = EpisodeSpec(RICH_SPEC.observation, VECTOR_SPEC.action)
IMAGES = EpisodeSpec(
    {"front": Feature("image", (6, 8, 3)), "images/wrist": Feature("image", (4, 5, 1)), **VECTOR_SPEC.observation},
    VECTOR_SPEC.action,
)
# What `datasets` stores for the feature types that lerobot derives from info.json (get_hf_features_from_features).
VALUES = {"float32": "float", "bool": "bool", "int64": "int64", "uint8": "uint8", "string": "string"}


def make_dataset(folder: Path, episodes: list[Episode], **options: Any) -> Dataset:
    record(folder / "in", episodes)
    options = {"val_fraction": 0.3} | options
    return open_dataset(convert_directory_to_tfrecord(folder / "in", folder / "out", **options).dataset_dir)


def several(spec: EpisodeSpec = SINGLE, count: int = 5, **options: Any) -> list[Episode]:
    ends = ("terminated", "truncated")
    return [
        make_episode(
            f"e{n:02d}",
            2 + n,
            spec=spec,
            end=ends[n % 2],
            metadata={"language_instruction": f"task {n % 2}", "operator": "Ada", "robot_id": "arm-1"},
            **options,
        )
        for n in range(count)
    ]


def arrow_name(described: dict[str, Any]) -> str:
    dtype, shape = described["dtype"], described["shape"]
    if dtype == "image":
        return "struct<bytes: binary, path: string>"
    if shape == [1]:
        return VALUES[dtype]
    if len(shape) == 1:
        return f"fixed_size_list<element: {VALUES[dtype]}>[{shape[0]}]"
    return "list<element: " * len(shape) + VALUES[dtype] + ">" * len(shape)


def info_of(folder: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((folder / "meta/info.json").read_text())
    return document


def rows_of(folder: Path, kind: str = "data") -> Any:
    return pa.concat_tables([pq.read_table(path) for path in sorted((folder / kind).glob("*/*.parquet"))])


def exported(root: Path, dataset: Dataset, **options: Any) -> tuple[Path, Any]:
    folder = root / "lerobot"
    return folder, export_dataset(dataset.path, folder, "lerobot", **options)


@pytest.mark.parametrize("spec", [VECTOR_SPEC, SINGLE, RICH_SPEC])
def test_every_value_stands_under_the_type_that_lerobot_declares(tmp_path: Path, spec: EpisodeSpec) -> None:
    episodes = {episode.episode_id: episode for episode in several(spec)}
    dataset = make_dataset(tmp_path, list(episodes.values()))
    folder, report = exported(tmp_path, dataset)
    info, table = info_of(folder), rows_of(folder)
    assert (info["codebase_version"], info["fps"], info["video_path"]) == ("v3.0", 20, None)
    assert info["robot_type"] == "arm-1"
    assert set(table.column_names) == set(info["features"])
    for name, described in info["features"].items():
        assert "/" not in name
        assert str(table.schema.field(name).type) == arrow_name(described), name
    order = [episodes[entry.episode_id] for split in dataset.splits for entry in dataset.entries(split)]
    for part, columns in (("observation", spec.observation), ("action", spec.action)):
        for path, feature in columns.items():
            name = "action" if part == "action" and len(spec.action) == 1 else f"{part}.{path.replace('/', '.')}"
            if feature.dtype == "text":
                assert name not in table.column_names
                assert f"{part}/{path}" in report.left_out
                continue
            expected = np.concatenate([np.asarray(getattr(episode, part)[path]) for episode in order])
            found = np.array(table.column(name).to_pylist(), feature.dtype).reshape(expected.shape)
            assert found.tobytes() == expected.tobytes(), name
    assert table.column("next.reward").to_pylist() == [float(r) for episode in order for r in episode.reward]
    times = [int(t) for episode in order for t in episode.timestamp_ns]
    assert table.column("timestamp_ns").to_pylist() == times


def test_the_indices_lead_to_every_frame(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path, several())
    folder, report = exported(tmp_path, dataset)
    info, table, episodes = info_of(folder), rows_of(folder), rows_of(folder, "meta/episodes").to_pylist()
    lengths = [entry.length for split in dataset.splits for entry in dataset.entries(split)]
    assert (info["total_episodes"], info["total_frames"]) == (5, sum(lengths)) == (report.episodes, report.steps)
    trained = len(dataset.entries("train"))
    assert info["splits"] == {"train": f"0:{trained}", "val": f"{trained}:5"}
    assert table.column("index").to_pylist() == list(range(sum(lengths)))
    frames = table.column("frame_index").to_pylist()
    assert frames == [frame for length in lengths for frame in range(length)]
    assert table.column("timestamp").to_pylist() == [float(np.float32(frame / 20)) for frame in frames]
    tasks = pq.read_table(folder / "meta/tasks.parquet")
    assert tasks.schema.pandas_metadata["index_columns"] == ["task"]
    names = dict(zip(tasks.column("task_index").to_pylist(), tasks.column("task").to_pylist(), strict=True))
    assert sorted(names.values()) == ["task 0", "task 1"]
    ids = [entry.episode_id for split in dataset.splits for entry in dataset.entries(split)]
    for number, (row, length) in enumerate(zip(episodes, lengths, strict=True)):
        first, stop = row["dataset_from_index"], row["dataset_to_index"]
        assert (row["episode_index"], row["length"], stop - first) == (number, length, length)
        mine = table.slice(first, length)
        assert set(mine.column("episode_index").to_pylist()) == {number}
        assert [names[task] for task in set(mine.column("task_index").to_pylist())] == row["tasks"]
        path = info["data_path"].format(chunk_index=row["data/chunk_index"], file_index=row["data/file_index"])
        assert number in pq.read_table(folder / path).column("episode_index").to_pylist()
        assert row["episode_id"] == ids[number]
        done = [False] * (length - 1) + [True]
        assert mine.column("next.done").to_pylist() == done
        cut = row["end"] == "truncated"
        assert mine.column("next.truncated").to_pylist() == [flag and cut for flag in done]
        assert json.loads(row["metadata_json"])["episode_id"] == ids[number]


def test_statistics_are_those_of_the_frames(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path, several(RICH_SPEC))
    folder, _ = exported(tmp_path, dataset)
    info, table, stats = info_of(folder), rows_of(folder), json.loads((folder / "meta/stats.json").read_text())
    episodes = rows_of(folder, "meta/episodes").to_pylist()
    assert stats.keys() == {name for name, told in info["features"].items() if told["dtype"] != "string"}
    for name, figures in stats.items():
        shape = info["features"][name]["shape"]
        values = np.array(table.column(name).to_pylist(), np.float64).reshape(-1, *shape)
        expected = {"min": values.min(0), "max": values.max(0), "mean": values.mean(0), "std": values.std(0)}
        expected |= {f"q{q:02d}": np.quantile(values, q / 100, axis=0) for q in (1, 10, 50, 90, 99)}
        assert figures.pop("count") == [len(values)]
        assert figures.keys() == expected.keys()
        for figure, value in expected.items():
            # Nanoseconds since 1970 leave float64 a quarter of a microsecond.
            off = 1e-6 if name == "timestamp_ns" else 1e-9
            assert np.array(figures[figure]) == pytest.approx(value, rel=off, abs=off), (name, figure)
        for row in episodes:
            mine = values[row["dataset_from_index"] : row["dataset_to_index"]]
            assert np.array(row[f"stats/{name}/mean"]) == pytest.approx(mine.mean(0), rel=1e-9, abs=1e-9)
            assert row[f"stats/{name}/count"] == [len(mine)]


def test_images_are_left_out_unless_asked_for(tmp_path: Path) -> None:
    episodes = {episode.episode_id: episode for episode in several(IMAGES)}
    dataset = make_dataset(tmp_path, list(episodes.values()))
    report = export_dataset(dataset.path, tmp_path / "plain", "lerobot")
    assert set(report.left_out) == {"observation/front", "observation/images/wrist"}
    assert "--images" in report.left_out["observation/front"]
    assert not [name for name, told in info_of(tmp_path / "plain")["features"].items() if told["dtype"] == "image"]

    folder, report = exported(tmp_path, dataset, images=True)
    assert not report.left_out
    told = info_of(folder)["features"]["observation.images.front"]
    assert told == {"dtype": "image", "shape": [6, 8, 3], "names": ["height", "width", "channels"]}
    order = [episodes[entry.episode_id] for split in dataset.splits for entry in dataset.entries(split)]
    table = rows_of(folder)
    for path, name in (("front", "observation.images.front"), ("images/wrist", "observation.images.wrist")):
        expected = [image for episode in order for image in episode.observation[path]]
        assert [value["bytes"] for value in table.column(name).to_pylist()] == expected
    figures = json.loads((folder / "meta/stats.json").read_text())["observation.images.front"]
    images = [image for episode in order for image in episode.observation["front"] if isinstance(image, bytes)]
    pixels = np.concatenate([decode(image).reshape(-1, 3) for image in images]) / 255
    assert np.shape(figures["mean"]) == (3, 1, 1)
    assert np.ravel(figures["mean"]) == pytest.approx(pixels.mean(0), abs=0.02)
    assert np.ravel(figures["max"]).max() <= 1

    import_dataset(folder, tmp_path / "back", "lerobot")
    for episode_id, episode in episodes.items():
        back = read_episode(tmp_path / "back" / f"{episode_id}.jsonl")
        assert back.observation["images/front"] == episode.observation["front"]


@pytest.mark.parametrize("final", [True, False])
def test_a_final_observation_is_no_frame(tmp_path: Path, final: bool) -> None:
    episodes = {episode.episode_id: episode for episode in several(VECTOR_SPEC, final=final)}
    dataset = make_dataset(tmp_path, list(episodes.values()), profile="rlds")
    folder, report = exported(tmp_path, dataset)
    assert report.steps == sum(len(episode) for episode in episodes.values())
    table = rows_of(folder)
    for row in rows_of(folder, "meta/episodes").to_pylist():
        mine, episode = table.slice(row["dataset_from_index"], row["length"]), episodes[row["episode_id"]]
        assert np.array_equal(np.array(mine.column("action").to_pylist(), np.float32), episode.action["command"])
        assert mine.column("next.truncated").to_pylist()[-1] == (episode.end == "truncated")


def test_files_are_of_bounded_size_and_each_is_closed(tmp_path: Path) -> None:
    table = pa.table({"x": pa.array(range(1000), pa.int64())})
    places = []
    with ParquetFiles(
        tmp_path, "chunk-{chunk_index:03d}/file-{file_index:03d}.parquet", 2 * table.nbytes
    ) as files:
        for _ in range(5):
            places.append(files.place(table.nbytes))
            files.write(table)
            for path in sorted(tmp_path.glob("*/*.parquet"))[:-1]:
                assert pq.read_metadata(path).num_rows == 2000
    assert places == [(0, 0), (0, 0), (0, 1), (0, 1), (0, 2)]
    assert [pq.read_metadata(path).num_rows for path in sorted(tmp_path.glob("*/*.parquet"))] == [2000, 2000, 1000]


def test_the_thousandth_file_begins_a_chunk(tmp_path: Path) -> None:
    table = pa.table({"x": pa.array([1], pa.int64())})
    with ParquetFiles(tmp_path, "chunk-{chunk_index:03d}/file-{file_index:03d}.parquet", 1) as files:
        for _ in range(1001):
            place = files.place(table.nbytes)
            files.write(table)
    assert place == (1, 0)
    assert (tmp_path / "chunk-001/file-000.parquet").is_file()


def test_a_rate_that_is_no_whole_number_or_is_not_kept_is_told(tmp_path: Path) -> None:
    episode = make_episode("e0", 40)
    times = episode.timestamp_ns
    times[:] = np.cumsum(np.where(np.arange(40) % 8 == 0, 90_000_000, 29_000_000))
    dataset = make_dataset(tmp_path, [episode])
    folder, report = exported(tmp_path, dataset)
    assert info_of(folder)["fps"] == 34
    assert any("34.48 steps a second" in warning for warning in report.warnings)
    assert any("episode e0" in warning and "intervals" in warning for warning in report.warnings)
    assert export_dataset(dataset.path, tmp_path / "ten", "lerobot", fps=10).facts["fps"] == 10


def test_an_unknown_rate_must_be_given(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path, [make_episode("e0", 1)])
    with pytest.raises(InvalidError, match="give --fps"):
        exported(tmp_path, dataset)
    assert exported(tmp_path, dataset, fps=5)[1].steps == 1


def test_what_lerobot_cannot_name_or_hold_is_said(tmp_path: Path) -> None:
    clash = EpisodeSpec(
        {"a.b": Feature("float32"), "a/b": Feature("float32")}, {"command": Feature("float32", (2,))}
    )
    with pytest.raises(InvalidError, match=r"would both be observation\.a\.b"):
        exported(tmp_path, make_dataset(tmp_path / "1", [make_episode(spec=clash)]))
    texts = EpisodeSpec({"note": Feature("text")}, VECTOR_SPEC.action)
    with pytest.raises(InvalidError, match="nothing of this dataset's observation"):
        exported(tmp_path, make_dataset(tmp_path / "2", [make_episode(spec=texts)]))
    deep = EpisodeSpec({"x": Feature("float32", (1,) * 6), **VECTOR_SPEC.observation}, RICH_SPEC.action)
    _, report = exported(tmp_path, make_dataset(tmp_path / "3", [make_episode(spec=deep)]))
    assert "6 axes" in report.left_out["observation/x"]


def test_several_actions_are_also_the_one_that_policies_learn(tmp_path: Path) -> None:
    episodes = {episode.episode_id: episode for episode in several(RICH_SPEC)}
    dataset = make_dataset(tmp_path, list(episodes.values()))
    folder, report = exported(tmp_path, dataset)
    described, table = info_of(folder)["features"]["action"], rows_of(folder)
    assert described == {
        "dtype": "float32",
        "shape": [4],
        "names": ["arm.command_0", "arm.command_1", "gripper_0", "mode_0"],
    }
    order = [episodes[entry.episode_id] for split in dataset.splits for entry in dataset.entries(split)]
    expected = [
        to_vector({path: np.asarray(episode.action[path][step]) for path in episode.action}, RICH_SPEC.action)
        for episode in order
        for step in range(len(episode))
    ]
    assert np.array_equal(np.array(table.column("action").to_pylist(), np.float32), np.stack(expected))
    stats = json.loads((folder / "meta/stats.json").read_text())["action"]
    assert stats["mean"] == pytest.approx(np.stack(expected).astype(np.float64).mean(axis=0))
    assert report.warnings == []
    # The parts come in again as they were, and not a second time as one.
    back = import_dataset(folder, tmp_path / "back", "lerobot")
    assert "action" not in back.left_out
    episode = order[0]
    found = read_episode(tmp_path / "back" / f"{episode.episode_id}.jsonl")
    assert list(found.spec.action) == list(RICH_SPEC.action)
    import_dataset(folder, tmp_path / "joined", "lerobot", ImportOptions(action=("action",)))
    joined = read_episode(tmp_path / "joined" / f"{episode.episode_id}.jsonl")
    assert joined.spec.action == {"command": Feature("float32", (4,))}


def test_the_only_action_that_is_a_vector_is_the_action(tmp_path: Path) -> None:
    spec = EpisodeSpec(VECTOR_SPEC.observation, {"arm": Feature("float32", (2,)), "note": Feature("text")})
    folder, _ = exported(tmp_path, make_dataset(tmp_path, several(spec)))
    assert "action.arm" not in info_of(folder)["features"]
    assert info_of(folder)["features"]["action"]["shape"] == [2]


def test_two_foreign_actions_of_one_size_both_come_in(tmp_path: Path) -> None:
    folder = shutil.copytree(FOREIGN, tmp_path / "foreign")
    features = info_of(folder)["features"]
    features["action.raw"] = features["action"]
    edit_info(folder, features=features)
    rewrite(folder / DATA, lambda table: table.append_column("action.raw", table.column("action")))
    import_dataset(folder, tmp_path / "back", "lerobot")
    episode = read_episode(tmp_path / "back" / "foreign-episode-000000.jsonl")
    assert set(episode.action) == {"command", "raw"}


def test_options_are_checked_before_anything_is_written(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path, several())
    for options, message in (({"format": "hdf5"}, "hdf5"), ({"fps": 0}, "fps 0"), ({"splits": ["test"]}, "test")):
        with pytest.raises(BrainError, match=message):
            export_dataset(dataset.path, tmp_path / "new", **{"format": "lerobot"} | options)
    (tmp_path / "new").mkdir()
    (tmp_path / "new/mine").touch()
    with pytest.raises(ConflictError, match="is there already"):
        export_dataset(dataset.path, tmp_path / "new", "lerobot")
    assert os.listdir(tmp_path / "new") == ["mine"]


def test_a_split_alone(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path, several())
    folder, report = exported(tmp_path, dataset, splits=["val"])
    assert report.episodes == len(dataset.entries("val"))
    assert info_of(folder)["splits"] == {"val": f"0:{report.episodes}"}


def test_a_killed_export_leaves_nothing_and_starts_again(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path, several())
    script = (
        "import os, sys\n"
        "from brain_service.datasets.formats import export_dataset\n"
        "stop = lambda done, total: done == 3 and os._exit(9)\n"
        "export_dataset(sys.argv[1], sys.argv[2], 'lerobot', progress=stop)"
    )
    folder = tmp_path / "lerobot"
    done = subprocess.run([sys.executable, "-c", script, dataset.path, folder], check=False)
    assert done.returncode == 9
    assert not folder.exists()
    assert (tmp_path / ".lerobot.work").exists()
    assert export_dataset(dataset.path, folder, "lerobot").episodes == 5
    assert not (tmp_path / ".lerobot.work").exists()
    assert len(rows_of(folder, "meta/episodes")) == 5


def test_two_exports_to_one_folder(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path, several())

    def second(done: int, total: int) -> None:
        with pytest.raises(ConflictError, match="another process"):
            export_dataset(dataset.path, tmp_path / "lerobot", "lerobot")

    assert export_dataset(dataset.path, tmp_path / "lerobot", "lerobot", progress=second).episodes == 5


def test_a_dataset_of_lerobots_own_comes_in(tmp_path: Path) -> None:
    report = import_dataset(FOREIGN, tmp_path, "lerobot")
    assert (report.episodes, report.steps, report.quarantined) == (3, 12, [])
    assert "--observation" in report.left_out["note"]
    tasks = ["pick the cube", "place the cube", "pick the cube"]
    for number, (length, task) in enumerate(zip((4, 3, 5), tasks, strict=True)):
        episode = read_episode(tmp_path / f"lerobot_0_4_4-episode-{number:06d}.jsonl")
        t = np.arange(length)
        assert episode.metadata["language_instruction"] == task
        assert episode.metadata["robot_id"] == "so100"
        assert np.array_equal(episode.timestamp_ns, t * 40_000_000)
        state = np.arange(3) + 10 * number + t[:, None] / 8
        assert np.array_equal(episode.observation["state"], state.astype(np.float32))
        grid = (number + t / 4)[:, None, None] * np.array([[1, 2], [3, 4]])
        assert np.array_equal(episode.observation["grid"], grid.astype(np.float32))
        force = (0.1 * t + number)[:, None].astype(np.float32)
        assert np.array_equal(episode.observation["force"], force)
        contact = np.stack([t % 2 == 0, np.full(length, number == 1)], axis=1)
        assert np.array_equal(episode.observation["contact"], contact)
        for step, image in enumerate(episode.observation["images/front"]):
            assert isinstance(image, bytes)
            assert (decode(image) == 10 * number + step).all()
        action = np.stack([number - t / 4, 0.5 * t], axis=1).astype(np.float32)
        assert np.array_equal(episode.action["command"], action)
        assert np.array_equal(episode.reward, (t / 2).astype(np.float32))
        assert episode.end == ("truncated" if number == 1 else "terminated")


def test_features_are_chosen_by_name(tmp_path: Path) -> None:
    options = ImportOptions(observation=("state", "note"), action=("observation.contact", "action"))
    report = import_dataset(FOREIGN, tmp_path, "lerobot", options)
    episode = read_episode(tmp_path / "lerobot_0_4_4-episode-000000.jsonl")
    assert set(episode.observation) == {"state", "note"}
    assert episode.observation["note"] == ["f0", "f1", "f2", "f3"]
    assert set(episode.action) == {"observation.contact".replace(".", "/"), "command"}
    assert set(report.left_out) == {"observation.force", "observation.grid", "observation.images.front"}
    with pytest.raises(InvalidError, match=r"--observation speed: there is no such feature; known: .*state"):
        import_dataset(FOREIGN, tmp_path, "lerobot", ImportOptions(observation=("speed",)))


def test_a_second_import_skips_what_is_there(tmp_path: Path) -> None:
    first = import_dataset(FOREIGN, tmp_path, "lerobot")
    files = {path.name: path.read_bytes() for path in tmp_path.glob("*.jsonl")}
    again = import_dataset(FOREIGN, tmp_path, "lerobot")
    assert (again.episodes, again.skipped) == (0, first.episodes)
    assert {path.name: path.read_bytes() for path in tmp_path.glob("*.jsonl")} == files
    # The same names with another content are not the same episodes.
    other = ImportOptions(observation=("state",))
    with pytest.raises(InvalidError, match="holds another episode") as caught:
        import_dataset(FOREIGN, tmp_path, "lerobot", other)
    assert len(caught.value.members["quarantined"]) == 3
    assert {path.name: path.read_bytes() for path in tmp_path.glob("*.jsonl")} == files


def test_an_import_is_ready_to_convert(tmp_path: Path) -> None:
    import_dataset(FOREIGN, tmp_path / "episodes", "lerobot")
    dataset = open_dataset(convert_directory_to_tfrecord(tmp_path / "episodes", tmp_path / "out").dataset_dir)
    assert sum(len(dataset.entries(split)) for split in dataset.splits) == 3
    assert dataset.control_period_s == pytest.approx(0.04)


def rewrite(path: Path, change: Callable[[Any], Any]) -> None:
    pq.write_table(change(pq.read_table(path)), path)


def edit_info(folder: Path, **members: Any) -> None:
    path = folder / "meta/info.json"
    document = json.loads(path.read_text()) | members
    path.write_text(json.dumps({name: value for name, value in document.items() if value != "gone"}))


DATA = "data/chunk-000/file-000.parquet"
EPISODES = "meta/episodes/chunk-000/file-000.parquet"


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def with_column(name: str, values: Any) -> Callable[[Any], Any]:
    def change(table: Any) -> Any:
        return table.set_column(table.column_names.index(name), name, values(table))

    return change


REFUSED: dict[str, tuple[Callable[[Path], None], type[BrainError], str]] = {
    "no dataset": (lambda folder: shutil.rmtree(folder / "meta"), NotFoundError, r"meta/info\.json is missing"),
    "no version": (
        lambda folder: edit_info(folder, codebase_version="gone"),
        CorruptDataError,
        "codebase_version",
    ),
    "no fps": (lambda folder: edit_info(folder, fps="gone"), CorruptDataError, "fps"),
    "no features": (lambda folder: edit_info(folder, features="gone"), CorruptDataError, "features"),
    "fps of nothing": (lambda folder: edit_info(folder, fps=0), InvalidError, "fps 0 is not between"),
    "fps beyond time": (lambda folder: edit_info(folder, fps=1e-300), InvalidError, "fps 1e-300 is not between"),
    "no numbers in the index": (
        lambda folder: rewrite(folder / EPISODES, with_column("length", lambda t: pa.nulls(len(t), pa.int64()))),
        CorruptDataError,
        "are not whole numbers",
    ),
    "texts in the index": (
        lambda folder: rewrite(
            folder / EPISODES, with_column("episode_index", lambda t: pa.array([str(n) for n in range(len(t))]))
        ),
        CorruptDataError,
        "are not whole numbers",
    ),
    "no data path": (lambda folder: edit_info(folder, data_path="gone"), CorruptDataError, "data_path"),
    "paths of v2": (
        lambda folder: edit_info(folder, data_path="data/episode_{episode_index:06d}.parquet"),
        InvalidError,
        "data_path .* does not lead from",
    ),
    "v2.1": (
        lambda folder: edit_info(folder, codebase_version="v2.1"),
        InvalidError,
        "v2.1 is not v3.0; .*convert_dataset_v21_to_v30",
    ),
    "no JSON": (lambda folder: cut(folder / "meta/info.json"), CorruptDataError, r"info\.json"),
    "cut index": (lambda folder: cut(folder / EPISODES), CorruptDataError, EPISODES),
    "cut tasks": (lambda folder: cut(folder / "meta/tasks.parquet"), CorruptDataError, r"tasks\.parquet"),
    "cut data": (lambda folder: cut(folder / DATA), InvalidError, f"no episode .*{DATA}"),
    "no data": (lambda folder: (folder / DATA).unlink(), InvalidError, f"no episode .*{DATA} is missing"),
    "other count": (lambda folder: edit_info(folder, total_episodes=4), CorruptDataError, "lists 3 .* says 4"),
    "lost row": (lambda folder: rewrite(folder / EPISODES, lambda t: t.slice(1)), CorruptDataError, "lists 2"),
    "lost column": (
        lambda folder: rewrite(folder / DATA, lambda t: t.drop_columns(["action"])),
        InvalidError,
        "lacks the column 'action'",
    ),
    "nulls": (
        lambda folder: rewrite(
            folder / DATA, with_column("action", lambda t: pa.nulls(len(t), t.schema.field("action").type))
        ),
        InvalidError,
        "action: 4 of 4 frames have no value",
    ),
    "ragged": (
        lambda folder: rewrite(
            folder / DATA, with_column("action", lambda t: pa.array([[1.0] * (1 + n % 3) for n in range(len(t))]))
        ),
        InvalidError,
        "action: rows of 1, 2, 3 values",
    ),
    "texts": (
        lambda folder: rewrite(folder / DATA, with_column("next.reward", lambda t: pa.array(["1"] * len(t)))),
        InvalidError,
        "next.reward: holds object",
    ),
    "not a number": (
        lambda folder: rewrite(
            folder / DATA, with_column("action", lambda t: pa.array([[float("nan"), 0.0]] * len(t)))
        ),
        InvalidError,
        "step 0: action/command: holds NaN",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_read_is_named(tmp_path: Path, case: str) -> None:
    damage, error, message = REFUSED[case]
    folder = shutil.copytree(FOREIGN, tmp_path / "foreign")
    damage(folder)
    with pytest.raises(error, match=message):
        import_dataset(folder, tmp_path / "episodes", "lerobot")
    assert not list((tmp_path / "episodes").glob("*"))


@pytest.mark.long
@pytest.mark.parametrize("file", ["meta/info.json", "meta/tasks.parquet", EPISODES, DATA])
def test_a_flipped_byte_is_an_error_of_ours_or_leaves_an_episode_out_or_changes_nothing(
    tmp_path: Path, file: str
) -> None:
    episode = make_episode("e0", 3)
    folder, _ = exported(tmp_path, make_dataset(tmp_path, [episode], val_fraction=0.0), fps=20)
    path = folder / file
    good = path.read_bytes()
    step = max(1, len(good) // 80)
    for position in range(0, len(good), step):
        bad = bytearray(good)
        bad[position] ^= 1 << (position // step % 8)
        path.write_bytes(bad)
        shutil.rmtree(tmp_path / "back", ignore_errors=True)
        with contextlib.suppress(BrainError):
            if import_dataset(folder, tmp_path / "back", "lerobot").episodes and file == DATA:
                back = read_episode(next((tmp_path / "back").glob("*.jsonl")))
                assert np.array_equal(back.observation["state"], episode.observation["state"]), position
                assert np.array_equal(back.action["command"], episode.action["command"]), position


def test_one_bad_episode_does_not_hold_up_the_others(tmp_path: Path) -> None:
    folder = shutil.copytree(FOREIGN, tmp_path / "foreign")
    rewrite(folder / DATA, with_column("next.done", lambda t: pa.array([n == 5 for n in range(len(t))])))
    report = import_dataset(folder, tmp_path / "episodes", "lerobot")
    assert report.episodes == 2
    (bad,) = report.quarantined
    assert bad["place"] == "foreign-episode-000001"
    assert "step 2" in bad["reason"]
    assert len(list((tmp_path / "episodes").glob("*"))) == 4  # two logs, two folders of images


def test_videos_are_left_out_and_said(tmp_path: Path) -> None:
    folder = shutil.copytree(FOREIGN, tmp_path / "foreign")
    features = json.loads((folder / "meta/info.json").read_text())["features"]
    features["observation.images.front"]["dtype"] = "video"
    features["observation.odd"] = {"dtype": "complex64", "shape": [1], "names": None}
    edit_info(folder, features=features)
    report = import_dataset(folder, tmp_path / "episodes", "lerobot")
    assert "videos are not decoded" in report.left_out["observation.images.front"]
    assert "complex64" in report.left_out["observation.odd"]
    with pytest.raises(InvalidError, match="videos are not decoded"):
        import_dataset(
            folder, tmp_path / "other", "lerobot", ImportOptions(observation=("observation.images.front",))
        )


@given(recipe=recipes)
@hypothesis_settings(max_examples=20)
def test_the_vectors_of_any_episode_survive_the_way_out_and_back(
    tmp_path_factory: pytest.TempPathFactory, recipe: Recipe
) -> None:
    # Names that capture refuses are for its own tests.
    episode = replace(recipe, episode_id="e0").build()
    spec = episode.spec
    kept = {
        part: {path: feature for path, feature in getattr(spec, part).items() if feature.is_numeric}
        for part in ("observation", "action")
    }
    root = tmp_path_factory.mktemp("law")
    dataset = make_dataset(root, [episode])
    if not all(kept.values()):
        with pytest.raises(InvalidError, match="can hold nothing"):
            exported(root, dataset, fps=20)
        return
    folder, _ = exported(root, dataset, fps=20)
    assert import_dataset(folder, root / "back", "lerobot").episodes == 1
    back = read_episode(root / "back" / f"{episode.episode_id}.jsonl")
    for part in ("observation", "action"):
        mine, its = getattr(episode, part), getattr(back, part)
        for step in range(len(episode)):
            found = to_vector({path: np.asarray(its[path][step]) for path in its}, getattr(back.spec, part))
            expected = to_vector({path: np.asarray(mine[path][step]) for path in kept[part]}, kept[part])
            assert found.tobytes() == expected.tobytes()
    assert back.reward.tobytes() == episode.reward.tobytes()
    assert np.array_equal(back.timestamp_ns, episode.timestamp_ns)
    assert (back.end, back.control_role) == (episode.end, episode.control_role)
    assert back.metadata["language_instruction"] == episode.metadata["language_instruction"]
    shutil.rmtree(root)
