"""Datasets with one thing wrong each, by the code of the finding that should name it."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from brain_service.datasets.example import decode_example, encode_example
from brain_service.datasets.manifest import LeftOut
from brain_service.datasets.split import assign_splits
from brain_service.datasets.tfrecord import frame, read_records
from brain_service.episodes.reader import Episode
from brain_service.spec import EpisodeSpec, Feature

from .samples import PERIOD_NS, VECTOR_SPEC, make_episode
from .written import write_version

EPISODES = 12
STEPS = 40
VAL_FRACTION = 0.25
TWO_SENSORS = EpisodeSpec(
    {"force": Feature("float32", (2,)), "state": Feature("float32", (3,))}, VECTOR_SPEC.action
)
CAMERA = EpisodeSpec({"camera": Feature("image", (2, 3, 3)), **VECTOR_SPEC.observation}, VECTOR_SPEC.action)

Change = Callable[[list[Episode]], None]
Patch = Callable[[Path], None]


@dataclass(frozen=True)
class Case:
    """What is done to sound episodes, or to the finished dataset, and what the report should say of it."""

    code: str
    severity: str
    episodes: tuple[str, ...] = ()
    feature: str | None = None
    change: Change = lambda episodes: None
    patch: Patch = lambda folder: None
    spec: EpisodeSpec = VECTOR_SPEC
    val_fraction: float = VAL_FRACTION
    limits: dict[str, str] = field(default_factory=dict)


def split_of() -> dict[str, str]:
    """Return the split that each of the episodes falls into."""
    names = [f"e{n:02d}" for n in range(EPISODES)]
    return dict(zip(names, assign_splits(names, VAL_FRACTION), strict=True))


TRAIN = [int(name[1:]) for name, split in split_of().items() if split == "train"]
VAL = [int(name[1:]) for name, split in split_of().items() if split == "val"]
ONE = TRAIN[1]
ONE_NAME = f"e{ONE:02d}"


def build(folder: Path, case: Case) -> Path:
    """Write sound episodes with one thing wrong; return the version's folder."""
    episodes = sound_episodes(case.spec)
    case.change(episodes)
    quarantined = [LeftOut("broken.jsonl", "its header is cut short")] if case.code == "quarantined" else []
    made = write_version(folder, episodes, val_fraction=case.val_fraction, quarantined=quarantined)
    case.patch(made)
    return made


def sound_episodes(spec: EpisodeSpec = VECTOR_SPEC) -> list[Episode]:
    """Episodes that nothing is wrong with."""
    return [make_episode(f"e{n:02d}", STEPS, spec=spec, seed=n) for n in range(EPISODES)]


def _column(episode: Episode, part: str, path: str) -> np.ndarray[Any, np.dtype[Any]]:
    column = getattr(episode, part)[path]
    assert isinstance(column, np.ndarray)
    return column


def _everywhere(part: str, path: str, dimension: int, to: Callable[[Any], Any]) -> Change:
    def change(episodes: list[Episode]) -> None:
        for episode in episodes:
            column = _column(episode, part, path)
            column[:, dimension] = to(column[:, dimension])

    return change


def _times(to: Callable[[Any], Any]) -> Change:
    def change(episodes: list[Episode]) -> None:
        episodes[ONE].timestamp_ns[:] = to(episodes[ONE].timestamp_ns.copy())

    return change


def _shift(times: Any, step: int, by_periods: float) -> Any:
    times[step:] += int(by_periods * PERIOD_NS)
    return times


def _stretch(times: Any, factor: float) -> Any:
    return times[0] + ((times - times[0]) * factor).astype(np.int64)


def _uneven(times: Any, by_periods: float) -> Any:
    times[1::2] += int(by_periods * PERIOD_NS)
    return times


def _freeze(path: str, steps: int) -> Change:
    def change(episodes: list[Episode]) -> None:
        column = episodes[ONE].observation[path]
        for step in range(11, 10 + steps):
            column[step] = column[10]  # type: ignore[assignment]

    return change


def _copy(source: int, target: int) -> Change:
    def change(episodes: list[Episode]) -> None:
        copy, times = episodes[target].episode_id, episodes[target].timestamp_ns + 7
        episodes[target] = replace(episodes[source], episode_id=copy, timestamp_ns=times)

    return change


def _length(steps: int) -> Change:
    def change(episodes: list[Episode]) -> None:
        episodes[ONE] = make_episode(ONE_NAME, steps)

    return change


def _jump(size: float) -> Change:
    def change(episodes: list[Episode]) -> None:
        _column(episodes[ONE], "action", "command")[20, 1] += size

    return change


def _reward(value: float) -> Change:
    def change(episodes: list[Episode]) -> None:
        for episode in episodes:
            episode.reward[:] = value

    return change


def _roles(role: str, episodes_with: int = EPISODES) -> Change:
    def change(episodes: list[Episode]) -> None:
        for i, episode in enumerate(episodes[:episodes_with]):
            episodes[i] = replace(episode, control_role=[role] * len(episode))

    return change


def _silent(episodes: list[Episode]) -> None:
    episodes[ONE] = replace(episodes[ONE], metadata={"environment_id": "bench", "language_instruction": ""})


def _all_silent(episodes: list[Episode]) -> None:
    for i, episode in enumerate(episodes):
        episodes[i] = replace(episode, metadata={"environment_id": "bench", "language_instruction": ""})


