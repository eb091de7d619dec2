"""Every damaged byte is found, and all damages are named, not only the first."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import orjson
import pytest

from brain_service.datasets.convert import convert_directory_to_tfrecord
from brain_service.datasets.verify import verify_dataset
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


def _flip(folder: Path, file: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "tests.datasets.flipping", folder, file],
        capture_output=True,
        text=True,
        timeout=250,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.long
def test_every_flipped_byte_and_every_cut_of_a_shard_is_found_and_placed(tmp_path: Path) -> None:
    made = _dataset(tmp_path, episodes=2, val_fraction=0.0)
    (shard,) = made.glob("*.tfrecord-*")
    found = _flip(made, shard.name)
    assert found.pop("bytes") == shard.stat().st_size > 1000
    assert found == {"unseen": [], "altered": [], "misplaced": [], "unseen_cuts": []}
    assert verify_dataset(made).ok
    shard.write_bytes(shard.read_bytes() + b"\0")
    assert not verify_dataset(made).ok


@pytest.mark.long
@pytest.mark.parametrize("file", ["manifest.json", *SIDECARS])
def test_a_flip_beside_the_shards_is_found_or_alters_nothing(tmp_path: Path, file: str) -> None:
    made = _dataset(tmp_path, episodes=2)
    found = _flip(made, file)
    assert found["altered"] == []
    allowed = _free(file, (made / file).read_bytes())
    assert [position for position in found["unseen"] if position not in allowed] == []


def _free(file: str, text: bytes) -> set[int]:
    """Return the bytes of a file that nothing else says, or whose last digits may be anything."""
    spans = [match.span() for match in re.finditer(rb"\s+", text)]
    if file == "manifest.json":
        # Where it came from, what was left out, and the schema's name, which has a default.
        spans += [match.span() for match in re.finditer(rb'"source": "[^"]*"', text)]
        spans += [match.span() for match in re.finditer(rb'"schema"', text)]
        spans.append((text.index(b'"sources"'), len(text)))
    if file == "dataset_info.json":
        spans += [match.span(1) for match in re.finditer(rb'"description": "([^"]*)"', text)]
    if "statistics" in file:
        spans += [match.span() for match in re.finditer(rb"[-+.0-9e]+", text)]
    return {position for start, stop in spans for position in range(start, stop)}


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
