"""The two JSON files that make a folder of shards a TFDS dataset: `features.json` and `dataset_info.json`.

Only fields that TFDS 4.9.2 already knows are written: Octo and OpenVLA pin versions of that age.
Source: `tensorflow_datasets/core/proto/{feature,dataset_info}.proto`, in proto3 JSON (integers are strings).
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import orjson

from brain_service.datasets.columns import step_features
from brain_service.datasets.record import METADATA_FEATURES
from brain_service.spec import EpisodeSpec, Feature
from brain_service.trees import unflatten

__all__ = ["INFO_FILE", "ImageEncoding", "dataset_info_json", "features_json", "shard_name", "write_layout"]

FEATURES_FILE = "features.json"
INFO_FILE = "dataset_info.json"

ImageEncoding = Literal["png", "jpeg"]
"""What TFDS says of an image feature. It decodes by the file's first bytes, so a feature may hold both kinds."""

_FEATURES = "tensorflow_datasets.core.features"
# Without the number of shards in it, a name stays what it is when a later version has more.
_TEMPLATE = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_INDEX}"


def shard_name(dataset: str, split: str, index: int) -> str:
    """Return the file name of shard `index` (from 0), as TFDS spells it."""
    return f"{dataset}-{split}.tfrecord-{index:05d}"


def features_json(spec: EpisodeSpec, encodings: Mapping[str, ImageEncoding]) -> dict[str, Any]:
    """Return the document of `features.json` for episodes of this spec; `encodings` are those of its images."""
    leaves = {name: (feature, encodings.get(name)) for name, feature in step_features(spec).items()}
    steps = {
        "pythonClassName": f"{_FEATURES}.dataset_feature.Dataset",
        "sequence": {"length": "-1", "feature": _tree(unflatten(leaves))},
    }
    metadata = {name: (feature, None) for name, feature in METADATA_FEATURES.items()}
    return _dict({"episode_metadata": _tree(unflatten(metadata)), "steps": steps})


def _dict(nodes: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "pythonClassName": f"{_FEATURES}.features_dict.FeaturesDict",
        "featuresDict": {"features": dict(sorted(nodes.items()))},
    }


def _tree(children: Mapping[str, Any]) -> dict[str, Any]:
    return _dict(
        {name: _leaf(*child) if isinstance(child, tuple) else _tree(child) for name, child in children.items()}
    )


def _leaf(feature: Feature, encoding: ImageEncoding | None) -> dict[str, Any]:
    if feature.dtype == "text":
        return {"pythonClassName": f"{_FEATURES}.text_feature.Text", "text": {}}
    shape = {"dimensions": [str(n) for n in feature.shape]} if feature.shape else {}
    if feature.dtype == "image":
        image = {"dtype": "uint8", "encodingFormat": encoding or "png", "shape": shape}
        return {"pythonClassName": f"{_FEATURES}.image_feature.Image", "image": image}
    # "none": loaders that skip decoding would hand out zlib strings otherwise.
    tensor = {"dtype": feature.dtype, "encoding": "none", "shape": shape}
    return {"pythonClassName": f"{_FEATURES}.tensor_feature.Tensor", "tensor": tensor}


def dataset_info_json(name: str, version: str, splits: Mapping[str, tuple[Sequence[int], int]]) -> dict[str, Any]:
    """Return the document of `dataset_info.json`; `splits` gives per split the episodes a shard and its bytes."""
    return {
        "name": name,
        "version": version,
        "description": "Robot episodes recorded by continuon-brain, in RLDS.",
        "fileFormat": "tfrecord",
        "splits": [
            {
                "name": split,
                "filepathTemplate": _TEMPLATE,
                "numBytes": str(size_bytes),
                "shardLengths": [str(length) for length in lengths],
            }
            for split, (lengths, size_bytes) in splits.items()
        ],
    }


def write_layout(
    folder: Path,
    name: str,
    version: str,
    spec: EpisodeSpec,
    splits: Mapping[str, tuple[Sequence[int], int]],
    encodings: Mapping[str, ImageEncoding],
) -> None:
    """Write both files into a dataset folder that is not published yet.

    `splits` gives per split the episodes of each shard and the bytes of its records without framing.
    """
    for file, document in (
        (FEATURES_FILE, features_json(spec, encodings)),
        (INFO_FILE, dataset_info_json(name, version, splits)),
    ):
        (folder / file).write_bytes(orjson.dumps(document, option=orjson.OPT_INDENT_2))
