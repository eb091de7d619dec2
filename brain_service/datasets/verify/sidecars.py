"""The JSON files beside the shards: TFDS's two, and the two of statistics."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from brain_service.datasets.layout import FEATURES_FILE, INFO_FILE, features_json
from brain_service.datasets.manifest import MANIFEST_FILE, Manifest
from brain_service.datasets.statistics import (
    OCTO_FILE,
    STATISTICS_FILE,
    FeatureStatistics,
    Statistics,
    read_statistics,
)
from brain_service.datasets.tfrecord import FRAME_BYTES
from brain_service.datasets.verify.damage import Damage
from brain_service.datasets.verify.record import RecordCheck
from brain_service.errors import BrainError

__all__ = ["check_layout", "check_statistics"]

# Fields of TFDS 4.9.2's DatasetInfo and SplitInfo in proto3 JSON; its parser refuses every other one.
_INFO_KEYS = frozenset(
    {
        "citation",
        "configDescription",
        "configName",
        "configTags",
        "description",
        "disableShuffling",
        "downloadChecksums",
        "downloadSize",
        "fileFormat",
        "location",
        "moduleName",
        "name",
        "redistributionInfo",
        "releaseNotes",
        "schema",
        "splits",
        "supervisedKeys",
        "version",
    }
)
_SPLIT_KEYS = frozenset(["filepathTemplate", "name", "numBytes", "numShards", "shardLengths", "statistics"])
_SAMPLED_FROM = 50_000
"""Quantiles of more transitions than this come from a sample that need not be ours."""

_TOLERANCE = 1e-6


def check_layout(folder: Path, manifest: Manifest) -> list[Damage]:
    """Return what does not hold in TFDS's two files."""
    found = []
    for file, problems in ((INFO_FILE, _info_problems), (FEATURES_FILE, _features_problems)):
        document = _read(folder / file)
        messages = [document] if isinstance(document, str) else problems(document, manifest)
        found += [Damage(file, message) for message in messages]
    return found


def check_statistics(folder: Path, manifest: Manifest, check: RecordCheck) -> list[Damage]:
    """Return what does not hold in the figures that were counted; `check` has seen all records."""
    found = _statistics(folder, check)
    period_s = check.statistics.control_period_s
    if check.complete and not np.isclose(period_s, manifest.control_period_s, rtol=_TOLERANCE, atol=0):
        message = f"says control_period_s {manifest.control_period_s}, the steps are {period_s} s apart"
        found.append(Damage(MANIFEST_FILE, message))
    return found


def _read(path: Path) -> dict[str, Any] | str:
    """Return a file's JSON object, or what is wrong with it."""
    try:
        document = orjson.loads(path.read_bytes())
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    except orjson.JSONDecodeError as error:
        return f"is not JSON: {error}"
    return document if isinstance(document, dict) else f"holds a {type(document).__name__}, not an object"


def _info_problems(document: Mapping[str, Any], manifest: Manifest) -> list[str]:
    found = _unknown(document, _INFO_KEYS)
    for key, said in (("name", manifest.name), ("version", manifest.version), ("fileFormat", "tfrecord")):
        if document.get(key) != said:
            found.append(f"says {key} {document.get(key)!r}, expected {said!r}")
    if "description" in document and not isinstance(document["description"], str):
        found.append("has a description that is no text")
    splits = document.get("splits")
    if not isinstance(splits, list) or not all(isinstance(split, dict) for split in splits):
        return [*found, "has no list of splits"]
    names = [split.get("name") for split in splits]
    if sorted(map(str, names)) != sorted(manifest.splits):
        found.append(f"lists the splits {names}, the manifest {sorted(manifest.splits)}")
    for split in splits:
        if split.get("name") in manifest.splits:
            found += [f"split {split['name']}: {problem}" for problem in _split_problems(split, manifest)]
    return found


def _split_problems(split: Mapping[str, Any], manifest: Manifest) -> list[str]:
    shards = [shard for shard in manifest.shards if shard.split == split["name"]]
    found = _unknown(split, _SPLIT_KEYS)
    expected = {
        "shardLengths": [str(shard.episodes) for shard in shards],
        "numBytes": str(sum(shard.size_bytes - FRAME_BYTES * shard.episodes for shard in shards)),
    }
    found += [
        f"says {key} {split.get(key)!r}, the manifest {value!r}"
        for key, value in expected.items()
        if split.get(key) != value
    ]
    template, files = split.get("filepathTemplate"), [shard.file for shard in shards]
    if not isinstance(template, str) or _fill(template, manifest.name, split["name"], len(files)) != files:
        found.append(f"says filepathTemplate {template!r}, which gives other names than {', '.join(files[:3])}")
    return found


