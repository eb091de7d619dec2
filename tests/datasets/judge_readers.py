"""Reads a dataset the way five strangers do, and writes what each found to an `.npz` file.

    python judge_readers.py VERSION_FOLDER OTHER_VERSION_FOLDER OUTPUT.npz

Run in a process of its own, for TensorFlow's sake. Nothing of `brain_service` is imported here. The features are
those of the test: observation/state float32 [3], action float32 [2].
"""

import importlib.util
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds


def from_directories(folders: list[Path]) -> dict[str, Any]:
    """TFDS over two versions as one dataset."""
    builder = tfds.builder_from_directories(folders)
    episodes = list(builder.as_dataset(split="train+val"))
    return {
        "ids": sorted(episode["episode_metadata"]["episode_id"].numpy().decode() for episode in episodes),
        "examples": [builder.info.splits[split].num_examples for split in ("train", "val")],
        "shards": [len(builder.info.splits[split].shard_lengths) for split in ("train", "val")],
    }


def raw(folder: Path) -> dict[str, Any]:
    """tf.data on the shards, with features declared by hand as a pipeline without TFDS does."""
    features = {
        "steps/observation/state": tf.io.VarLenFeature(tf.float32),
        "steps/action": tf.io.FixedLenSequenceFeature([2], tf.float32, allow_missing=True),
        "steps/reward": tf.io.FixedLenSequenceFeature([], tf.float32, allow_missing=True),
        "steps/is_last": tf.io.FixedLenSequenceFeature([], tf.int64, allow_missing=True),
        "steps/timestamp_ns": tf.io.FixedLenSequenceFeature([], tf.int64, allow_missing=True),
        "steps/language_instruction": tf.io.VarLenFeature(tf.string),
        "episode_metadata/episode_id": tf.io.FixedLenFeature([], tf.string),
    }
    found: dict[str, Any] = {}
    files = sorted(str(path) for path in folder.glob("*.tfrecord-*"))
    for record in tf.data.TFRecordDataset(files):
        example = tf.io.parse_single_example(record, features)
        place = example.pop("episode_metadata/episode_id").numpy().decode()
        for name, value in example.items():
            dense = tf.sparse.to_dense(value) if isinstance(value, tf.SparseTensor) else value
            array = dense.numpy()
            found[f"{place}/{name}"] = array.astype(str) if array.dtype == object else array
    return found


def trajectories(folder: Path) -> dict[str, Any]:
    """The steps that dlimp's `from_rlds` takes: undecoded episodes become trajectories of arrays, then frames."""
    builder = tfds.builder_from_directory(folder)
    options = tfds.ReadConfig(skip_prefetch=True, interleave_cycle_length=1, shuffle_seed=0)
    episodes = builder.as_dataset(
        split="train",
        shuffle_files=False,
        decoders={"steps": tfds.decode.SkipDecoding()},
        read_config=options,
    )

    def broadcast(index: Any, episode: Any) -> Any:
        trajectory = dict(episode["steps"])
        length = tf.shape(trajectory["is_first"])[0]
        # Each scalar of the metadata is repeated over time: one that is none would break here.
        trajectory["traj_metadata"] = tf.nest.map_structure(
            lambda value: tf.repeat(value[None], length), episode["episode_metadata"]
        )
        trajectory["_len"] = tf.repeat(length, length)
        trajectory["_traj_index"] = tf.repeat(index, length)
        trajectory["_frame_index"] = tf.range(length)
        return trajectory

    whole = episodes.enumerate().map(broadcast)
    found = {
        "lengths": np.array([int(one["_len"][0]) for one in whole]),
        "types": np.array([str(whole.element_spec["action"].dtype), str(whole.element_spec["action"].shape)]),
    }
    frames = list(whole.unbatch())
    for name in ("action", "reward", "_traj_index", "_frame_index"):
        found[name] = np.stack([frame[name].numpy() for frame in frames])
    found["state"] = np.stack([frame["observation"]["state"].numpy() for frame in frames])
    found["instruction"] = np.array([frame["language_instruction"].numpy().decode() for frame in frames])
    found["ids"] = np.array([frame["traj_metadata"]["episode_id"].numpy().decode() for frame in frames])
    return found


