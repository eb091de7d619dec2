"""Images on their way into a dataset: kept byte for byte, declared as what they are, no part of a vector."""

from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest

from brain_service.datasets.convert import convert_directory_to_tfrecord
from brain_service.datasets.dataset import open_dataset
from brain_service.datasets.loader import SequenceLoader
from brain_service.episodes.logger import EpisodeLogger
from brain_service.spec import EpisodeSpec, Feature
from tests.pictures import picture

from .recording import record
from .samples import VECTOR_SPEC, make_episode

SPEC = EpisodeSpec(
    {"camera": Feature("image", (6, 8, 3)), "state": Feature("float32", (2,))},
    VECTOR_SPEC.action,
)


def film(directory: Path, kinds: str, count: int = 3) -> None:
    """Record an episode whose images are of these kinds: `p` for PNG, `j` for JPEG."""
    with EpisodeLogger(directory) as logger:
        for number in range(count):
            logger.start_episode(episode_id=f"e{number}")
            for index, kind in enumerate(kinds):
                data = picture(index, "png" if kind == "p" else "jpeg")
                logger.log_step({"camera": data, "state": [0.5 * index, 1.0]}, {"command": [0.25]})
            logger.end_episode()


def features_of(dataset: Path) -> Any:
    steps = orjson.loads((dataset / "features.json").read_bytes())["featuresDict"]["features"]["steps"]
    return steps["sequence"]["feature"]["featuresDict"]["features"]["observation"]["featuresDict"]["features"]


@pytest.mark.parametrize(("kinds", "encoding"), [("ppp", "png"), ("jjj", "jpeg"), ("pjp", "png")])
def test_the_feature_says_how_its_images_are_encoded(tmp_path: Path, kinds: str, encoding: str) -> None:
    film(tmp_path / "in", kinds)
    report = convert_directory_to_tfrecord(tmp_path / "in", tmp_path / "out")
    assert features_of(report.dataset_dir)["camera"] == {
        "pythonClassName": "tensorflow_datasets.core.features.image_feature.Image",
        "image": {"dtype": "uint8", "encodingFormat": encoding, "shape": {"dimensions": ["6", "8", "3"]}},
    }


def test_images_come_back_byte_for_byte_and_stay_out_of_vectors(tmp_path: Path) -> None:
    film(tmp_path / "in", "pjp")
    dataset = open_dataset(convert_directory_to_tfrecord(tmp_path / "in", tmp_path / "out").dataset_dir)
    columns = dataset.read("train", 0)
    assert columns["observation/camera"] == [picture(0), picture(1, "jpeg"), picture(2)]
    vectors = dataset.vectors("train", 0)
    assert vectors.observation.tolist() == [[0.0, 1.0], [0.5, 1.0], [1.0, 1.0]]
    assert list(dataset.statistics.observation) == ["state"]
    batch = SequenceLoader(dataset, "train", batch_size=2, sequence_length=4, seed=0).batch(0)
    assert batch.observation.shape == (2, 4, 2)


def test_a_final_observation_with_an_image_becomes_a_step(tmp_path: Path) -> None:
    episode = make_episode("e0", 3, spec=SPEC, final=True)
    record(tmp_path / "in", [episode])
    report = convert_directory_to_tfrecord(tmp_path / "in", tmp_path / "out", profile="rlds", val_fraction=0.0)
    assert episode.final_observation is not None
    stored = open_dataset(report.dataset_dir).read("train", 0)["observation/camera"]
    assert stored == [*episode.observation["camera"], episode.final_observation["camera"]]


def test_an_episode_without_its_images_is_left_out_with_the_reason(tmp_path: Path) -> None:
    film(tmp_path / "in", "ppp")
    for path in (tmp_path / "in" / "e1.images").iterdir():
        path.unlink()
    report = convert_directory_to_tfrecord(tmp_path / "in", tmp_path / "out")
    assert report.episodes == 2
    (left_out,) = report.quarantined
    assert left_out["file"] == "e1.jsonl"
    assert "no image" in left_out["reason"] and "was the folder copied?" in left_out["reason"]


def test_another_size_of_image_is_another_feature(tmp_path: Path) -> None:
    film(tmp_path / "in", "pp", 2)
    with EpisodeLogger(tmp_path / "in") as logger:
        logger.start_episode(episode_id="larger")
        logger.log_step({"camera": picture(0, height=12), "state": [0, 0]}, {"command": np.zeros(1)})
        logger.end_episode()
    report = convert_directory_to_tfrecord(tmp_path / "in", tmp_path / "out")
    (left_out,) = report.quarantined
    assert "observation/camera is image [12, 8, 3], not image [6, 8, 3]" in left_out["reason"]
