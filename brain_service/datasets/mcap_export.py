"""A dataset as MCAP files, one an episode: `<episode_id>.mcap`, which Foxglove opens as a recording.

    /observation, /action    the features of a step, nested
    /step                    reward, discount, flags, control role, instruction
    /observation/<image>     foxglove.CompressedImage, the PNG or JPEG as it was recorded

All are protobuf, which Foxglove and rerun both show. Time is `timestamp_ns`. A channel's metadata tells the exact
path, dtype and shape of each field.
Source: https://mcap.dev/spec and the schemas of the Foxglove SDK.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from brain_service.datasets.columns import Columns
from brain_service.datasets.export_source import ExportEpisode, ExportNotes, ExportRequest
from brain_service.datasets.mcap_image import IMAGE_SCHEMA, encode_image, image_schema
from brain_service.datasets.mcap_message import MessageType
from brain_service.errors import InvalidError
from brain_service.image_header import image_kind
from brain_service.spec import Feature, FeatureSpec

__all__ = ["McapExport"]

_STEP: Mapping[str, Feature] = {
    "control_role": Feature("text"),
    "discount": Feature("float32"),
    "is_first": Feature("bool"),
    "is_last": Feature("bool"),
    "is_terminal": Feature("bool"),
    "language_instruction": Feature("text"),
    "reward": Feature("float32"),
}


@dataclass(frozen=True)
class McapExport:
    """Writes MCAP with CRCs over chunks and summary, a chunk index and the episode's metadata."""

    def write(self, request: ExportRequest, folder: Path) -> ExportNotes:
        """Write a file an episode.

        Raises:
            InvalidError: mcap is not installed, or an episode's time is before 1970.
            CorruptDataError: an episode cannot be read.
            OSError: the medium is full.
        """
        try:
            import mcap.writer  # noqa: F401
        except ImportError as error:
            raise InvalidError("MCAP needs mcap: pip install 'continuon-brain[formats]'") from error
        notes = ExportNotes(facts={"files": "one an episode"})
        name = f"{request.dataset.manifest.name}/{request.dataset.manifest.version}"
        spec = request.dataset.spec
        groups = [
            _Group("/observation", "observation/", _without_images(spec.observation)),
            _Group("/action", "action/", spec.action),
            _Group("/step", "", _STEP),
        ]
        groups = [group for group in groups if group.features]
        for episode in request.episodes():
            _write_episode(episode, request, name, groups, folder)
            times: Any = episode.columns["timestamp_ns"]
            notes.check_pace(episode.entry.episode_id, times, request.dataset.control_period_s)
            notes.episodes += 1
            notes.steps += len(times)
        return notes


class _Group:
    """The features of one topic, stored in columns whose names begin with `prefix`."""

    def __init__(self, topic: str, prefix: str, features: FeatureSpec) -> None:
        self.topic = topic
        self.features = features
        self._prefix = prefix
        self._type = MessageType(topic.removeprefix("/").title(), features)

    def register(self, writer: Any) -> int:
        """Return the number of a new channel for it."""
        schema_id = writer.register_schema(self._type.name, "protobuf", self._type.schema)
        told = {
            path: {"field": field, **self.features[path].to_json()} for path, field in self._type.fields.items()
        }
        metadata = {"features": orjson.dumps(told).decode()}
        channel: int = writer.register_channel(self.topic, "protobuf", schema_id, metadata)
        return channel

    def message(self, columns: Columns, step: int) -> bytes:
        """Return one step."""
        return self._type.encode({path: columns[f"{self._prefix}{path}"][step] for path in self.features})


def _write_episode(
    episode: ExportEpisode, request: ExportRequest, name: str, groups: list[_Group], folder: Path
) -> None:
    from mcap.writer import CompressionType, Writer

    entry, spec, columns = episode.entry, request.dataset.spec, episode.columns
    times: Any = columns["timestamp_ns"]
    if int(times.min()) < 0:
        raise InvalidError(
            f"episode {entry.episode_id}: its time {int(times.min())} ns is before 1970; MCAP has none"
        )
    with (folder / f"{entry.episode_id}.mcap").open("wb") as file:
        writer = Writer(file, compression=CompressionType.ZSTD, enable_data_crcs=True)
        writer.start(profile="", library="continuon-brain")
        told = {key: value if isinstance(value, str) else str(value) for key, value in episode.metadata.items()}
        facts = {"dataset": name, "split": episode.split, "profile": request.dataset.profile}
        writer.add_metadata(
            "episode", told | facts | {"robot_type": request.robot_type or told.get("robot_id", "")}
        )
        channels = [(group.register(writer), group) for group in groups]
        captured = sum(entry.roles.values())
        pictures = [
            (_image_channel(writer, f"/observation/{path}"), f"observation/{path}") for path in spec.image_paths
        ]
        for step, time_ns in enumerate(times.tolist()):
            for channel, group in channels:
                # A final observation of the `rlds` profile has no action; zeros there would look like one.
                if group.topic == "/action" and step >= captured:
                    continue
                writer.add_message(channel, time_ns, group.message(columns, step), time_ns, step)
            for channel, column in pictures:
                data = columns[column][step]
                assert isinstance(data, bytes)  # an image by its feature
                message = encode_image(time_ns, column, data, "jpeg" if image_kind(data) == "jpg" else "png")
                writer.add_message(channel, time_ns, message, time_ns, step)
        writer.finish()


def _without_images(spec: FeatureSpec) -> dict[str, Feature]:
    return {path: feature for path, feature in spec.items() if feature.dtype != "image"}


def _image_channel(writer: Any, topic: str) -> int:
    schema_id: int = writer.register_schema(IMAGE_SCHEMA, "protobuf", image_schema())
    channel: int = writer.register_channel(topic, "protobuf", schema_id)
    return channel
