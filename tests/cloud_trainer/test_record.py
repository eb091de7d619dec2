"""A directory belongs to one run."""

from pathlib import Path

import pytest

from brain_service.datasets.places import LocalPlace
from brain_service.errors import CorruptDataError, InvalidError
from brain_service.training.config import TrainConfig
from cloud_trainer.record import RunRecord, default_run_id, read_record

CONFIG = TrainConfig(steps=10)


def record(tmp_path: Path) -> tuple[LocalPlace, RunRecord]:
    place = LocalPlace(tmp_path)
    RunRecord(run_id="r", data_path="d", dataset="d/1.0.0", config=CONFIG.to_dict()).write(place)
    found = read_record(place)
    assert found is not None
    return place, found


def test_the_same_run_may_go_on_with_another_rhythm_of_checkpoints(tmp_path: Path) -> None:
    place, found = record(tmp_path)
    found.require_same(place, "r", "d", CONFIG)
    found.require_same(place, "r", "d", TrainConfig(steps=10, checkpoint_every=3, keep=5, log_every=1))


@pytest.mark.parametrize(
    ("run_id", "data", "config", "field"),
    [
        ("other", "d", CONFIG, "run_id"),
        ("r", "e", CONFIG, "data_path"),
        ("r", "d", TrainConfig(steps=11), "steps"),
        ("r", "d", TrainConfig(steps=10, model={"d_h": 32}), "model"),
    ],
)
def test_another_run_is_refused_with_what_differs(
    run_id: str, data: str, config: TrainConfig, field: str, tmp_path: Path
) -> None:
    place, found = record(tmp_path)
    with pytest.raises(InvalidError, match=f"{tmp_path} holds run r with {field}") as caught:
        found.require_same(place, run_id, data, config)
    assert caught.value.field == field


@pytest.mark.parametrize("data", [b"", b"[]", b"{}", b'{"schema": "continuon-brain/run/1", "x": 1}'])
def test_a_record_that_is_not_what_was_written_is_said(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "run.json").write_bytes(data)
    with pytest.raises(CorruptDataError, match=r"run\.json"):
        read_record(LocalPlace(tmp_path))


def test_a_run_is_called_after_its_directory() -> None:
    assert default_run_id("gs://bucket/runs/Pick_Place 7/") == "pick-place-7"
    assert default_run_id("/") == "run"
    assert len(default_run_id("x" * 99)) == 40
