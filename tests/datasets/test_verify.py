"""Every damaged byte is found, and all damages are named, not only the first."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest

from brain_service.datasets.convert import convert_directory_to_tfrecord
from brain_service.datasets.dataset import Dataset, open_dataset
from brain_service.datasets.verify import VerifyReport, verify_dataset
from brain_service.errors import InvalidError, NotFoundError
from brain_service.spec import EpisodeSpec, Feature

from .recording import record
from .samples import RICH_SPEC, VECTOR_SPEC, make_episode

TINY = EpisodeSpec({"x": Feature("float32")}, {"a": Feature("float32")})
IMAGES = EpisodeSpec({"camera": Feature("image", (2, 3, 3)), "note": Feature("text")}, VECTOR_SPEC.action)
SIDECARS = ("dataset_info.json", "features.json", "statistics.json", "dataset_statistics.json")


def _dataset(folder: Path, spec: EpisodeSpec = TINY, episodes: int = 3, **options: Any) -> Path:
    record(folder / "in", [make_episode(f"e{n}", 2 + n, spec=spec, final=n == 1) for n in range(episodes)])
    return convert_directory_to_tfrecord(folder / "in", folder / "out", **options).dataset_dir


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return _dataset(tmp_path)


@pytest.mark.parametrize("spec", [TINY, RICH_SPEC, IMAGES], ids=["tiny", "rich", "images"])
@pytest.mark.parametrize("options", [{}, {"profile": "rlds", "shard_bytes": 1}, {"val_fraction": 0.0}])
def test_a_sound_dataset_holds(tmp_path: Path, spec: EpisodeSpec, options: dict[str, Any]) -> None:
    made = _dataset(tmp_path, spec, **options)
    seen: list[tuple[int, int]] = []
    report = verify_dataset(made, lambda *now: seen.append(now))
    assert report.damages == []
    assert report.ok
    assert (report.episodes, report.sound_episodes) == (3, 3)
    assert seen[-1] == (report.size_bytes, report.size_bytes)
    assert verify_dataset(made.parent).dataset_dir == verify_dataset(made.parents[1]).dataset_dir == str(made)


def _flips(path: Path) -> Iterator[int]:
    """Flip one bit of each byte in turn, another one each time; yields where."""
    good = path.read_bytes()
    for position in range(len(good)):
        bad = bytearray(good)
        bad[position] ^= 1 << (position % 7)
        path.write_bytes(bad)
        yield position
    path.write_bytes(good)


def _places(report: VerifyReport, position: int, dataset: Dataset, shard: str) -> None:
    """The damage names shard and episode of the flipped byte."""
    (entry,) = [
        entry
        for split in dataset.splits
        for entry in dataset.entries(split)
        if entry.shard == shard and entry.offset_bytes <= position < entry.offset_bytes + entry.size_bytes
    ]
    named = {(damage.file, damage.episode, damage.offset_bytes) for damage in report.damages}
    assert (shard, entry.episode_id, entry.offset_bytes) in named
    assert report.sound_episodes == report.episodes - 1


@pytest.mark.long
def test_every_flipped_byte_of_every_shard_is_found_and_placed(folder: Path) -> None:
    dataset = open_dataset(folder)
    for path in sorted(folder.glob("*.tfrecord-*")):
        for position in _flips(path):
            _places(verify_dataset(folder), position, dataset, path.name)
    assert verify_dataset(folder).ok


@pytest.mark.long
def test_every_cut_of_a_shard_is_found(folder: Path) -> None:
    path = sorted(folder.glob("*.tfrecord-*"))[0]
    good = path.read_bytes()
    for length in range(len(good)):
        path.write_bytes(good[:length])
        report = verify_dataset(folder)
        assert not report.ok
        assert path.name in {damage.file for damage in report.damages}
    path.write_bytes(good + b"\0")
    assert not verify_dataset(folder).ok


def _meaning(folder: Path) -> Any:
    """What a reader gets from a dataset: every value, and the figures to normalise with."""
    dataset = open_dataset(folder)
    episodes = {
        (split, i): {name: np.asarray(column).tolist() for name, column in dataset.read(split, i).items()}
        for split in dataset.splits
        for i in range(len(dataset.entries(split)))
    }
    return episodes, dataset.profile, dataset.spec.to_json(), dataset.statistics.num_transitions


@pytest.mark.long
def test_a_flip_in_the_manifest_is_found_or_alters_no_episode(folder: Path) -> None:
    expected = _meaning(folder)
    path = folder / "manifest.json"
    good = path.read_bytes()
    unseen = []
    for position in _flips(path):
        if verify_dataset(folder).ok:
            unseen.append(position)
            assert _meaning(folder) == expected
    # Unseen are provenance and white space, nothing else.
    allowed = _provenance(good)
    assert [position for position in unseen if position not in allowed] == []
    assert len(unseen) < len(good) / 2


def _provenance(good: bytes) -> set[int]:
    """Where a manifest says what nothing else says: sources, what was left out; the schema's key; white space."""
    allowed = {position for position, byte in enumerate(good) if byte in b" \n"}
    for start, stop in ((b'"sources"', b'"quarantined"'), (b'"quarantined"', b"\n}")):
        allowed |= set(range(good.index(start), good.index(stop, good.index(start)) + 2))
    at = -1
    while (at := good.find(b'"source"', at + 1)) >= 0:
        allowed |= set(range(at + 8, good.index(b",", at)))
    schema = good.index(b'"schema"')
    return allowed | set(range(schema, schema + 8)) | set(range(good.index(b'"quarantined"'), len(good)))


