"""Episodes to convert: deterministic ones, and a Hypothesis strategy over everything a spec allows."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from hypothesis import strategies as st

from brain_service.datasets.columns import Column
from brain_service.episodes.reader import Episode
from brain_service.spec import DTYPES, EpisodeSpec, Feature, FeatureSpec
from tests.pictures import picture

VECTOR_SPEC = EpisodeSpec({"state": Feature("float32", (3,))}, {"command": Feature("float32", (2,))})
RICH_SPEC = EpisodeSpec(
    {
        "arm/gripper/open": Feature("bool"),
        "arm/joints": Feature("float32", (3,)),
        "camera": Feature("uint8", (2, 2, 3)),
        "contacts": Feature("bool", (4,)),
        "counts": Feature("int64", (2,)),
        "depth": Feature("float32"),
        "grid": Feature("float32", (2, 3)),
        "note": Feature("text"),
    },
    {"arm/command": Feature("float32", (2,)), "gripper": Feature("bool"), "mode": Feature("int64")},
)

PERIOD_NS = 50_000_000
START_NS = 1_700_000_000_123_456_789


def column(feature: Feature, steps: int, rng: np.random.Generator) -> Column:
    """Random values of one feature, shape `[steps, *shape]`."""
    shape = (steps, *feature.shape)
    if feature.dtype == "text":
        return [f"schwer – {n} \N{ROBOT FACE}" for n in rng.integers(0, 9, steps)]
    if feature.dtype == "image":
        kinds = ("png", "jpeg") if feature.shape[2] < 4 else ("png",)
        return [picture(n, kinds[n % len(kinds)], *feature.shape) for n in rng.integers(0, 9, steps)]
    if feature.dtype == "bool":
        return rng.random(shape) < 0.5
    if feature.dtype == "float32":
        return rng.normal(3.0, 2.0, shape).astype(np.float32)
    low, high = (0, 256) if feature.dtype == "uint8" else (-(2**40), 2**62)
    return rng.integers(low, high, shape, dtype=feature.dtype)


def columns(spec: FeatureSpec, steps: int, rng: np.random.Generator) -> dict[str, Column]:
    """Random values of all features of one part."""
    return {path: column(feature, steps, rng) for path, feature in spec.items()}


def make_episode(
    episode_id: str = "e0",
    steps: int = 5,
    *,
    spec: EpisodeSpec = VECTOR_SPEC,
    end: str = "terminated",
    roles: list[str] | None = None,
    final: bool = False,
    metadata: dict[str, Any] | None = None,
    seed: int = 0,
) -> Episode:
    """An episode of random values; `final` gives it a final observation."""
    rng = np.random.default_rng([seed, steps, *episode_id.encode()])
    terminal = np.zeros(steps, np.bool_)
    terminal[-1:] = end == "terminated"
    after = {path: values[0] for path, values in columns(spec.observation, 1, rng).items()}
    return Episode(
        episode_id=episode_id,
        metadata={"environment_id": "bench", "language_instruction": "reach the puck"} | (metadata or {}),
        spec=spec,
        observation=columns(spec.observation, steps, rng),
        action=columns(spec.action, steps, rng),
        reward=rng.normal(size=steps).astype(np.float32),
        is_terminal=terminal,
        timestamp_ns=START_NS + PERIOD_NS * np.arange(steps, dtype=np.int64),
        control_role=roles or ["expert"] * steps,
        executed_action=None,
        final_observation=after if final else None,
        end=end,
    )


def assert_equal_columns(found: Column, expected: Column) -> None:
    """Bit-equal, dtype and shape included."""
    if isinstance(expected, list) or isinstance(found, list):
        assert list(found) == list(expected)
    else:
        assert found.dtype == expected.dtype
        assert found.shape == expected.shape
        assert found.tobytes() == expected.tobytes()


@dataclass(frozen=True)
class Recipe:
    """What an episode is made of. Built outside the strategy: run-time type checks draw random numbers."""

    episode_id: str
    steps: int
    observation: dict[str, tuple[str, list[int]]]
    action: dict[str, tuple[str, list[int]]]
    end: str
    final: bool
    seed: int

    def build(self) -> Episode:
        """Make the episode."""
        spec = EpisodeSpec(_features(self.observation), _features(self.action))
        return make_episode(self.episode_id, self.steps, spec=spec, end=self.end, final=self.final, seed=self.seed)


def _features(parts: dict[str, tuple[str, list[int]]]) -> FeatureSpec:
    fixed = {"text": [], "image": [2, 3, 3]}
    return {
        path: Feature.from_json({"dtype": dtype, "shape": fixed.get(dtype, shape)}, path)
        for path, (dtype, shape) in sorted(parts.items())
    }


_names = st.text("abcxyz", min_size=1, max_size=4)
# Upper-case leaves and lower-case folders: a name is never both.
_paths = st.builds(lambda folder, leaf: "/".join([*folder, leaf.upper()]), st.lists(_names, max_size=2), _names)
_shapes = st.lists(st.integers(1, 3), max_size=2)
_observations = st.dictionaries(_paths, st.tuples(st.sampled_from(DTYPES), _shapes), min_size=1, max_size=4)
_actions = st.dictionaries(
    _paths,
    st.tuples(st.sampled_from([name for name in DTYPES if name != "image"]), _shapes),
    min_size=1,
    max_size=4,
)

recipes = st.builds(
    Recipe,
    episode_id=st.text("ab0_", min_size=1, max_size=8),
    steps=st.integers(1, 6),
    observation=_observations,
    action=_actions,
    end=st.sampled_from(["terminated", "truncated"]),
    final=st.booleans(),
    seed=st.integers(0, 2**16),
)
"""Any valid episode: any spec, 1 to 6 steps, either ending, with or without a final observation."""
