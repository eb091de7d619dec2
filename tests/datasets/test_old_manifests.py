"""Versions that an earlier release wrote: built upon where that is safe, passed over by name where it is not."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest

from brain_service.datasets.convert import ConvertReport, convert_directory_to_tfrecord
from brain_service.datasets.dataset import open_dataset
from brain_service.errors import CorruptDataError

from .logs import write_log


def _convert(root: Path) -> ConvertReport:
    return convert_directory_to_tfrecord(root / "in", root / "out", val_fraction=0.0)


def _edit(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    path = folder / "manifest.json"
    document = orjson.loads(path.read_bytes())
    change(document)
    path.write_bytes(orjson.dumps(document))


def _first_layout(document: dict[str, Any]) -> None:
    """Take away what the first layout did not have: rivals, places of episodes, kinds of images."""
    del document["layout"], document["record_format"]
    for left in document["quarantined"]:
        left.pop("rival", None)
    for entries in document["splits"].values():
        for entry in entries:
            entry.pop("place", None)
            entry.pop("image_kinds", None)


def test_the_first_layout_is_read_and_built_upon(tmp_path: Path) -> None:
    write_log(tmp_path / "in" / "a.jsonl", seed=1)
    write_log(tmp_path / "in" / "b.jsonl", "a", seed=2)
    (tmp_path / "in" / "bad.json").write_text("{")
    first = _convert(tmp_path)
    _edit(first.dataset_dir, _first_layout)
    assert open_dataset(first.dataset_dir).read("train", 0)
    # It did not tell that b.jsonl is sound: it joins once its rival is gone all the same.
    write_log(tmp_path / "in" / "a.jsonl", "other", seed=1)
    second = _convert(tmp_path)
    assert (second.version, second.passed_over) == ("1.0.1", [])
    entries = open_dataset(second.dataset_dir).entries("train")
    assert sorted(entry.episode_id for entry in entries) == ["a", "other"]
    assert [item["file"] for item in second.quarantined] == ["bad.json"]


def test_records_of_an_earlier_format_are_not_shared(tmp_path: Path) -> None:
    write_log(tmp_path / "in" / "a.jsonl", seed=1)
    first = _convert(tmp_path)
    _edit(first.dataset_dir, lambda document: document.update(record_format=1))
    second = _convert(tmp_path)
    assert (second.version, second.new, second.shared_shards) == ("1.0.1", ["a.jsonl"], 0)


@pytest.mark.parametrize("schema", ["continuon-brain/dataset/0", "continuon-brain/dataset/2"])
def test_another_schema_is_refused_by_name_and_passed_over(tmp_path: Path, schema: str) -> None:
    write_log(tmp_path / "in" / "a.jsonl", seed=1)
    first = _convert(tmp_path)
    _edit(first.dataset_dir, lambda document: document.update(schema=schema))
    with pytest.raises(CorruptDataError, match=rf"schema '{schema}' is not .*convert the episodes again"):
        open_dataset(first.dataset_dir)
    second = _convert(tmp_path)
    assert (second.version, second.episodes) == ("1.0.1", 1)
    assert second.passed_over[0]["version"] == "1.0.0"
    assert schema in second.passed_over[0]["reason"]
    assert open_dataset(tmp_path / "out").path == second.dataset_dir