@pytest.mark.long
@pytest.mark.parametrize("name", SIDECARS)
def test_a_flip_beside_the_shards_is_found_or_says_the_same(folder: Path, name: str) -> None:
    path = folder / name
    good = orjson.loads(path.read_bytes())
    unseen = 0
    for position in _flips(path):
        if verify_dataset(folder).ok:
            unseen += 1
            _same(orjson.loads(path.read_bytes()), good, f"{name} byte {position}")
    assert unseen < path.stat().st_size / 2


def _same(found: Any, good: Any, place: str) -> None:
    """Equal but for free text and the last digits of figures."""
    if isinstance(good, dict):
        assert found.keys() == good.keys(), place
        for key in good:
            if key != "description":
                _same(found[key], good[key], f"{place}/{key}")
    elif isinstance(good, list):
        assert len(found) == len(good), place
        for one, other in zip(found, good, strict=True):
            _same(one, other, place)
    elif isinstance(good, float):
        assert found == pytest.approx(good, rel=1e-5, abs=1e-5), place
    else:
        assert found == good, place


def test_all_damages_are_named(tmp_path: Path) -> None:
    made = _dataset(tmp_path, episodes=4, shard_bytes=1, val_fraction=0.0)
    first, second, third, fourth = sorted(made.glob("*.tfrecord-*"))
    first.write_bytes(first.read_bytes()[:-3])
    second.unlink()
    third.write_bytes(third.read_bytes()[:20] + b"\xff" + third.read_bytes()[21:])
    (made / "features.json").write_text("[1]")
    (made / "statistics.json").unlink()
    shutil.copy(fourth, made / "left.tfrecord-00009-of-00010")
    report = verify_dataset(made)
    named = {damage.file for damage in report.damages}
    extra = {"features.json", "statistics.json", "left.tfrecord-00009-of-00010"}
    assert named == {first.name, second.name, third.name} | extra
    assert (report.episodes, report.sound_episodes) == (4, 1)


def _edit(folder: Path, change: Any) -> None:
    path = folder / "manifest.json"
    manifest = orjson.loads(path.read_bytes())
    change(manifest)
    path.write_bytes(orjson.dumps(manifest))


def test_an_index_that_contradicts_the_records_is_named(folder: Path) -> None:
    def change(manifest: dict[str, Any]) -> None:
        first, second = manifest["splits"]["train"][:2]
        first["length"], second["length"] = second["length"], first["length"]

    _edit(folder, change)
    report = verify_dataset(folder)
    assert report.sound_episodes == 1
    assert all("should hold" in damage.message for damage in report.damages if damage.episode)


@pytest.mark.parametrize(
    ("field", "value", "word"),
    [
        ("episode_id", "other", "episode_id"),
        ("end", "truncated", "end"),
        ("roles", {"policy": 2}, "control roles"),
        ("sha256", "0" * 64, "SHA-256"),
        ("offset_bytes", -5, "offset"),
        ("size_bytes", 17, "bytes, the manifest says 17"),
        ("shard", "nowhere", "no such shard"),
    ],
)
def test_a_wrong_entry_is_named(folder: Path, field: str, value: Any, word: str) -> None:
    _edit(folder, lambda manifest: manifest["splits"]["train"][0].update({field: value}))
    report = verify_dataset(folder)
    assert any(word in damage.message for damage in report.damages), report.damages


def test_an_episode_twice_is_named(folder: Path) -> None:
    _edit(folder, lambda m: m["splits"]["train"].append(m["splits"]["train"][0]))
    assert any("2 times" in damage.message for damage in verify_dataset(folder).damages)


def test_without_a_manifest_the_records_still_tell(folder: Path) -> None:
    (folder / "manifest.json").unlink()
    report = verify_dataset(folder)
    assert [damage.file for damage in report.damages] == ["manifest.json"]
    assert report.sound_episodes == 3
    shard = sorted(folder.glob("*.tfrecord-*"))[0]
    shard.write_bytes(shard.read_bytes()[:-1])
    assert [damage.file for damage in verify_dataset(folder).damages] == ["manifest.json", shard.name]


def test_no_dataset_and_several_are_refused(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="brain convert"):
        verify_dataset(tmp_path / "nowhere")
    _dataset(tmp_path)
    convert_directory_to_tfrecord(tmp_path / "in", tmp_path / "out", name="other")
    with pytest.raises(InvalidError, match="episodes, other"):
        verify_dataset(tmp_path / "out")
