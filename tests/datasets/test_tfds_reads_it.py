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
from brain_service.image_header import image_kind
from brain_service.spec import EpisodeSpec, Feature
from tests.pictures import decode

from .recording import record
from .samples import RICH_SPEC, VECTOR_SPEC, make_episode

JUDGE = Path(__file__).with_name("judge.py")
NESTED_ACTION = RICH_SPEC
IMAGES = EpisodeSpec(
    {
        "camera/grey": Feature("image", (5, 4, 1)),
        "camera/rgb": Feature("image", (6, 8, 3)),
        "overlay": Feature("image", (3, 2, 4)),
        "state": Feature("float32", (2,)),
    },
    VECTOR_SPEC.action,
)
METADATA_NAMES = (
    "created_ns",
    "end",
    "environment_id",
    "episode_id",
    "metadata_json",
    "robot_id",
    "safety_intended_audience",
    "safety_pending_review",
    "safety_pii_attested",
    "safety_pii_cleared",
    "safety_pii_redacted",
    "share_license",
    "share_public",
    "share_slug",
    "share_title",
    "xr_mode",
)
RECORDS = {
    "safety": {"pii_cleared": True, "pending_review": False, "intended_audience": "local", "reviewer": "Ada"},
    "share": {"public": True, "license": "CC-BY-4.0", "tags": ["demo"]},
}
SINGLE_ACTION = EpisodeSpec(RICH_SPEC.observation, VECTOR_SPEC.action)


def _judge(folder: Path, output: Path) -> dict[str, Any]:
    done = subprocess.run([sys.executable, JUDGE, folder, output], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    with np.load(output) as found:
        return dict(found)


def _require_pixels(found: "np.ndarray[Any, np.dtype[np.uint8]]", image: bytes) -> None:
    """Hold what TFDS decoded against what Pillow does; their inverse cosine transforms round differently."""
    expected = decode(image)
    assert found.shape == expected.shape
    off = np.abs(found.astype(int) - expected.astype(int)).max()
    assert off <= (0 if image_kind(image) == "png" else 6)


@pytest.mark.long
@pytest.mark.parametrize(
    ("profile", "spec"),
    [("oxe", NESTED_ACTION), ("rlds", NESTED_ACTION), ("oxe", SINGLE_ACTION), ("rlds", IMAGES)],
)
def test_every_value_is_found(tmp_path: Path, profile: Profile, spec: EpisodeSpec) -> None:
    endings = ("terminated", "truncated")
    episodes = {
        f"e{n}": make_episode(
            f"e{n}", 1 + n, spec=spec, end=endings[n % 2], final=n > 1, metadata=RECORDS if n % 2 else {}
        )
        for n in range(7)
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
                if isinstance(column, list) and isinstance(column[0], bytes):
                    assert value.dtype == np.uint8, name
                    assert len(value) == len(column)
                    for found_pixels, image in zip(value, column, strict=True):
                        _require_pixels(found_pixels, image)
                elif isinstance(column, list):
                    assert value.tolist() == column, name
                else:
                    assert (value.dtype, value.shape) == (column.dtype, column.shape), name
                    assert value.tobytes() == column.tobytes(), name
            metadata = {name: found.pop(f"{place}/metadata/{name}").item() for name in METADATA_NAMES}
            assert metadata["end"].decode() == episode.end
            assert metadata["environment_id"] == b"bench"
            rest = orjson.loads(metadata["metadata_json"])
            assert rest["language_instruction"] == "reach the puck"
            shared = episode.metadata.keys() >= RECORDS.keys()
            assert {name: rest[name] for name in RECORDS if name in rest} == (RECORDS if shared else {})
            assert (metadata["share_public"], metadata["safety_pending_review"]) == (shared, not shared)
            assert metadata["share_license"] == (b"CC-BY-4.0" if shared else b"")
    # TFDS found all episodes and nothing that we did not write.
    assert not episodes
    assert not found
