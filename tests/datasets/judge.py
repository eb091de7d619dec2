"""Reads a dataset with TensorFlow Datasets and writes every value it finds to an `.npz` file.

    python judge.py VERSION_FOLDER OUTPUT.npz

Run in a process of its own: TensorFlow takes seconds and hundreds of megabytes to import. Nothing of
`brain_service` is imported here, so that the two readers share no code.
"""

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds


def leaves(tree: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (path, value) of a nested map."""
    if isinstance(tree, Mapping):
        for name, child in tree.items():
            yield from leaves(child, f"{path}/{name}" if path else name)
    else:
        yield path, tree


def judge(folder: Path) -> dict[str, Any]:
    """Return every value by `split/episode_id/steps/path` and what the builder says of itself under `info/`."""
    builder = tfds.builder_from_directory(folder)
    # The way Octo and OpenVLA find a dataset: by name below a root.
    named = tfds.builder(folder.parent.name, data_dir=str(folder.parents[1]), version=folder.name)
    found: dict[str, Any] = {
        "info/name": builder.info.full_name,
        "info/named": named.info.full_name,
        "info/splits": sorted(builder.info.splits),
    }
    for split, info in builder.info.splits.items():
        found[f"info/examples/{split}"] = info.num_examples
        found[f"info/bytes/{split}"] = info.num_bytes
        for episode in builder.as_dataset(split=split):
            metadata = {name: value.numpy() for name, value in leaves(episode["episode_metadata"])}
            place = f"{split}/{metadata['episode_id'].decode()}"
            for name, value in metadata.items():
                found[f"{place}/metadata/{name}"] = value
            steps = list(episode["steps"].as_numpy_iterator())
            for name, _ in leaves(steps[0]):
                found[f"{place}/steps/{name}"] = column([dict(leaves(step))[name] for step in steps])
    return found


def column(values: list[Any]) -> np.ndarray[Any, np.dtype[Any]]:
    """Stack one feature over time; text is decoded, since an array of objects could not be saved."""
    texts = isinstance(values[0], bytes)
    return np.array([value.decode() for value in values] if texts else values)


if __name__ == "__main__":
    np.savez(sys.argv[2], **judge(Path(sys.argv[1])))
