"""Coverage: a hole in the goals of synthetic reach episodes is seen, and its absence; held-out states far away."""

from pathlib import Path

import numpy as np
import pytest

from brain_service.datasets.dataset import open_dataset
from brain_service.datasets.quality import QualityReport, measure_quality, render_page
from brain_service.datasets.quality.projection import fit_projection, largest_hole
from brain_service.episodes.reader import Episode
from brain_service.spec import EpisodeSpec, Feature

from .samples import PERIOD_NS, START_NS
from .written import write_version

REACH = EpisodeSpec({"hand": Feature("float32", (2,))}, {"velocity": Feature("float32", (2,))})
HOLE_CENTER = np.array([0.55, 0.5])
HOLE_HALF_SIDE = 0.17
STEPS = 8


def reach_episodes(count: int, hole: bool, seed: int = 0) -> list[Episode]:
    """A hand goes from near the origin to a goal drawn evenly from the unit square, or from it without a hole."""
    rng = np.random.default_rng(seed)
    goals: list[np.ndarray] = []
    while len(goals) < count:
        goal = rng.random(2)
        if not hole or (np.abs(goal - HOLE_CENTER) > HOLE_HALF_SIDE).any():
            goals.append(goal)
    return [_reach(f"reach-{n:03d}", goal, rng) for n, goal in enumerate(goals)]


def _reach(name: str, goal: "np.ndarray", rng: np.random.Generator) -> Episode:
    start = rng.normal(0, 0.02, 2)
    way = np.linspace(0, 1, STEPS)[:, None]
    hand = start + (goal - start) * way + rng.normal(0, 0.004, (STEPS, 2))
    terminal = np.arange(STEPS) == STEPS - 1
    return Episode(
        episode_id=name,
        metadata={"environment_id": "reach"},
        spec=REACH,
        observation={"hand": hand.astype(np.float32)},
        action={"velocity": (np.gradient(hand, axis=0) * 20).astype(np.float32)},
        reward=-np.linalg.norm(hand - goal, axis=1).astype(np.float32),
        is_terminal=terminal,
        timestamp_ns=START_NS + PERIOD_NS * np.arange(STEPS, dtype=np.int64),
        control_role=["expert"] * STEPS,
        executed_action=None,
        final_observation=None,
        end="terminated",
    )


def _report(folder: Path, episodes: list[Episode]) -> QualityReport:
    return measure_quality(open_dataset(write_version(folder, episodes)))


def test_a_hole_in_the_goals_is_seen_and_located(tmp_path: Path) -> None:
    report = _report(tmp_path, reach_episodes(250, hole=True))
    (finding,) = [finding for finding in report.findings if finding.code == "coverage_hole"]
    hole = report.coverage.hole
    assert hole is not None
    place = np.array([hole.place["observation/hand[0]"], hole.place["observation/hand[1]"]])
    assert np.abs(place - HOLE_CENTER).max() < 0.1
    assert finding.value is not None
    assert finding.value > 20
    # The named episodes end around the hole.
    ends = {
        episode.episode_id: np.asarray(episode.observation["hand"])[-1] for episode in reach_episodes(250, True)
    }
    assert finding.episodes
    assert all(np.linalg.norm(ends[name] - HOLE_CENTER) < 0.35 for name in finding.episodes)
    assert "a hole where about" in render_page(report)


@pytest.mark.parametrize("seed", range(3))
def test_the_same_goals_without_a_hole_are_none(tmp_path: Path, seed: int) -> None:
    report = _report(tmp_path, reach_episodes(250, hole=False, seed=seed))
    assert [finding.code for finding in report.findings] == []
    assert "no hole" in render_page(report)


def test_held_out_goals_in_a_hole_of_training_are_far(tmp_path: Path) -> None:
    episodes = reach_episodes(200, hole=True)
    dataset = open_dataset(write_version(tmp_path / "a", episodes))
    held_out = {entry.episode_id for entry in dataset.entries("val")}
    rng = np.random.default_rng(3)
    moved = [
        _reach(episode.episode_id, HOLE_CENTER + 3 + rng.normal(0, 0.05, 2), rng)
        if episode.episode_id in held_out
        else episode
        for episode in episodes
    ]
    far = _report(tmp_path / "b", moved)
    near = measure_quality(dataset)
    assert near.coverage.far_share is not None and far.coverage.far_share is not None
    assert near.coverage.far_share < 0.1 < far.coverage.far_share
    (finding,) = [finding for finding in far.findings if finding.code == "val_far_from_train"]
    assert set(finding.episodes) <= held_out


def test_the_outside_of_a_cloud_is_no_hole() -> None:
    rng = np.random.default_rng(0)
    angles = rng.uniform(0, 0.9 * np.pi, 400)
    arc = np.stack([np.cos(angles), np.sin(angles)], axis=1) * rng.uniform(0.8, 1.0, 400)[:, None]
    open_side = largest_hole(arc)
    ring = largest_hole(np.concatenate([arc, arc @ [[0, 1], [-1, 0]], -arc, arc @ [[0, -1], [1, 0]]]))
    assert ring is not None
    assert ring.expected > 100
    assert open_side is None or open_side.expected < ring.expected / 4
    assert largest_hole(rng.random((10, 2))) is None


def test_a_projection_turns_back_and_needs_two_varying_dimensions() -> None:
    rng = np.random.default_rng(0)
    rows = np.concatenate([rng.normal(size=(50, 2)), np.ones((50, 1))], axis=1).astype(np.float32)
    projection = fit_projection(rows, 2)
    assert projection is not None
    assert projection.used.tolist() == [True, True, False]
    assert projection.explained.sum() == pytest.approx(1.0)
    np.testing.assert_allclose(projection.back(projection(rows)[7]), rows[7, :2], rtol=1e-5)
    assert fit_projection(rows[:, 1:], 2) is None
    assert fit_projection(rows[:2], 2) is None