def _fill(template: str, name: str, split: str, count: int) -> list[str]:
    values = {"{DATASET}": name, "{SPLIT}": split, "{FILEFORMAT}": "tfrecord"}
    for key, value in values.items():
        template = template.replace(key, value)
    return [
        template.replace("{SHARD_X_OF_Y}", f"{i:05d}-of-{count:05d}").replace("{SHARD_INDEX}", f"{i:05d}")
        for i in range(count)
    ]


def _unknown(document: Mapping[str, Any], known: frozenset[str]) -> list[str]:
    return [f"has {key!r}, which TFDS refuses" for key in document if key not in known]


def _features_problems(document: dict[str, Any], manifest: Manifest) -> list[str]:
    # TFDS decodes an image by its first bytes; which of the two kinds stands here makes no difference.
    expected = features_json(manifest.episode_spec(), {})
    return _differences(expected, document, "")


def _differences(expected: Any, found: Any, place: str) -> list[str]:
    """Return where two JSON documents differ."""
    if isinstance(expected, dict) and isinstance(found, dict):
        problems = []
        for key in sorted(expected.keys() | found.keys()):
            if key not in expected or key not in found:
                problems.append(f"{'lacks' if key in expected else 'has an unknown'} {place}/{key}")
            else:
                problems += _differences(expected[key], found[key], f"{place}/{key}")
        return problems
    if place.endswith("/encodingFormat") and found in ("png", "jpeg"):
        return []
    return [] if expected == found else [f"says {found!r} at {place}, the manifest's features give {expected!r}"]


def _statistics(folder: Path, check: RecordCheck) -> list[Damage]:
    try:
        written = read_statistics(folder)
        octo = _read(folder / OCTO_FILE)
        flat = written.to_octo()
    except (BrainError, KeyError) as error:
        return [Damage(STATISTICS_FILE, f"cannot be used: {error}")]
    found = []
    if check.complete:
        found += [Damage(STATISTICS_FILE, message) for message in _compare(written, check.statistics.result())]
    if isinstance(octo, str):
        found.append(Damage(OCTO_FILE, octo))
    elif octo != flat:
        found.append(Damage(OCTO_FILE, f"does not say what {STATISTICS_FILE} says"))
    return found


def _compare(written: Statistics, counted: Statistics) -> list[str]:
    found = [
        f"says {name} {getattr(written, name)}, the records give {getattr(counted, name)}"
        for name in ("num_transitions", "num_trajectories")
        if getattr(written, name) != getattr(counted, name)
    ]
    ours, theirs = _by_name(counted), _by_name(written)
    if ours.keys() != theirs.keys():
        return [*found, f"has figures of {sorted(theirs)}, the spec of {sorted(ours)}"]
    for feature, figures in ours.items():
        found += [
            f"{feature}: {name} is not that of the records"
            for name in FeatureStatistics.__struct_fields__
            if not _close(figures, theirs[feature], name, counted.num_transitions)
        ]
    return found


def _by_name(statistics: Statistics) -> dict[str, FeatureStatistics]:
    return {
        **{f"observation/{path}": figures for path, figures in statistics.observation.items()},
        **{f"action/{path}": figures for path, figures in statistics.action.items()},
        "reward": statistics.reward,
    }


def _close(counted: FeatureStatistics, written: FeatureStatistics, name: str, transitions: int) -> bool:
    ours, theirs = np.array(getattr(counted, name)), np.array(getattr(written, name))
    if ours.shape != theirs.shape:
        return False
    if name[0] in "pq" and transitions > _SAMPLED_FROM:
        return bool(np.all((np.array(written.min) <= theirs) & (theirs <= np.array(written.max))))
    # Sums in another order differ in their last digits.
    return bool(np.all(np.abs(ours - theirs) <= _TOLERANCE * (np.abs(ours) + np.array(counted.std))))
