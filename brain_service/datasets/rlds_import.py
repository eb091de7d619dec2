"""Any local TFDS dataset of RLDS episodes, read without TensorFlow: `features.json` says what its examples hold.

What stands on the last step is for the reader to know: in RLDS an observation whose action means nothing, in most
Open X-Embodiment datasets a real action. Where the caller does not say, zeros there tell.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from brain_service.datasets.columns import PROFILES, Profile
from brain_service.datasets.example import Values, decode_example
from brain_service.datasets.feature_map import ChosenFeatures
from brain_service.datasets.import_source import (
    DEFAULT_FPS,
    ImportNotes,
    ImportOptions,
    Rejected,
    episode_name,
    first_text,
    header_metadata,
    paced_times,
    read_roles,
)
from brain_service.datasets.layout import FEATURES_FILE, INFO_FILE
from brain_service.datasets.manifest import MANIFEST_FILE
from brain_service.datasets.tfds_features import TfdsFeatures, read_features
from brain_service.datasets.tfds_folder import Shard, find_folder, list_shards, read_json
from brain_service.datasets.tfrecord import read_record
from brain_service.episodes.episode import Column, Episode
from brain_service.errors import BrainError, CorruptDataError, InvalidError
from brain_service.image_header import read_image_header
from brain_service.spec import EpisodeSpec, Feature

__all__ = ["RldsImport"]

_USED = frozenset(
    (
        "reward",
        "discount",
        "is_first",
        "is_last",
        "is_terminal",
        "timestamp_ns",
        "control_role",
        "language_instruction",
    )
)
_INSTRUCTIONS = (
    "language_instruction",
    "observation/natural_language_instruction",
    "observation/language_instruction",
)
_LOOKED_AT = 32


@dataclass(frozen=True)
class RldsImport:
    """Opens a TFDS folder: a version, a dataset with versions, or a root with one dataset."""

    def open(self, path: Path, options: ImportOptions) -> "_RldsSource":
        """Read the description of a dataset.

        Raises:
            NotFoundError: there is no TFDS dataset.
            InvalidError: it holds no RLDS episodes, or not what was asked for.
            CorruptDataError: its description is damaged.
        """
        folder = find_folder(path)
        info = read_json(folder / INFO_FILE)
        features = read_features(read_json(folder / FEATURES_FILE), str(folder / FEATURES_FILE))
        used = frozenset(name for name in _USED if name in features.steps)
        chosen = options.feature_map("/").choose(features.steps, features.unreadable, used)
        shards = list_shards(folder, info)
        source = _RldsSource(
            folder=folder,
            name=f"{info.get('name')}/{info.get('version')}",
            total=sum(shard.length for shard in shards),
            notes=ImportNotes(left_out=chosen.left_out),
            shards=shards,
            features=features,
            chosen=chosen,
            options=options,
        )
        source.decide_profile()
        return source


@dataclass
class _RldsSource:
    folder: Path
    name: str
    total: int
    notes: ImportNotes
    shards: list[Shard]
    features: TfdsFeatures
    chosen: ChosenFeatures
    options: ImportOptions
    profile: Profile = "oxe"
    is_ours: bool = False
    taken: set[str] = field(default_factory=set)

    def decide_profile(self) -> None:
        """Settle what the last step means and note how that was found."""
        if self.options.profile is not None:
            self.profile = self.options.profile
            self.notes.facts |= {"profile": self.profile, "profile_from": "as asked"}
            return
        manifest = self.folder / MANIFEST_FILE
        if manifest.is_file() and (profile := read_json(manifest).get("profile")) in PROFILES:
            self.profile, self.is_ours = profile, True
            self.notes.facts |= {"profile": self.profile, "profile_from": f"told by its {MANIFEST_FILE}"}
            return
        ends = [
            self._last_action_is_zero(values) for _, values in zip(range(_LOOKED_AT), self._good(), strict=False)
        ]
        # Where actions are zero throughout, zeros at the end tell nothing.
        rlds = bool(ends) and all(end for end, _ in ends) and any(moves for _, moves in ends)
        self.profile = "rlds" if rlds else "oxe"
        told = (
            "zero in all of the first {} episodes: the last step is taken for a final observation"
            if rlds
            else "not always zero in the first {} episodes: the last step is taken for a real one"
        ).format(len(ends))
        self.notes.facts |= {"profile": self.profile, "profile_from": f"guessed: the last action is {told}"}

    def _last_action_is_zero(self, values: Mapping[str, Values]) -> tuple[bool, bool]:
        """Return whether the last step's action is zero, and whether any other step's is not."""
        zero, moves = True, False
        for name in self.chosen.action.values():
            flat: Any = values.get(f"steps/{name}")
            if not isinstance(flat, np.ndarray):
                continue
            size = max(1, int(np.prod(self.features.steps[name].shape)))
            zero &= not flat[-size:].any()
            moves |= bool(flat[:-size].any())
        return zero, moves

    def _good(self) -> Iterator[Mapping[str, Values]]:
        for _, found in self._records():
            if not isinstance(found, Rejected):
                yield found

    def _records(self) -> Iterator[tuple[tuple[str, int, str], Mapping[str, Values] | Rejected]]:
        """Yield split, index and place of every episode, with its example or the reason why there is none."""
        for shard in self.shards:
            read = 0
            try:
                with shard.path.open("rb") as file:
                    while (payload := read_record(file, shard.path.name)) is not None:
                        place = f"{shard.path.name}, episode {read}"
                        found: Mapping[str, Values] | Rejected
                        try:
                            found = decode_example(payload, place)
                        except CorruptDataError as error:
                            found = Rejected(place, error.detail)
                        yield (shard.split, shard.first + read, place), found
                        read += 1
                problem = f"it holds {read} episodes, {INFO_FILE} says {shard.length}; fetch it again"
            except FileNotFoundError:
                problem = "the file is missing; fetch it again"
            except OSError as error:
                problem = f"it cannot be read: {error.strerror}; check its permissions, or fetch it again"
            except CorruptDataError as error:
                problem = error.detail.rpartition("; ")[0] + "; fetch it again"
            if read < shard.length:
                # Behind a broken frame nothing tells where the next one begins.
                rest = Rejected(shard.path.name, problem, shard.length - read)
                yield (shard.split, shard.first + read, shard.path.name), rest
            elif read > shard.length:
                self.notes.warn(f"{shard.path.name}: {problem}")

    def episodes(self) -> Iterator[Episode | Rejected]:
        """Yield the episodes of all splits, checked by CRC."""
        for (split, index, place), found in self._records():
            if isinstance(found, Rejected):
                yield found
                continue
            try:
                yield self._episode(found, split, index, place)
            except BrainError as error:
                yield Rejected(place, error.detail)

    def _episode(self, values: Mapping[str, Values], split: str, index: int, place: str) -> Episode:
        told = _metadata(values, self.features.metadata)
        episode_id = episode_name(told.get("episode_id"), self.name, split, index, self.taken)
        self.taken.add(episode_id)
        stored = self._stored_steps(values, place)
        has_final = self._ends_in_observation(values)
        steps = stored - has_final
        if steps < 1:
            raise InvalidError(f"{place}: {stored} stored steps make none in profile {self.profile}")
        spec = self._spec(values)
        names = self.chosen.names()
        columns = {name: _column(values, name, self._feature(name, values), stored) for name in names}
        extra = {
            name: _column(values, name, self.features.steps[name], stored)
            for name in (*_USED, *_INSTRUCTIONS)
            if name in self.features.steps
        }
        terminal = np.asarray(extra.get("is_terminal", np.zeros(stored, np.bool_)), np.bool_).reshape(stored)
        final = None
        if has_final:
            final = {path: columns[name][-1] for path, name in self.chosen.observation.items()}
            terminal = np.append(terminal[: steps - 1], terminal[steps - 1] or terminal[-1])
        instruction = next((extra[name] for name in _INSTRUCTIONS if name in extra), None)
        text = first_text(instruction[:steps] if instruction is not None else None, episode_id, self.notes)
        return Episode(
            episode_id=episode_id,
            metadata=header_metadata(told | ({"language_instruction": text} if text else {})),
            spec=spec,
            observation={path: columns[name][:steps] for path, name in self.chosen.observation.items()},
            action={path: columns[name][:steps] for path, name in self.chosen.action.items()},
            reward=self._reward(extra.get("reward"), steps),
            is_terminal=terminal,
            timestamp_ns=self._times(extra.get("timestamp_ns"), steps),
            control_role=read_roles(extra.get("control_role"), stored)[:steps],
            executed_action=None,
            final_observation=final,
            end=None,
        )

    def _ends_in_observation(self, values: Mapping[str, Values]) -> bool:
        """Tell whether the last step only carries the final observation.

        Where ours recorded none, the last captured step stands there with its own action, and is kept.
        """
        return self.profile == "rlds" and (not self.is_ours or self._last_action_is_zero(values)[0])

    def _stored_steps(self, values: Mapping[str, Values], place: str) -> int:
        for name in ("is_first", "is_last", *self.chosen.action.values()):
            if name in self.features.steps and (flat := values.get(f"steps/{name}")) is not None:
                return len(flat) // max(1, int(np.prod(self.features.steps[name].shape)))
        raise CorruptDataError(f"{place}: neither is_first, is_last nor an action is in its example")

    def _feature(self, name: str, values: Mapping[str, Values]) -> Feature:
        feature = self.features.steps[name]
        if feature.dtype != "image" or min(feature.shape) > 0:
            return feature
        images = values.get(f"steps/{name}")
        if not isinstance(images, list) or not images:
            raise CorruptDataError(f"steps/{name} holds no images")
        return Feature("image", read_image_header(images[0], f"steps/{name}").shape)

    def _spec(self, values: Mapping[str, Values]) -> EpisodeSpec:
        return self.chosen.spec({name: self._feature(name, values) for name in self.chosen.names()})

    def _reward(self, column: Column | None, steps: int) -> np.ndarray[Any, np.dtype[np.float32]]:
        if not isinstance(column, np.ndarray):
            self.notes.warn("there is no numeric reward; it is 0 throughout")
            return np.zeros(steps, np.float32)
        return column[:steps].reshape(steps, -1)[:, 0].astype(np.float32)

    def _times(self, column: Column | None, steps: int) -> np.ndarray[Any, np.dtype[np.int64]]:
        if isinstance(column, np.ndarray) and column.dtype == np.int64 and column.ndim == 1:
            return column[:steps]
        fps = self.options.fps or DEFAULT_FPS
        if self.options.fps is None:
            self.notes.warn(f"it tells no times: {fps:g} steps a second are assumed; say otherwise with --fps")
        return paced_times(steps, fps)


def _column(values: Mapping[str, Values], name: str, feature: Feature, stored: int) -> Column:
    flat: Any = values.get(f"steps/{name}")
    size = int(np.prod(feature.shape, dtype=np.int64)) if feature.is_numeric else 1
    if flat is None or len(flat) != stored * size or isinstance(flat, list) == feature.is_numeric:
        found = "nothing" if flat is None else f"{len(flat)} of kind {type(flat).__name__}"
        raise CorruptDataError(
            f"steps/{name} should hold {stored} x {size} values of {feature.dtype}, found {found}"
        )
    if feature.dtype == "image":
        return list(flat)
    if feature.dtype == "text":
        try:
            return [text.decode() for text in flat]
        except UnicodeDecodeError as error:
            raise CorruptDataError(f"steps/{name} is no UTF-8 text: {error}") from error
    return np.asarray(flat).reshape(stored, *feature.shape).astype(feature.dtype)


def _metadata(values: Mapping[str, Values], features: Mapping[str, Feature]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, feature in features.items():
        flat = values.get(f"episode_metadata/{name}")
        if flat is None or not len(flat) or feature.dtype == "image":
            continue
        plain = [value.decode(errors="replace") for value in flat] if isinstance(flat, list) else flat.tolist()
        plain = [bool(value) for value in plain] if feature.dtype == "bool" else plain
        found[name] = plain if feature.shape else plain[0]
    return found
