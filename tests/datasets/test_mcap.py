"""MCAP files, read back by the `mcap` package: every value, its time, the images, the metadata, the checksums."""

import io
import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import zstandard
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from mcap.exceptions import McapError
from mcap.reader import SeekingReader, make_reader
from mcap.stream_reader import CRCValidationError

from brain_service.datasets.formats import export_dataset
from brain_service.datasets.mcap_message import MessageType
from brain_service.episodes.episode import Episode
from brain_service.errors import InvalidError
from brain_service.spec import EpisodeSpec, Feature

from .samples import RICH_SPEC, VECTOR_SPEC, Recipe, make_episode, recipes
from .test_lerobot import make_dataset, several

CAMERAS = EpisodeSpec(
    {**RICH_SPEC.observation, "front": Feature("image", (6, 8, 3)), "wrist/grey": Feature("image", (4, 5, 1))},
    RICH_SPEC.action,
)


def read(path: Path) -> tuple[Any, dict[str, list[tuple[int, Any, Any]]], dict[str, str]]:
    """Return summary, `{topic: [(log time, schema, message)]}` and metadata, with every checksum checked."""
    with path.open("rb") as file:
        reader = make_reader(file, validate_crcs=True)
        assert isinstance(reader, SeekingReader)
        topics: dict[str, list[tuple[int, Any, Any]]] = {}
        for schema, channel, message in reader.iter_messages():
            assert message.publish_time == message.log_time
            found = decode(schema, message.data)
            if told := channel.metadata.get("features"):
                found = {path: value_at(found, one) for path, one in json.loads(told).items()}
            topics.setdefault(channel.topic, []).append((message.log_time, schema, found))
        (metadata,) = list(reader.iter_metadata())
        return reader.get_summary(), topics, metadata.metadata


def decode(schema: Any, data: bytes) -> Any:
    """Read a message as one does that has never heard of it: from the descriptors in the file."""
    assert schema.encoding == "protobuf"
    pool = descriptor_pool.DescriptorPool()
    for file in descriptor_pb2.FileDescriptorSet.FromString(schema.data).file:
        pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(schema.name)).FromString(data)


def value_at(message: Any, told: dict[str, Any]) -> Any:
    """Return a feature's value where the channel's metadata says that it stands; one that is missing fails."""
    *above, last = told["field"].split(".")
    for name in above:
        assert message.HasField(name)
        message = getattr(message, name)
    if not told["shape"]:
        assert message.HasField(last)
        return getattr(message, last)
    value = getattr(message, last)
    return np.array(list(value), told["dtype"]).reshape(told["shape"])


def rebuild(messages: list[tuple[int, Any, Any]], path: str, feature: Feature) -> Any:
    values = [message[path] for _, _, message in messages]
    return values if feature.dtype == "text" else np.array(values, feature.dtype)