def _set(feature: str, value: float) -> Patch:
    """Put a value into the stored record of one episode: capture would refuse it."""

    def patch(folder: Path) -> None:
        for shard in folder.glob("*.tfrecord-*"):
            records = []
            for payload in read_records(shard):
                values = decode_example(payload, "test")
                if values["episode_metadata/episode_id"] == [ONE_NAME.encode()]:
                    column = np.array(values[f"steps/{feature}"], np.float32)
                    column[4] = value
                    values[f"steps/{feature}"] = column
                records.append(frame(encode_example(values)))
            shard.write_bytes(b"".join(records))

    return patch


def _recovered(count: int) -> Change:
    def change(episodes: list[Episode]) -> None:
        for number in range(count):
            episodes[number] = replace(episodes[number], end="recovered")

    return change


def _far(episodes: list[Episode]) -> None:
    for number in VAL:
        _column(episodes[number], "observation", "state")[:] += 40.0


_STATE, _COMMAND = ("observation", "state"), ("action", "command")
_LEAK = tuple(sorted((ONE_NAME, f"e{VAL[0]:02d}")))
_TWINS = tuple(sorted((ONE_NAME, f"e{TRAIN[3]:02d}")))

WRONG = [
    Case("not_finite", "fail", (ONE_NAME,), "observation/state[1]", patch=_set("observation/state", np.nan)),
    Case("not_finite", "fail", (ONE_NAME,), "action/command[0]", patch=_set("action", np.inf)),
    Case("not_finite", "fail", (ONE_NAME,), "reward", patch=_set("reward", -np.inf)),
    Case("constant_dimension", "info", (), "observation/state[1]", _everywhere(*_STATE, 1, lambda x: x * 0 + 0.5)),
    Case("constant_dimension", "warn", (), "action/command[0]", _everywhere(*_COMMAND, 0, lambda x: x * 0)),
    Case(
        "saturated_dimension", "warn", ("*",), "action/command[1]", _everywhere(*_COMMAND, 1, lambda x: x.clip(2))
    ),
    Case(
        "saturated_dimension", "info", ("*",), "observation/state[2]", _everywhere(*_STATE, 2, lambda x: x.clip(2))
    ),
    Case("time_gap", "warn", (ONE_NAME,), None, _times(lambda t: _shift(t, 20, 3.5))),
    Case("time_reversed", "fail", (ONE_NAME,), None, _times(lambda t: _shift(t, 20, -1.5))),
    Case("time_repeated", "warn", (ONE_NAME,), None, _times(lambda t: _shift(t, 20, -1))),
    Case("period_mismatch", "warn", (ONE_NAME,), None, _times(lambda t: _stretch(t, 1.5))),
    Case("time_jitter", "warn", (ONE_NAME,), None, _times(lambda t: _uneven(t, 0.3))),
    Case("duplicate_episode", "warn", _TWINS, None, _copy(ONE, TRAIN[3])),
    Case("validation_leak", "fail", _LEAK, None, _copy(ONE, VAL[0])),
    Case("frozen_observation", "warn", (ONE_NAME,), None, _freeze("state", 15)),
    Case("frozen_feature", "warn", (ONE_NAME,), "observation/force", _freeze("force", 15), spec=TWO_SENSORS),
    Case("frozen_camera", "warn", (ONE_NAME,), "observation/camera", _freeze("camera", 15), spec=CAMERA),
    Case("action_jump", "warn", (ONE_NAME,), "action/command[1]", _jump(60.0)),
    Case(
        "action_rate",
        "warn",
        (ONE_NAME,),
        "action/command[1]",
        _jump(25.0),
        limits={"max_action_rate": "400", "max_jump_z": "1000"},
    ),
    Case("short_episode", "warn", (ONE_NAME,), None, _length(3)),
    Case("long_episode", "warn", (ONE_NAME,), None, _length(401)),
    Case("constant_reward", "info", (), "reward", _reward(-1.0)),
    Case("many_recovered", "warn", ("*",), None, change=_recovered(4)),
    Case("nothing_to_imitate", "fail", (), None, _roles("policy")),
    Case("missing_instruction", "warn", (ONE_NAME,), None, _silent),
    Case("no_validation", "warn", (), None, val_fraction=0.0),
    Case("quarantined", "warn", ("broken.jsonl",)),
    Case("val_far_from_train", "warn", tuple(f"e{n:02d}" for n in VAL), None, _far),
]
"""Each gives its finding and no other."""

SOUND = {
    "nothing": Case("", ""),
    "two sensors": Case("", "", spec=TWO_SENSORS),
    "images": Case("", "", spec=CAMERA),
    "a short pause": Case("", "", change=_times(lambda t: _shift(t, 20, 1.5))),
    "a slightly other rate": Case("", "", change=_times(lambda t: _stretch(t, 1.15))),
    "little jitter": Case("", "", change=_times(lambda t: _uneven(t, 0.1))),
    "a short rest": Case("", "", change=_freeze("state", 9)),
    "a short rest of one sensor": Case("", "", change=_freeze("force", 9), spec=TWO_SENSORS),
    "a short rest of the camera": Case("", "", change=_freeze("camera", 5), spec=CAMERA),
    "a usual change": Case("", "", change=_jump(3.0)),
    "slow enough": Case("", "", limits={"max_action_rate": "1000"}),
    "a flag": Case("", "", change=_everywhere(*_COMMAND, 0, lambda x: np.float32(x > 3))),
    "a somewhat short one": Case("", "", change=_length(10)),
    "a long one": Case("", "", change=_length(200)),
    "one crash": Case("", "", change=_recovered(1)),
    "some policy": Case("", "", change=_roles("policy", 4)),
    "never an instruction": Case("", "", change=_all_silent),
    "somewhat off": Case("", "", change=lambda episodes: None, limits={"max_far_share": "0.2"}),
}
"""What comes near and is all right."""