def rlds_transformations(folder: Path) -> dict[str, Any]:
    """The rlds library's own transformations; of reverb, which has no wheel here, only names are needed."""
    sys.modules["reverb"] = MagicMock()
    import rlds

    episodes = tfds.builder_from_directory(folder).as_dataset(split="train")
    steps = next(iter(episodes))["steps"]
    # The library's own idea of which fields mean something on which step.
    mean, std = rlds.transformations.mean_and_std(episodes, rlds.transformations.sar_fields_mask)
    shifted = rlds.transformations.shift_keys(steps, ["reward"], 1)
    windows = rlds.transformations.batch(steps, size=2, shift=1, drop_remainder=True)
    joined = rlds.transformations.concat_if_terminal(
        steps, lambda _: rlds.transformations.zero_dataset_like(steps)
    )
    cut = rlds.transformations.truncate_after_condition(steps, lambda step: step["is_first"])
    return {
        "length": int(rlds.transformations.episode_length(steps)),
        "final_is_last": bool(rlds.transformations.final_step(steps)["is_last"]),
        "mean": mean["action"],
        "std": std["action"],
        "rewards": np.array([float(step["reward"]) for step in steps]),
        "shifted": np.array([float(step["reward"]) for step in shifted]),
        "windows": np.stack([window["action"].numpy() for window in windows]),
        "joined": len(list(joined)),
        "cut": len(list(cut)),
        "spec": sorted(episodes.element_spec["steps"].element_spec),
    }


def octo_statistics(folder: Path) -> dict[str, Any]:
    """The statistics file as Octo and OpenVLA normalise with it: arrays by name, quantiles under both names."""
    statistics = json.loads((folder / "dataset_statistics.json").read_text())
    action = {name: np.array(value) for name, value in statistics["action"].items()}
    frames = trajectories(folder)
    scale = 2 / (action["q99"] - action["q01"] + 1e-8)
    return {
        "normal": (frames["action"] - action["mean"]) / (action["std"] + 1e-8),
        "bounded": np.clip((frames["action"] - action["q01"]) * scale - 1, -1, 1),
        "low_high": np.stack([action["min"], action["max"], action["p01"], action["p99"]]),
        "counts": [statistics["num_transitions"], statistics["num_trajectories"]],
    }


def records(folder: Path) -> dict[str, Any]:
    """Grain's own TFRecord source, and the same records through ArrayRecord and Grain's source for that."""
    from array_record.python import array_record_module
    from grain import experimental
    from grain import python as grain

    found: dict[str, Any] = {}
    for shard in sorted(folder.glob("*-train.tfrecord-*")):
        payloads = list(experimental.TFRecordIterDataset(str(shard)))
        with tempfile.TemporaryDirectory() as work:
            copy = f"{work}/copy.array_record"
            writer = array_record_module.ArrayRecordWriter(copy, "group_size:1")
            for payload in payloads:
                writer.write(payload)
            writer.close()
            source = grain.ArrayRecordDataSource([copy])
            again = [source[index] for index in range(len(source))]
        for payload, copied in zip(payloads, again, strict=True):
            example, other = tf.train.Example.FromString(payload), tf.train.Example.FromString(copied)
            assert example == other
            features = example.features.feature
            place = features["episode_metadata/episode_id"].bytes_list.value[0].decode()
            found[place] = np.array(features["steps/action"].float_list.value, np.float32)
    return found


def main(folder: Path, other: Path, output: Path) -> None:
    """Run every reader."""
    readers: dict[str, Callable[[], dict[str, Any]]] = {
        "directories": lambda: from_directories([folder, other]),
        "raw": lambda: raw(folder),
        "trajectories": lambda: trajectories(folder),
        "octo": lambda: octo_statistics(folder),
        "records": lambda: records(folder),
    }
    if importlib.util.find_spec("rlds"):
        readers["rlds"] = lambda: rlds_transformations(folder)
    found = {f"{reader}/{name}": value for reader, read in readers.items() for name, value in read().items()}
    np.savez(output, **found)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