@pytest.fixture(scope="module", params=["oxe", "rlds"])
def written(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    root = tmp_path_factory.mktemp("mcap")
    episodes = {episode.episode_id: episode for episode in several(CAMERAS, final=True)}
    dataset = make_dataset(root, list(episodes.values()), profile=request.param)
    report = export_dataset(dataset.path, root / "mcap", "mcap", robot_type="arm")
    return request.param, root / "mcap", episodes, report


def test_every_value_is_found_at_its_time(written: tuple[str, Path, dict[str, Episode], Any]) -> None:
    profile, folder, episodes, report = written
    assert {path.name for path in folder.iterdir()} == {f"{episode_id}.mcap" for episode_id in episodes}
    assert (report.episodes, report.left_out) == (len(episodes), {})
    for episode_id, episode in episodes.items():
        _, topics, _ = read(folder / f"{episode_id}.mcap")
        stored = len(episode) + (profile == "rlds")
        assert set(topics) == {"/observation", "/action", "/step", "/observation/front", "/observation/wrist/grey"}
        assert len(topics["/action"]) == len(episode)
        for topic, messages in topics.items():
            assert len(messages) == stored or topic == "/action"
            assert [time_ns for time_ns, _, _ in messages][: len(episode)] == episode.timestamp_ns.tolist()
        for part, spec in (("observation", CAMERAS.observation), ("action", CAMERAS.action)):
            for path, feature in spec.items():
                expected = getattr(episode, part)[path]
                if feature.dtype == "image":
                    images = [message for _, _, message in topics[f"/observation/{path}"]]
                    assert [image.data for image in images][: len(episode)] == expected
                    assert {image.format for image in images} <= {"png", "jpeg"}
                    continue
                found = rebuild(topics[f"/{part}"], path, feature)[: len(episode)]
                if feature.dtype == "text":
                    assert found == expected
                else:
                    assert found.tobytes() == np.asarray(expected).tobytes(), path
        steps = [message for _, _, message in topics["/step"]]
        rewards = np.array([step["reward"] for step in steps], np.float32)[: len(episode)]
        assert rewards.tobytes() == episode.reward.tobytes()
        assert [step["is_last"] for step in steps] == [False] * (stored - 1) + [True]
        assert [step["is_terminal"] for step in steps] == [False] * (stored - 1) + [episode.end == "terminated"]
        assert {step["language_instruction"] for step in steps[: len(episode)]} == {
            episode.metadata["language_instruction"]
        }


@given(recipe=recipes)
@hypothesis_settings(max_examples=20)
def test_any_features_have_a_message(recipe: Recipe) -> None:
    episode = recipe.build()
    features = {path: one for path, one in episode.spec.observation.items() if one.dtype != "image"}
    kind = MessageType("Observation", features)
    schema = SimpleNamespace(encoding="protobuf", name=kind.name, data=kind.schema)
    for step in range(len(episode)):
        values = {path: episode.observation[path][step] for path in features}
        message = decode(schema, kind.encode(values))
        for path, field in kind.fields.items():
            found = value_at(message, {"field": field, **features[path].to_json()})
            assert (
                np.asarray(found, np.asarray(values[path]).dtype).tobytes() == np.asarray(values[path]).tobytes()
            )


def test_names_that_protobuf_has_not_are_told_apart() -> None:
    paths = ["1", "_1", "a b", "a.b", "a-b/é", "a_b/x", "group1", "Group1", "Group6/y", "class", "ü"]
    features = dict.fromkeys(sorted(paths), Feature("float32"))
    kind = MessageType("Action", features)
    assert len(set(kind.fields.values())) == len(paths)
    schema = SimpleNamespace(encoding="protobuf", name=kind.name, data=kind.schema)
    message = decode(schema, kind.encode({path: np.float32(n) for n, path in enumerate(features)}))
    for number, field in enumerate(kind.fields[path] for path in features):
        assert all(re.fullmatch("[A-Za-z_][A-Za-z0-9_]*", name) for name in field.split("."))
        assert value_at(message, {"field": field, "shape": []}) == number


def test_images_are_foxgloves(written: tuple[str, Path, dict[str, Episode], Any]) -> None:
    _, folder, episodes, _ = written
    _, topics, _ = read(folder / "e03.mcap")
    for time_ns, schema, image in topics["/observation/front"]:
        assert (schema.name, schema.encoding) == ("foxglove.CompressedImage", "protobuf")
        assert image.timestamp.ToNanoseconds() == time_ns
        assert image.format == ("jpeg" if image.data.startswith(b"\xff\xd8") else "png")
        assert image.frame_id == "observation/front"
    assert len(episodes["e03"]) <= len(topics["/observation/front"])


def test_a_file_tells_what_it_is_and_has_an_index(written: tuple[str, Path, dict[str, Episode], Any]) -> None:
    profile, folder, episodes, _ = written
    summary, topics, metadata = read(folder / "e01.mcap")
    assert metadata["episode_id"] == "e01"
    assert metadata["dataset"] == "episodes/1.0.0"
    assert (metadata["profile"], metadata["robot_type"]) == (profile, "arm")
    assert json.loads(metadata["metadata_json"])["operator"] == "Ada"
    assert summary.statistics.message_count == sum(map(len, topics.values()))
    assert summary.statistics.message_start_time == episodes["e01"].timestamp_ns[0]
    assert summary.chunk_indexes
    assert all(index.compression == "zstd" for index in summary.chunk_indexes)


def test_every_flipped_byte_of_a_chunk_is_found(
    written: tuple[str, Path, dict[str, Episode], Any],
) -> None:
    _, folder, _, _ = written
    good = (folder / "e02.mcap").read_bytes()
    summary = make_reader(io.BytesIO(good)).get_summary()
    assert summary is not None
    (chunk,) = summary.chunk_indexes
    stop = chunk.chunk_start_offset + chunk.chunk_length
    for position in np.random.default_rng(0).integers(stop - chunk.compressed_size, stop, 100):
        bad = bytearray(good)
        bad[position] ^= 0x10
        with pytest.raises((CRCValidationError, McapError, zstandard.ZstdError)):
            list(make_reader(io.BytesIO(bad), validate_crcs=True).iter_messages())


def test_times_before_1970_have_no_place(tmp_path: Path) -> None:
    episode = make_episode("old")
    episode.timestamp_ns[:] = np.arange(len(episode)) - 2
    dataset = make_dataset(tmp_path, [episode])
    with pytest.raises(InvalidError, match="episode old: its time -2 ns is before 1970"):
        export_dataset(dataset.path, tmp_path / "mcap", "mcap")
    assert not (tmp_path / "mcap").exists()


def test_an_uneven_pace_is_told(tmp_path: Path) -> None:
    episode = make_episode("slow", 20, spec=VECTOR_SPEC)
    episode.timestamp_ns[:] = np.cumsum(np.where(np.arange(20) % 5 == 0, 200_000_000, 50_000_000))
    report = export_dataset(make_dataset(tmp_path, [episode]).path, tmp_path / "mcap", "mcap")
    assert ["episode slow" in warning for warning in report.warnings] == [True]


def test_a_cut_file_is_no_mcap(written: tuple[str, Path, dict[str, Episode], Any]) -> None:
    _, folder, _, _ = written
    data = (folder / "e00.mcap").read_bytes()
    with pytest.raises((McapError, ValueError)):
        list(make_reader(io.BytesIO(data[:-40]), validate_crcs=True).iter_messages())
