"""A dataset as MCAP files, one an episode: `<episode_id>.mcap`, which Foxglove opens as a recording.

    /observation, /action    the features of a step, nested, as JSON with a schema
    /step                    reward, discount, flags, control role, instruction, as JSON with a schema
    /observation/<image>     foxglove.CompressedImage, the PNG or JPEG as it was recorded, as protobuf

Time is `timestamp_ns`. Images are protobuf since rerun draws no others; Foxglove takes both.
Source: https://mcap.dev/spec and the schemas of the Foxglove SDK.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from brain_service.datasets.columns import Column, Columns
from brain_service.datasets.export_source import ExportEpisode, ExportNotes, ExportRequest
from brain_service.datasets.mcap_image import IMAGE_SCHEMA, encode_image, image_schema
from brain_service.errors import InvalidError
from brain_service.image_header import image_kind
from brain_service.spec import Feature, FeatureSpec, unflatten

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
_JSON_TYPES = {"float32": "number", "int64": "integer", "uint8": "integer", "bool": "boolean", "text": "string"}


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
        for episode in request.episodes():
            _write_episode(episode, request, name, folder)
            times: Any = episode.columns["timestamp_ns"]
            notes.check_pace(episode.entry.episode_id, times, request.dataset.control_period_s)
            notes.episodes += 1
            notes.steps += len(times)
        return notes


def _write_episode(episode: ExportEpisode, request: ExportRequest, name: str, folder: Path) -> None:
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
        parts = {
            "/observation": ("observation", _without_images(spec.observation)),
            "/action": ("action", spec.action),
            "/step": ("", _STEP),
        }
        groups = [
            (_json_channel(writer, topic, features), part, features)
            for topic, (part, features) in parts.items()
            if features
        ]
        captured = sum(entry.roles.values())
        pictures = [
            (_image_channel(writer, f"/observation/{path}"), f"observation/{path}") for path in spec.image_paths
        ]
        for step, time_ns in enumerate(times.tolist()):
            for channel, part, features in groups:
                # A final observation of the `rlds` profile has no action; zeros there would look like one.
                if part == "action" and step >= captured:
                    continue
                writer.add_message(channel, time_ns, _message(columns, part, features, step), time_ns, step)
            for channel, column in pictures:
                data = columns[column][step]
                assert isinstance(data, bytes)  # an image by its feature
                message = encode_image(time_ns, column, data, "jpeg" if image_kind(data) == "jpg" else "png")
                writer.add_message(channel, time_ns, message, time_ns, step)
        writer.finish()


def _without_images(spec: FeatureSpec) -> dict[str, Feature]:
    return {path: feature for path, feature in spec.items() if feature.dtype != "image"}


def _json_channel(writer: Any, topic: str, features: FeatureSpec) -> int:
    schema = orjson.dumps(_schema(unflatten(features)))
    schema_id: int = writer.register_schema(f"continuon{topic.replace('/', '.')}", "jsonschema", schema)
    channel: int = writer.register_channel(topic, "json", schema_id)
    return channel


def _image_channel(writer: Any, topic: str) -> int:
    schema_id: int = writer.register_schema(IMAGE_SCHEMA, "protobuf", image_schema())
    channel: int = writer.register_channel(topic, "protobuf", schema_id)
    return channel


def _schema(node: Any) -> dict[str, Any]:
    """Return the JSON schema of a tree of features."""
    if isinstance(node, Feature):
        found: dict[str, Any] = {"type": _JSON_TYPES[node.dtype]}
        for size in reversed(node.shape):
            found = {"type": "array", "items": found, "minItems": size, "maxItems": size}
        return found
    properties = {name: _schema(child) for name, child in node.items()}
    return {"type": "object", "properties": properties, "required": list(properties)}


def _message(columns: Columns, part: str, features: FeatureSpec, step: int) -> bytes:
    """Return one step of a group; a float32 is the shortest number that reads back the same."""
    values = {path: _value(columns[f"{part}/{path}" if part else path], step) for path in features}
    return orjson.dumps(unflatten(values), option=orjson.OPT_SERIALIZE_NUMPY)


def _value(column: Column, step: int) -> Any:
    value = column[step]
    return np.ascontiguousarray(value) if isinstance(value, np.ndarray) and value.ndim else value
