"""Readers that nobody here wrote open our datasets unmodified and find every value."""

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from brain_service.datasets.columns import episode_columns
from brain_service.datasets.convert import convert_directory_to_tfrecord
from brain_service.datasets.dataset import Dataset, open_dataset
from brain_service.episodes.episode import Episode

from .recording import record
from .samples import make_episode

pytestmark = pytest.mark.long

JUDGE = Path(__file__).with_name("judge_readers.py")
Found = Mapping[str, Any]
OPTIONS: dict[str, Any] = {"name": "bench", "profile": "rlds", "val_fraction": 0.3, "shard_bytes": 2500}


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> tuple[Dataset, dict[str, Episode], Found]:
    """A dataset of two splits and several shards, its episodes, and what the judges found in it."""
    root = tmp_path_factory.mktemp("readers")
    episodes = {f"e{n:02d}": make_episode(f"e{n:02d}", 2 + n, final=True) for n in range(9)}
    # In two conversions: the second version shares shards with the first, by hard links.
    record(root / "in", list(episodes.values())[:5])
    convert_directory_to_tfrecord(root / "in", root / "in" / "out", **OPTIONS)
    record(root / "in", list(episodes.values())[5:])
    record(root / "in2", [make_episode(f"f{n}", 3, final=True) for n in range(5)])
    folders = [
        convert_directory_to_tfrecord(root / source, root / source / "out", **OPTIONS).dataset_dir
        for source in ("in", "in2")
    ]
    assert any(path.stat().st_nlink > 1 for path in folders[0].glob("*.tfrecord-*"))
    output = root / "found.npz"
    done = subprocess.run(
        [sys.executable, JUDGE, *folders, output], capture_output=True, text=True, check=False, timeout=280
    )
    assert done.returncode == 0, done.stderr[-4000:]
    with np.load(output) as found:
        return open_dataset(folders[0]), episodes, dict(found)


def _train(dataset: Dataset, episodes: Mapping[str, Episode], name: str) -> list[Any]:
    return [episode_columns(episodes[e.episode_id], "rlds")[name] for e in dataset.entries("train")]


def test_tfds_reads_two_folders_as_one(judged: tuple[Dataset, dict[str, Episode], Found]) -> None:
    dataset, episodes, found = judged
    assert found["directories/ids"].tolist() == sorted([*episodes, *(f"f{n}" for n in range(5))])
    assert found["directories/examples"].sum() == len(episodes) + 5
    assert found["directories/shards"].sum() > len(dataset.manifest.shards) > 2


def test_tf_data_parses_the_raw_shards(judged: tuple[Dataset, dict[str, Episode], Found]) -> None:
    _, episodes, found = judged
    for episode_id, episode in episodes.items():
        columns = episode_columns(episode, "rlds")
        for name, shape in (("observation/state", (-1,)), ("action", (-1, 2)), ("reward", (-1,))):
            value, expected = found[f"raw/{episode_id}/steps/{name}"], np.asarray(columns[name]).reshape(shape)
            assert value.dtype == expected.dtype
            assert np.array_equal(value, expected), name
        for name in ("is_last", "timestamp_ns"):
            assert np.array_equal(found[f"raw/{episode_id}/steps/{name}"], np.asarray(columns[name], np.int64))
        assert found[f"raw/{episode_id}/steps/language_instruction"].tolist() == columns["language_instruction"]


def test_trajectories_as_dlimp_makes_them(judged: tuple[Dataset, dict[str, Episode], Found]) -> None:
    dataset, episodes, found = judged
    assert found["trajectories/lengths"].tolist() == dataset.lengths("train").tolist()
    assert found["trajectories/types"].tolist() == ["<dtype: 'float32'>", "(None, 2)"]
    for name, column in (("action", "action"), ("reward", "reward"), ("state", "observation/state")):
        expected = np.concatenate(_train(dataset, episodes, column))
        assert np.array_equal(found[f"trajectories/{name}"], expected), name
    assert set(found["trajectories/instruction"]) == {"reach the puck"}
    starts = np.flatnonzero(found["trajectories/_frame_index"] == 0)
    assert found["trajectories/ids"][starts].tolist() == [e.episode_id for e in dataset.entries("train")]


def test_octo_and_openvla_normalise_with_the_statistics(
    judged: tuple[Dataset, dict[str, Episode], Found],
) -> None:
    dataset, episodes, found = judged
    # The final step of an rlds episode has no action: it is in the frames, not in the figures.
    actions = [np.asarray(column)[:-1] for column in _train(dataset, episodes, "action")]
    rows = np.concatenate(actions).astype(np.float64)
    real = np.concatenate([[True] * len(column) + [False] for column in actions])
    normal = found["octo/normal"][real]
    assert normal.mean(axis=0) == pytest.approx(0, abs=1e-5)
    assert normal.std(axis=0) == pytest.approx(1, abs=1e-5)
    assert np.abs(found["octo/bounded"]).max() <= 1
    expected = [rows.min(0), rows.max(0), np.quantile(rows, 0.01, axis=0), np.quantile(rows, 0.99, axis=0)]
    assert found["octo/low_high"] == pytest.approx(np.stack(expected), abs=1e-5)
    assert found["octo/counts"].tolist() == [len(rows), len(actions)]


def test_grain_and_array_record_take_the_records(judged: tuple[Dataset, dict[str, Episode], Found]) -> None:
    dataset, episodes, found = judged
    for entry, action in zip(dataset.entries("train"), _train(dataset, episodes, "action"), strict=True):
        assert np.array_equal(found[f"records/{entry.episode_id}"], action.reshape(-1))


def test_the_rlds_library_transforms_the_episodes(judged: tuple[Dataset, dict[str, Episode], Found]) -> None:
    dataset, episodes, found = judged
    if "rlds/length" not in found:
        pytest.skip("the rlds package is not installed (it has wheels for x86_64 alone)")
    first = dataset.entries("train")[0]
    columns = episode_columns(episodes[first.episode_id], "rlds")
    action, reward = np.asarray(columns["action"]), np.asarray(columns["reward"])
    assert found["rlds/length"] == first.length
    assert found["rlds/final_is_last"]
    rows = np.concatenate([np.asarray(column)[:-1] for column in _train(dataset, episodes, "action")])
    assert found["rlds/mean"] == pytest.approx(rows.mean(axis=0), abs=1e-5)
    assert found["rlds/std"] == pytest.approx(rows.std(axis=0, ddof=1), abs=1e-4)
    assert found["rlds/shifted"] == pytest.approx(reward[1:])
    assert np.array_equal(found["rlds/windows"], np.stack([action[t : t + 2] for t in range(len(action) - 1)]))
    assert found["rlds/joined"] == first.length + 1  # absorbing, since it terminated
    assert found["rlds/cut"] == 1
    core = {"action", "discount", "is_first", "is_last", "is_terminal", "observation", "reward"}
    assert core < set(found["rlds/spec"])
