"""What every import format gives: episodes one by one, and the reason where one cannot be had."""

import contextlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np
import orjson
from jaxtyping import Int64

from brain_service.datasets.columns import Profile
from brain_service.datasets.feature_map import FeatureMap
from brain_service.datasets.record import METADATA_FEATURES
from brain_service.episodes.episode import Column, Episode
from brain_service.episodes.header import CONTROL_ROLES, is_episode_id
from brain_service.errors import InvalidError

__all__ = [
    "DEFAULT_FPS",
    "ImportNotes",
    "ImportOptions",
    "ImportSource",
    "Rejected",
    "check_rate",
    "episode_name",
    "first_text",
    "header_metadata",
    "paced_times",
    "read_roles",
]

DEFAULT_FPS = 10.0
"""Steps a second where neither the dataset nor the caller tells."""

# From a step in 17 minutes to one in a microsecond: beyond it no time in int64 nanoseconds can be told.
_SLOWEST_FPS, _FASTEST_FPS = 1e-3, 1e6

_MEMBERS = ("environment_id", "xr_mode", "robot_id", "control_role", "tags", "language_instruction")


@dataclass(frozen=True)
class ImportOptions:
    """How to read a foreign dataset.

    Names of features (None: all), what the last step means (None: find out), steps a second where it tells none.
    """

    observation: tuple[str, ...] | None = None
    action: tuple[str, ...] | None = None
    profile: Profile | None = None
    fps: float | None = None

    def feature_map(self, separator: str) -> FeatureMap:
        """Return the names that were asked for, in a format that nests them with `separator`."""
        return FeatureMap(self.observation, self.action, separator=separator)


@dataclass(frozen=True)
class Rejected:
    """Episodes of one place that cannot be imported, and why."""

    place: str
    reason: str
    episodes: int = 1


@dataclass
class ImportNotes:
    """What a source says of itself: features left out with the reason, warnings, facts such as the profile."""

    left_out: dict[str, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)

    def warn(self, message: str) -> None:
        """Add a warning once."""
        if message not in self.warnings:
            self.warnings.append(message)


# Checkable at run time since the tests check every annotation there.
@runtime_checkable
class ImportSource(Protocol):
    """A foreign dataset, open for reading."""

    @property
    def name(self) -> str:
        """What to call the dataset."""

    @property
    def total(self) -> int:
        """How many episodes there are in all, as its description says: a count from 0."""

    @property
    def notes(self) -> ImportNotes:
        """What is known so far; complete once all episodes are read."""

    def episodes(self) -> Iterator[Episode | Rejected]:
        """Yield every episode in the dataset's order, one in memory at a time."""


def episode_name(told: object, source: str, split: str, index: int, taken: set[str]) -> str:
    """Return an id for an episode: what the dataset tells if that is one and new, else one made of its place.

    `index` counts the episodes of the split from 0.
    """
    told = told.decode(errors="replace") if isinstance(told, bytes) else told
    if isinstance(told, str) and is_episode_id(told) and told not in taken:
        return told
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", f"{source}-{split}").strip("-._")[:100] or "episode"
    return f"{plain}-{index:06d}"


def check_rate(fps: float, name: str) -> None:
    """Check that steps can be given times at `fps` a second; `name` stands for where it was told.

    Raises:
        InvalidError: it is no rate of a robot.
    """
    if not _SLOWEST_FPS <= fps <= _FASTEST_FPS:
        raise InvalidError(
            f"{name} {fps:g} is not between {_SLOWEST_FPS:g} and {_FASTEST_FPS:g}: give steps a second",
            field="fps",
        )


def paced_times(steps: int, fps: float) -> Int64[np.ndarray, " T"]:
    """Return times in ns of `steps` steps at `fps` a second, from 0."""
    return np.array([round(step * 1e9 / fps) for step in range(steps)], np.int64)


def read_roles(column: Column | None, steps: int) -> list[str]:
    """Return who acted at each step: the column where it holds our roles, else `expert`."""
    roles = [str(role) for role in column] if isinstance(column, list) else []
    return roles if roles and set(roles) <= set(CONTROL_ROLES) else ["expert"] * steps


def first_text(column: Column | None, episode_id: str, notes: ImportNotes) -> str:
    """Return the instruction of an episode from a column of one a step; warns where it changes on the way."""
    if not isinstance(column, list) or not column:
        return ""
    if len(set(column)) > 1:
        notes.warn(f"episode {episode_id}: its instruction changes on the way; the first one is kept")
    return str(column[0])


def header_metadata(told: Mapping[str, Any]) -> dict[str, Any]:
    """Return what an episode's header keeps of foreign metadata, given as scalars by name.

    Names that a header has members for become those. What our converter stored comes back as it was; of others
    the rest is kept under `source_metadata`.
    """
    rest: dict[str, Any] = {}
    with contextlib.suppress(orjson.JSONDecodeError):
        document = orjson.loads(told.get("metadata_json") or b"{}")
        rest = document if isinstance(document, dict) else {}
    members = {name: told[name] for name in _MEMBERS if told.get(name)}
    foreign = {name: value for name, value in told.items() if name not in {*METADATA_FEATURES, *_MEMBERS}}
    return members | rest | ({"source_metadata": foreign} if foreign else {})
