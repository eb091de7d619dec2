"""Episode files without header and checksums: the seed's `.jsonl` and `.json`, and our own `.json` documents.

The seed's logger writes `.jsonl` as a step object a line (`observation, action, reward, is_terminal,
step_metadata{timestamp}, episode_id`) and `.json` as `{"metadata": {...}, "steps": [...]}`. Read liberally:
`obs` and `done` are understood, a bare array stands for `{"state": ...}` or `{"command": ...}`, a list of
steps for an episode, and one `.jsonl` may hold several episodes one after another.
"""

import contextlib
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from brain_service.episodes.document import require_whole
from brain_service.episodes.episode import Episode
from brain_service.episodes.header import EpisodeHeader, parse_role
from brain_service.episodes.images import ImageStore
from brain_service.episodes.packing import StepPacker
from brain_service.episodes.schema import StepIn, check_step, seconds_to_ns
from brain_service.episodes.text_lines import line_batches, read_blocks
from brain_service.errors import BrainError, CorruptDataError, InvalidError
from brain_service.spec import EpisodeSpec, Leaf, check_values
from brain_service.trees import flatten

__all__ = ["located", "read_seed"]


@dataclass(frozen=True, slots=True)
class _Raw:
    """A step object and where it stands: the line of a `.jsonl` file, or its place in a `.json` document."""

    where: str
    step: Mapping[str, Any]


@contextlib.contextmanager
def located(path: Path, where: int | str) -> Iterator[None]:
    """Put the file and the place in it before the message of an error that leaves the block.

    Raises:
        BrainError: the block's own error, of the same class.
    """
    try:
        yield
    except BrainError as error:
        message = f"{path}:{where}: {error.detail}"
        raise type(error)(message, field=error.field, **error.members) from error


def read_seed(path: Path) -> Iterator[Episode]:
    """Yield the episodes of a file, in its order.

    Raises:
        CorruptDataError: it is no JSON, or a line of it is not (a last line cut short is left out instead), or a
            document's checksum does not hold.
        InvalidError: no steps, or a step that is no step or does not match the episode's first.
        OSError: it cannot be read.
    """
    if path.suffix == ".jsonl":
        yield from _read_documents(path, _lines(path))
        return
    data = path.read_bytes()
    with located(path, 1):
        require_whole(data)
    yield from _read_documents(path, [("1", _parse(path, data, 1))])


def _read_documents(path: Path, documents: Iterable[tuple[str, Any]]) -> Iterator[Episode]:
    found = False
    for metadata, raws in _episodes(path, documents):
        found = True
        yield _episode(path, metadata, raws)
    if not found:
        raise InvalidError(f"{path}: no steps in it; expected step objects or {{'metadata', 'steps'}}")


def _lines(path: Path) -> Iterator[tuple[str, Any]]:
    """Yield the number and the document of each line that is not empty."""
    number = 0
    with path.open("rb") as file:
        for lines, whole in line_batches(read_blocks(file), path):
            for line in lines:
                number += 1
                if not line.strip():
                    continue
                try:
                    yield str(number), _parse(path, line, number)
                except CorruptDataError:
                    if whole:
                        raise


def _parse(path: Path, data: bytes, line: int) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise CorruptDataError(f"{path}:{line}: no JSON: {error}") from error


def _episodes(
    path: Path, documents: Iterable[tuple[str, Any]]
) -> Iterator[tuple[Mapping[str, Any], Iterator[_Raw]]]:
    """Group what the file holds into (the document around the steps, the steps); take them before the next."""

    def episode_id(item: tuple[str, Any]) -> Any:
        return item[1].get("episode_id") if isinstance(item[1], Mapping) and "steps" not in item[1] else item[0]

    for _, group in itertools.groupby(documents, key=episode_id):
        where, first = next(group)
        if isinstance(first, Mapping) and isinstance(first.get("steps"), list):
            yield first, _all_raw(path, f"{where}: steps/", first["steps"])
        elif isinstance(first, list):
            yield {}, _all_raw(path, f"{where}: ", first)
        else:
            yield {}, (_raw(path, *item) for item in itertools.chain([(where, first)], group))


