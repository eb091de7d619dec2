"""Names of datasets and runs to folders."""

import os
from pathlib import Path

import pytest

from brain_service.datasets.convert import convert_directory_to_tfrecord
from brain_service.errors import NotFoundError
from brain_service.jobs.references import checkpoint_path, dataset_path
from brain_service.settings import Settings
from tests.jobs.recordings import write_episodes


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path)


@pytest.fixture
def converted(settings: Settings) -> Settings:
    """`episodes` in two versions, then `old`, whose last change lies before theirs."""
    for count in (2, 3):
        write_episodes(settings.episodes_dir, count, 3)
        convert_directory_to_tfrecord(settings.episodes_dir, settings.datasets_dir)
    old = convert_directory_to_tfrecord(settings.episodes_dir, settings.datasets_dir, name="old").dataset_dir
    os.utime(old, ns=(0, 0))
    return settings


@pytest.mark.parametrize(
    ("reference", "found"),
    [
        ("episodes", "episodes/1.0.1"),
        ("episodes/1.0.0", "episodes/1.0.0"),
        ("old", "old/1.0.0"),
        (None, "episodes/1.0.1"),
    ],
)
def test_a_dataset_by_name_by_version_or_the_last_made(
    converted: Settings, reference: str | None, found: str
) -> None:
    assert dataset_path(converted, reference) == converted.datasets_dir / found


def test_an_unknown_dataset_is_told_those_that_are(converted: Settings) -> None:
    with pytest.raises(NotFoundError, match=r"episodes/1.0.0, episodes/1.0.1, old/1.0.0") as caught:
        dataset_path(converted, "episodes/9.9.9")
    assert caught.value.field == "dataset"


def test_without_any_dataset_or_checkpoint_the_next_step_is_named(settings: Settings) -> None:
    with pytest.raises(NotFoundError, match="POST /convert"):
        dataset_path(settings, None)
    with pytest.raises(NotFoundError, match="POST /train"):
        checkpoint_path(settings, None)


def test_a_run_by_name_or_the_newest_that_has_a_checkpoint(settings: Settings) -> None:
    runs = settings.checkpoints_dir
    for folder in ("20260101T000000-a/100", "20260102T000000-b/100", "20260103T000000-c/100.tmp"):
        (runs / folder).mkdir(parents=True)
    assert checkpoint_path(settings, None) == runs / "20260102T000000-b"
    assert checkpoint_path(settings, "20260101T000000-a") == runs / "20260101T000000-a"
    with pytest.raises(NotFoundError, match="20260101T000000-a, 20260102T000000-b"):
        checkpoint_path(settings, "20260103T000000-c")


def test_the_newest_run_is_the_one_written_last_whatever_its_name(settings: Settings) -> None:
    runs = settings.checkpoints_dir
    for name, written_ns in (("kitchen/100", 10**18), ("20260102T000000-b/100", 2 * 10**18)):
        (runs / name).mkdir(parents=True)
        os.utime(runs / name, ns=(written_ns, written_ns))
    assert checkpoint_path(settings, None) == runs / "20260102T000000-b"
