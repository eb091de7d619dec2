"""Writes a dataset with TensorFlow Datasets, as Open X-Embodiment builders do, for the importer to read.

    python write_tfds.py ROOT VALUES.npz

Run in a process of its own, for TensorFlow's sake; nothing of `brain_service` is imported here. ROOT gets
`odd_robot/1.0.0` with features of many classes. What was written goes to VALUES.npz.
"""

import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds

F = tfds.features


def features() -> Any:
    """A step as various builders declare it, ragged and compressed features included."""
    step = {
        "observation": {
            "image": F.Image(shape=(6, 8, 3), encoding_format="png"),
            "any_size": F.Image(encoding_format="jpeg"),
            "state": F.Tensor(shape=(4,), dtype=np.float32),
            "pose": F.Tensor(shape=(2, 2), dtype=np.float64),
            "gripper": F.Scalar(dtype=np.bool_),
            "count": F.Tensor(shape=(2,), dtype=np.int32),
            "level": F.Tensor(shape=(3,), dtype=np.uint8),
            "mode": F.ClassLabel(num_classes=5),
            "natural_language_instruction": F.Text(),
            "points": F.Sequence(F.Tensor(shape=(2,), dtype=np.float32)),
            "packed": F.Tensor(shape=(3,), dtype=np.float32, encoding="zlib"),
            "name": F.Tensor(shape=(), dtype=np.str_),
        },
        "action": F.Tensor(shape=(3,), dtype=np.float32),
        "reward": F.Scalar(dtype=np.float32),
        "discount": F.Scalar(dtype=np.float32),
        "is_first": F.Scalar(dtype=np.bool_),
        "is_last": F.Scalar(dtype=np.bool_),
        "is_terminal": F.Scalar(dtype=np.bool_),
        "language_embedding": F.Tensor(shape=(5,), dtype=np.float32),
    }
    metadata = {"file_path": F.Text(), "success": F.Scalar(dtype=np.bool_), "operator": F.Scalar(dtype=np.int64)}
    return F.FeaturesDict({"steps": F.Dataset(step), "episode_metadata": metadata})


def episode(number: int) -> dict[str, Any]:
    """Episode `number` has `number + 2` steps; the last action is zero where `number` is odd."""
    rng = np.random.default_rng(number)
    length = number + 2
    steps = []
    for t in range(length):
        last = t == length - 1
        steps.append(
            {
                "observation": {
                    "image": np.full((6, 8, 3), 10 * number + t, np.uint8),
                    "any_size": np.full((4 + number, 5, 3), 7 * t, np.uint8),
                    "state": rng.normal(size=4).astype(np.float32),
                    "pose": rng.normal(size=(2, 2)),
                    "gripper": bool(t % 2),
                    "count": rng.integers(-9, 9, 2).astype(np.int32),
                    "level": rng.integers(0, 255, 3).astype(np.uint8),
                    "mode": int(rng.integers(0, 5)),
                    "natural_language_instruction": f"fetch {number}",
                    "points": rng.normal(size=(t, 2)).astype(np.float32),
                    "packed": np.zeros(3, np.float32),
                    "name": f"n{t}",
                },
                "action": np.zeros(3, np.float32)
                if last and number % 2
                else rng.normal(size=3).astype(np.float32),
                "reward": np.float32(last),
                "discount": np.float32(1),
                "is_first": t == 0,
                "is_last": last,
                "is_terminal": last and number != 2,
                "language_embedding": np.zeros(5, np.float32),
            }
        )
    return {
        "steps": steps,
        "episode_metadata": {"file_path": f"/data/{number}.h5", "success": number != 2, "operator": number},
    }


class OddRobot(tfds.core.GeneratorBasedBuilder):  # type: ignore[misc]
    """A dataset of two splits."""

    VERSION = tfds.core.Version("1.0.0")
    name = "odd_robot"

    def _info(self) -> Any:
        return tfds.core.DatasetInfo(builder=self, features=features())

    def _split_generators(self, dl_manager: Any) -> Any:
        return {"train": self._generate_examples(range(3)), "test": self._generate_examples(range(3, 5))}

    def _generate_examples(self, numbers: range) -> Iterator[tuple[str, dict[str, Any]]]:
        for number in numbers:
            yield str(number), episode(number)


def main(root: str, output: str) -> None:
    """Write the dataset and its values."""
    builder = OddRobot(data_dir=root)
    builder.download_and_prepare()
    found: dict[str, Any] = {}
    for split in ("train", "test"):
        for index, read in enumerate(builder.as_dataset(split=split)):
            place = f"{split}/{index}"
            found[f"{place}/operator"] = read["episode_metadata"]["operator"].numpy()
            steps = list(read["steps"].as_numpy_iterator())
            for name in ("state", "pose", "gripper", "count", "level", "mode", "image"):
                found[f"{place}/{name}"] = np.stack([step["observation"][name] for step in steps])
            found[f"{place}/action"] = np.stack([step["action"] for step in steps])
    np.savez(output, **found)


if __name__ == "__main__":
    tf.config.set_visible_devices([], "GPU")
    main(*sys.argv[1:])
