"""One record: an example of the spec's features that says what the manifest says of it."""

from collections import Counter

import numpy as np

from brain_service.datasets.columns import Columns, Profile, step_features
from brain_service.datasets.example import Values, decode_example
from brain_service.datasets.manifest import EpisodeEntry
from brain_service.datasets.record import METADATA_FEATURES, episode_fields
from brain_service.datasets.statistics import StatisticsBuilder
from brain_service.errors import BrainError
from brain_service.image_header import image_kind
from brain_service.spec import EpisodeSpec

__all__ = ["RecordCheck"]


class RecordCheck:
    """Holds records against the spec; takes the training ones into the statistics that the files should show."""

    def __init__(self, spec: EpisodeSpec, profile: Profile) -> None:
        self._spec = spec
        self._profile = profile
        self._features = step_features(spec)
        self._keys = {f"steps/{name}" for name in self._features}
        self._keys |= {f"episode_metadata/{name}" for name in METADATA_FEATURES}
        self.statistics = StatisticsBuilder(spec, profile)
        self._missed = False
        self._trained = 0

    @property
    def complete(self) -> bool:
        """Whether all records could be taken, so that the statistics can be held against the data."""
        return self._trained > 0 and not self._missed

    def miss(self) -> None:
        """Say that a record could not be taken."""
        self._missed = True

    def __call__(self, payload: bytes, entry: EpisodeEntry, split: str) -> list[str]:
        """Return what does not hold in a record whose checksums do."""
        place = f"episode {entry.episode_id}"
        try:
            values = decode_example(payload, place)
            columns = episode_fields(values, self._features, entry.length, place)
        except BrainError as error:
            self.miss()
            return [str(error)]
        if split == "train":
            self.statistics.add(columns)
            self._trained += 1
        return [
            *_key_problems(set(values), self._keys),
            *_metadata_problems(values, entry),
            *_flag_problems(columns),
            *self._role_problems(columns, entry),
            *self._image_problems(columns),
        ]

    def _role_problems(self, columns: Columns, entry: EpisodeEntry) -> list[str]:
        roles = [str(role) for role in columns["control_role"]]
        # In `rlds` the final observation repeats the last role, and the manifest counts what was captured.
        counted = [Counter(roles)] + ([Counter(roles[:-1])] if self._profile == "rlds" else [])
        if Counter(entry.roles) in counted:
            return []
        return [f"its steps have the control roles {dict(counted[0])}, the manifest says {entry.roles}"]

    def _image_problems(self, columns: Columns) -> list[str]:
        found = []
        for path in self._spec.image_paths:
            files = columns[f"observation/{path}"]
            bad = [i for i, file in enumerate(files) if not isinstance(file, bytes) or not image_kind(file)]
            if bad:
                found.append(f"observation/{path} is neither PNG nor JPEG at step {bad[0]} ({len(bad)} in all)")
        return found


def _key_problems(found: set[str], expected: set[str]) -> list[str]:
    return [f"its example has {name}, which the spec has not" for name in sorted(found - expected)] + [
        f"its example lacks {name}" for name in sorted(expected - found)
    ]


def _metadata_problems(values: dict[str, Values], entry: EpisodeEntry) -> list[str]:
    found = []
    for name in ("episode_id", "end"):
        said, stored = getattr(entry, name), values.get(f"episode_metadata/{name}")
        if not isinstance(stored, list) or stored != [said.encode()]:
            found.append(f"its record says {name} {stored!r}, the manifest says {said!r}")
    return found


def _flag_problems(columns: Columns) -> list[str]:
    steps = np.arange(len(columns["control_role"]))
    last = len(steps) - 1
    found = []
    if not np.array_equal(columns["is_first"], steps == 0):
        found.append("is_first stands elsewhere than on its first step")
    if not np.array_equal(columns["is_last"], steps == last):
        found.append("is_last stands elsewhere than on its last step")
    if np.asarray(columns["is_terminal"])[:last].any():
        found.append("is_terminal stands on a step before its last")
    return found
