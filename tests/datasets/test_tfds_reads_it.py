"""TensorFlow Datasets, which nobody here wrote, opens what we write and finds every value."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest

from brain_service.datasets.columns import Profile, episode_columns
from brain_service.datasets.convert import convert_directory_to_tfrecord
from brain_service.datasets.dataset import open_dataset
from brain_service.spec import EpisodeSpec

from .recording import record
from .samples import RICH_SPEC, VECTOR_SPEC, make_episode

JUDGE = Path(__file__).with_name("judge.py")
NESTED_ACTION = RICH_SPEC
SINGLE_ACTION = EpisodeSpec(RICH_SPEC.observation, VECTOR_SPEC.action)


def _judge(folder: Path, output: Path) -> dict[str, Any]:
    done = subprocess.run([sys.executable, JUDGE, folder, output], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    with np.load(output) as found:
        return dict(found)


@pytest.mark.long
@pytest.mark.parametrize(
    ("profile", "spec"), [("oxe", NESTED_ACTION), ("rlds", NESTED_ACTION), ("oxe", SINGLE_ACTION)]
)
def test_every_value_is_found(tmp_path: Path, profile: Profile, spec: EpisodeSpec) -> None:
    endings = ("terminated", "truncated")
    episodes = {
        f"e{n}": make_episode(f"e{n}", 1 + n, spec=spec, end=endings[n % 2], final=n > 1) for n in range(7)
    }
    record(tmp_path / "in", episodes.values())
    report = convert_directory_to_tfrecord(
        tmp_path / "in", tmp_path / "out", name="bench_robot", profile=profile, shard_bytes=4000, val_fraction=0.3
    )
    found = _judge(report.dataset_dir, tmp_path / "judged.npz")
    assert str(found.pop("info/name")) == str(found.pop("info/named")) == f"bench_robot/{report.version}"
    assert found.pop("info/splits").tolist() == ["train", "val"]
    manifest = open_dataset(report.dataset_dir).manifest
    assert len(manifest.shards) > 2
    for split, entries in manifest.splits.items():
        assert found.pop(f"info/examples/{split}") == len(entries)
        assert found.pop(f"info/bytes/{split}") == sum(entry.size_bytes - 16 for entry in entries)
        for entry in entries:
            episode = episodes.pop(entry.episode_id)
            place = f"{split}/{entry.episode_id}"
            for name, column in episode_columns(episode, profile).items():
                value = found.pop(f"{place}/steps/{name}")
                if isinstance(column, list):
                    assert value.tolist() == column, name
                else:
                    assert (value.dtype, value.shape) == (column.dtype, column.shape), name
                    assert value.tobytes() == column.tobytes(), name
            metadata = {
                name: found.pop(f"{place}/metadata/{name}").item()
                for name in (
                    "created_ns",
                    "end",
                    "environment_id",
                    "episode_id",
                    "metadata_json",
                    "robot_id",
                    "xr_mode",
                )
            }
            assert metadata["end"].decode() == episode.end
            assert metadata["environment_id"] == b"bench"
            assert orjson.loads(metadata["metadata_json"])["language_instruction"] == "reach the puck"
    # TFDS found all episodes and nothing that we did not write.
    assert not episodes
    assert not found
