"""Columns of an episode: one array (or list of texts or images) a feature, with time first, under RLDS names.

A stored step has `observation/<path>`, `action` (or `action/<path>` where there are several), `reward`,
`discount`, `is_first`, `is_last`, `is_terminal`, `language_instruction`, `timestamp_ns` and `control_role`.

Two profiles say what stands at the end of an episode:

- `oxe`: step i of the capture is step i here; `is_last` stands on the last one, whose action is real.
- `rlds`: the final observation becomes a step of its own and carries `is_last` and `is_terminal`; its action,
  reward and discount are zero and mean nothing. Where no final observation was recorded, the last captured step
  takes that place: its own action stays in the file but counts as invalid, as RLDS says of every `is_last` step.

`discount` belongs to the transition that its action caused: 0 where that ended the episode, else 1.
"""

from typing import Any, Literal, get_args

import numpy as np
from jaxtyping import Bool, Float32, Int64, UInt8

from brain_service.episodes.reader import Episode
from brain_service.errors import InvalidError
from brain_service.spec import EpisodeSpec, Feature, FeatureSpec

__all__ = ["PROFILES", "Column", "Columns", "Profile", "episode_columns", "step_features", "valid_transitions"]

Profile = Literal["oxe", "rlds"]
PROFILES: tuple[str, ...] = get_args(Profile)

# Not "T ...": a function that appends a step has columns of two lengths, and the name would tie them.
Column = (
    Float32[np.ndarray, "_ ..."]
    | Int64[np.ndarray, "_ ..."]
    | Bool[np.ndarray, "_ ..."]
    | UInt8[np.ndarray, "_ ..."]
    | list[str]
    | list[bytes]
)
"""One feature over an episode's T steps: an array `[T, *shape]`, T texts, or T images as PNG or JPEG files."""

Columns = dict[str, Column]
"""An episode's columns by stored name; all have the same T."""

_FIXED: dict[str, Feature] = {
    "reward": Feature("float32"),
    "discount": Feature("float32"),
    "is_first": Feature("bool"),
    "is_last": Feature("bool"),
    "is_terminal": Feature("bool"),
    "language_instruction": Feature("text"),
    "timestamp_ns": Feature("int64"),
    "control_role": Feature("text"),
}


def step_features(spec: EpisodeSpec) -> dict[str, Feature]:
    """Return the features of a stored step by name, in sorted order.

    A single action feature is stored as `action` itself, a scalar one with shape `[1]`: what readers of Open
    X-Embodiment datasets expect.

    Raises:
        InvalidError: a feature's path runs through another feature, which no nested map can hold.
    """
    found = {f"observation/{path}": feature for path, feature in spec.observation.items()}
    for path, feature in spec.action.items():
        found[action_name(spec, path)] = _as_vector(feature) if len(spec.action) == 1 else feature
    for path in found:
        folders = path.split("/")[:-1]
        for depth in range(1, len(folders) + 1):
            if "/".join(folders[:depth]) in found:
                inside = "/".join(folders[:depth])
                raise InvalidError(
                    f"{inside!r} is a feature and also the folder of {path!r}; rename one", field=path
                )
    return dict(sorted((found | _FIXED).items()))


def action_name(spec: EpisodeSpec, path: str) -> str:
    """Return the stored name of the action feature at `path`."""
    return "action" if len(spec.action) == 1 else f"action/{path}"


def _as_vector(feature: Feature) -> Feature:
    scalar = feature.shape == () and feature.is_numeric
    return Feature(feature.dtype, (1,)) if scalar else feature


def episode_columns(episode: Episode, profile: Profile) -> Columns:
    """Return an episode's columns in stored form: T steps, or T + 1 in `rlds` with a final observation."""
    spec = episode.spec
    columns: Columns = {f"observation/{path}": episode.observation[path] for path in spec.observation}
    for path, feature in spec.action.items():
        column = episode.action[path]
        if len(spec.action) == 1 and not isinstance(column, list):
            column = column.reshape(len(episode), *_as_vector(feature).shape)
        columns[action_name(spec, path)] = column
    terminal = np.asarray(episode.is_terminal, np.bool_)
    columns |= {
        "reward": np.asarray(episode.reward, np.float32),
        "discount": (~terminal).astype(np.float32),
        "is_terminal": terminal,
        "timestamp_ns": np.asarray(episode.timestamp_ns, np.int64),
        "control_role": list(episode.control_role),
    }
    if profile == "rlds" and episode.final_observation is not None:
        columns = _with_final_step(columns, episode.final_observation, spec.observation)
    length = len(columns["control_role"])
    steps = np.arange(length)
    instruction = str(episode.metadata.get("language_instruction") or "")
    columns |= {
        "is_first": steps == 0,
        "is_last": steps == length - 1,
        "language_instruction": [instruction] * length,
    }
    return dict(sorted(columns.items()))


def _with_final_step(columns: Columns, final: dict[str, Any], observation: FeatureSpec) -> Columns:
    terminal = columns["is_terminal"]
    assert isinstance(terminal, np.ndarray)  # built above, never text
    extended: Columns = {}
    for name, column in columns.items():
        observed = name.startswith("observation/")
        path = name.removeprefix("observation/")
        if isinstance(column, list):
            padding = column[-1] if name == "control_role" else ""
            extended[name] = [*column, final[path] if observed else padding]
        elif observed:
            extended[name] = np.concatenate([column, np.asarray(final[path], observation[path].dtype)[None]])
        else:
            extended[name] = np.concatenate([column, np.zeros_like(column[:1])])
    times = columns["timestamp_ns"]
    assert isinstance(times, np.ndarray)
    extended["timestamp_ns"] = np.append(times, times[-1] + _median_step_ns(times))
    extended["is_terminal"] = np.append(np.zeros_like(terminal), terminal[-1])
    return extended


def _median_step_ns(times: Int64[np.ndarray, " T"]) -> int:
    # The capture gives the final observation no time of its own; one usual period later keeps time increasing.
    return int(np.median(np.diff(times))) if len(times) > 1 else 0


def valid_transitions(is_last: Bool[np.ndarray, " T"], profile: Profile) -> Bool[np.ndarray, " T"]:
    """Return which steps have an action, reward and discount that mean something, shape `[T]`."""
    return ~is_last if profile == "rlds" else np.ones_like(is_last)
