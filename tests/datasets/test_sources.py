"""What a conversion reads: compressed logs are the sources they were before, and damage in one is told."""

import time
from pathlib import Path

import pytest

from brain_service.datasets.convert import convert_directory_to_tfrecord
from brain_service.datasets.sources import take_inventory
from brain_service.episodes.archive import compress_log
from brain_service.episodes.logger import EpisodeLogger
from brain_service.episodes.reader import episode_digest, read_episode, read_episodes


def record(folder: Path, count: int = 3) -> list[Path]:
    paths = []
    with EpisodeLogger(folder) as logger:
        for number in range(count):
            logger.start_episode(episode_id=f"e{number}")
            for index in range(4):
                logger.log_step({"x": [0.1 * index, number]}, {"a": 0.5}, timestamp_ns=index)
            paths.append(logger.end_episode("truncated"))
    return paths


def test_a_log_that_was_compressed_is_the_source_it_was(tmp_path: Path) -> None:
    paths = record(tmp_path / "in")
    before = take_inventory(tmp_path / "in")
    first = convert_directory_to_tfrecord(tmp_path / "in", tmp_path / "out")
    assert compress_log(paths[1]) is not None
    assert take_inventory(tmp_path / "in") == before
    assert convert_directory_to_tfrecord(tmp_path / "in", tmp_path / "out").reused
    again = convert_directory_to_tfrecord(tmp_path / "in", tmp_path / "anew")
    assert again.episodes == first.episodes == 3
    assert (again.dataset_dir / "manifest.json").read_bytes() == (first.dataset_dir / "manifest.json").read_bytes()


def test_a_compressed_log_reads_back_as_the_episode_it_was(tmp_path: Path) -> None:
    path = record(tmp_path, 1)[0]
    before, digest = read_episode(path), episode_digest(path)
    archive = compress_log(path)
    assert archive is not None
    for found in (read_episode(path), read_episode(archive), *read_episodes(archive), *read_episodes(path)):
        assert found.episode_id == before.episode_id
        assert found.observation["x"].tolist() == before.observation["x"].tolist()  # type: ignore[union-attr]
    assert episode_digest(path) == episode_digest(archive) == digest
    report = convert_directory_to_tfrecord(archive, tmp_path / "out")
    assert report.episodes == 1


def test_where_a_crash_left_both_the_log_counts(tmp_path: Path) -> None:
    path = record(tmp_path, 1)[0]
    text = path.read_bytes()
    archive = compress_log(path)
    assert archive is not None
    path.write_bytes(text)
    archive.write_bytes(b"half an archive")
    assert [source.file for source in take_inventory(tmp_path).sources] == ["e0.jsonl"]
    assert read_episode(path).episode_id == "e0"


def test_a_damaged_archive_is_left_out_with_the_reason(tmp_path: Path) -> None:
    paths = record(tmp_path / "in")
    for path, place in ((paths[0], 20), (paths[1], -3)):
        archive = compress_log(path)
        assert archive is not None
        data = bytearray(archive.read_bytes())
        data[place] ^= 1
        archive.write_bytes(data)
    report = convert_directory_to_tfrecord(tmp_path / "in", tmp_path / "out")
    assert report.episodes == 1
    reasons = {item["file"]: item["reason"] for item in report.quarantined}
    assert "fails its checksum" in reasons["e0.jsonl"]
    assert "cut short or changed" in reasons["e1.jsonl"]


def test_a_cancel_stops_the_hashing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for n in range(200):
        (tmp_path / f"e{n:03d}.json").write_text("{}")
    hashed: list[str] = []

    def slowly(path: Path) -> str:
        time.sleep(0.3)
        hashed.append(path.name)
        return ""

    def cancel(total: int) -> None:
        raise KeyboardInterrupt(total)

    monkeypatch.setattr("brain_service.datasets.sources._digest", slowly)
    with pytest.raises(KeyboardInterrupt, match="200"):
        take_inventory(tmp_path, None, cancel)
    # Those that were begun come to their end, few others begin.
    assert len(hashed) < 200
