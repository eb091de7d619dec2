"""One capture file becomes framed records in a part file, from which shards are cut once all files are read.

The split needs all episode ids and the spec needs all episodes, but memory must not grow with the input.
"""

import hashlib
from collections import Counter
from pathlib import Path
from typing import Any, BinaryIO

import msgspec
import numpy as np

from brain_service.datasets.columns import Columns, Profile, episode_columns, step_features
from brain_service.datasets.record import encode_episode_parts, episode_metadata
from brain_service.datasets.tfrecord import frame_parts
from brain_service.episodes.episode import Episode
from brain_service.episodes.reader import read_episodes
from brain_service.errors import BrainError, InvalidError, UnavailableError
from brain_service.image_header import image_kind
from brain_service.spec import EpisodeSpec

__all__ = ["Encoded", "EncodedSource", "encode_source"]


class Encoded(msgspec.Struct, frozen=True):
    """One episode as a framed record: `size_bytes` at `offset_bytes` of the file `part`, `length` stored steps.

    `place` counts the episodes before it in its source. `image_kinds` are the kinds of file, `png` or `jpg`, that
    each image feature holds, by stored name.
    """

    episode_id: str
    place: int
    spec: dict[str, Any]
    part: str
    offset_bytes: int
    size_bytes: int
    sha256: str
    length: int
    end: str
    roles: dict[str, int]
    image_kinds: dict[str, list[str]]


class EncodedSource(msgspec.Struct, frozen=True):
    """What a capture file held: its episodes up to the first that cannot be stored, and why that cannot."""

    file: str
    episodes: list[Encoded]
    problem: str | None = None


def encode_source(path: Path, profile: Profile, part: BinaryIO) -> EncodedSource:
    """Read a capture file and append its episodes to the open file `part`.

    Raises:
        UnavailableError: the medium cannot read it: left out now, it would never be looked at again.
        OSError: the medium is full.
    """
    episodes: list[Encoded] = []
    try:
        for episode in read_episodes(path):
            episodes.append(_encode(episode, len(episodes), profile, part))
    except UnavailableError:
        raise
    except BrainError as error:
        return EncodedSource(path.name, episodes, error.detail)
    return EncodedSource(path.name, episodes)


def _encode(episode: Episode, place: int, profile: Profile, part: BinaryIO) -> Encoded:
    if len(episode) == 0:
        raise InvalidError("the episode has no steps")
    _require_one_ending(episode)
    step_features(episode.spec)
    columns = episode_columns(episode, profile)
    digest, offset_bytes = hashlib.sha256(), part.tell()
    for piece in frame_parts(encode_episode_parts(columns, episode_metadata(episode))):
        part.write(piece)
        digest.update(piece)
    return Encoded(
        episode_id=episode.episode_id,
        place=place,
        spec=episode.spec.to_json(),
        part=part.name,
        offset_bytes=offset_bytes,
        size_bytes=part.tell() - offset_bytes,
        sha256=digest.hexdigest(),
        length=len(columns["control_role"]),
        end=episode.end or "open",
        roles=dict(sorted(Counter(episode.control_role).items())),
        image_kinds=_image_kinds(columns, episode.spec),
    )


def _require_one_ending(episode: Episode) -> None:
    """Refuse an episode that goes on after its end: what followed belongs to another one.

    Raises:
        InvalidError: a step before the last is terminal.
    """
    early = np.flatnonzero(episode.is_terminal[:-1])
    if len(early):
        raise InvalidError(
            f"step {early[0]} of {len(episode)} is terminal and others follow it; cut the file there, or correct "
            "the flag",
            field="is_terminal",
        )


def _image_kinds(columns: Columns, spec: EpisodeSpec) -> dict[str, list[str]]:
    names = [f"observation/{path}" for path in spec.image_paths]
    kinds = {
        name: {image_kind(image) or "" for image in columns[name] if isinstance(image, bytes)} for name in names
    }
    return {name: sorted(found) for name, found in kinds.items()}