def _all_raw(path: Path, prefix: str, steps: list[Any]) -> Iterator[_Raw]:
    return (_raw(path, f"{prefix}{n}", step) for n, step in enumerate(steps))


def _raw(path: Path, where: str, step: Any) -> _Raw:
    if not isinstance(step, Mapping):
        raise InvalidError(f"{path}:{where}: a step is an object, not {type(step).__name__}")
    return _Raw(where, step)


def _episode(path: Path, document: Mapping[str, Any], raws: Iterator[_Raw]) -> Episode:
    first = next(raws, None)
    if first is None:
        raise InvalidError(f"{path}: the episode holds no steps; record some or delete it")
    given = document.get("metadata") or {}
    if not isinstance(given, Mapping):
        raise InvalidError(f"{path}: metadata is an object, not {type(given).__name__}", field="metadata")
    metadata = dict(given)
    episode_id = str(metadata.pop("episode_id", None) or first.step.get("episode_id") or path.stem)
    header = EpisodeHeader(episode_id, 0, control_role=_role(metadata.get("control_role")))
    features = document.get("features")
    spec = None if features is None else EpisodeSpec.from_json(features)
    images = ImageStore.beside(path)
    packer: StepPacker | None = None
    is_terminal = False
    for raw in itertools.chain([first], raws):
        with located(path, raw.where):
            step, spec = check_step(_step_in(raw.step), header, spec, 0 if packer is None else len(packer))
            packer = StepPacker(spec) if packer is None else packer
            packer.add(replace(step, observation=images.load(step.observation, spec)))
            is_terminal = step.is_terminal
    assert packer is not None  # there is a first step
    reason = document.get("end") or ("terminated" if is_terminal else "truncated")
    final = _final(path, document.get("final_observation"), packer.spec, images)
    return packer.episode(episode_id, metadata, final, str(reason))


def _step_in(step: Mapping[str, Any]) -> StepIn:
    observation, action = step.get("observation", step.get("obs")), step.get("action")
    if observation is None or action is None:
        raise InvalidError(f"a step needs an observation and an action, this has {', '.join(step) or 'nothing'}")
    metadata = step.get("step_metadata")
    metadata = metadata if isinstance(metadata, Mapping) else {}
    role = metadata.get("control_role")
    reward = step.get("reward", 0.0)
    if isinstance(reward, bool) or not isinstance(reward, float | int):
        raise InvalidError(f"reward: {reward!r} is not a number", field="reward")
    if isinstance(reward, int) and reward.bit_length() > 1023:
        raise InvalidError("reward: an integer beyond float32", field="reward")
    policy = metadata.get("policy")
    return StepIn(
        observation=dict(observation) if isinstance(observation, Mapping) else {"state": observation},
        action=dict(action) if isinstance(action, Mapping) else {"command": action},
        reward=float(reward),
        is_terminal=bool(step.get("is_terminal", step.get("done", False))),
        timestamp_ns=_timestamp_ns(metadata, step),
        control_role=None if role is None else _role(role),
        executed_action=step.get("executed_action"),
        policy=policy if isinstance(policy, dict) else None,
    )


def _timestamp_ns(*places: Mapping[str, Any]) -> int:
    """Return the time in ns: `timestamp_ns` as it is, the seed's `timestamp` in float seconds, else 0.

    Raises:
        InvalidError: it is NaN or infinite.
    """
    for place in places:
        exact, seconds = place.get("timestamp_ns"), place.get("timestamp")
        if type(exact) is int:
            return exact
        if isinstance(seconds, float | int) and not isinstance(seconds, bool):
            return seconds_to_ns(seconds, "timestamp")
    return 0


def _role(name: Any) -> str:
    """Return a known role; a robot's own role name (`observer`, `autonomous`) is not a person's: `policy`."""
    if name is None:
        return "expert"
    try:
        return parse_role(str(name), "control_role")
    except InvalidError:
        return "policy"


def _final(path: Path, tree: Any, spec: EpisodeSpec, images: ImageStore) -> dict[str, Leaf] | None:
    if tree is None:
        return None
    with located(path, "final_observation"):
        flat = flatten(tree, "final_observation")
        return images.load(check_values(flat, spec.observation, "final_observation"), spec)
