"""The figures, against NumPy over everything at once."""

from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_allclose

from brain_service.datasets.columns import Column, Profile, episode_columns
from brain_service.datasets.statistics import StatisticsBuilder, read_statistics, write_statistics
from brain_service.errors import CorruptDataError
from brain_service.spec import EpisodeSpec, Feature

from .samples import PERIOD_NS, RICH_SPEC, VECTOR_SPEC, make_episode

LENGTHS = (1, 7, 30, 2)


def _rows(column: Column) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    return np.asarray(column).reshape(len(column), -1).astype(np.float64)


def test_figures_are_those_of_all_training_steps_together() -> None:
    builder = StatisticsBuilder(RICH_SPEC, "oxe")
    episodes = [make_episode(f"e{steps}", steps, spec=RICH_SPEC) for steps in LENGTHS]
    for episode in episodes:
        builder.add(episode_columns(episode, "oxe"))
    found = builder.result()
    assert "note" not in found.observation
    for path in ("arm/joints", "grid", "camera", "contacts", "depth"):
        rows, figures = np.concatenate([_rows(e.observation[path]) for e in episodes]), found.observation[path]
        assert_allclose(figures.mean, rows.mean(0), rtol=1e-9)
        assert_allclose(figures.std, rows.std(0), rtol=1e-9)
        assert_allclose((figures.min, figures.max), (rows.min(0), rows.max(0)))
        assert_allclose((figures.p01, figures.p99), np.quantile(rows, (0.01, 0.99), axis=0), rtol=1e-6)
        assert (figures.p01, figures.p99) == (figures.q01, figures.q99)
    assert_allclose(found.reward.mean, [np.concatenate([e.reward for e in episodes]).mean()], rtol=1e-6)
    assert (found.num_transitions, found.num_trajectories) == (sum(LENGTHS), len(LENGTHS))
    assert builder.control_period_s == pytest.approx(PERIOD_NS / 1e9)


def test_a_large_offset_loses_no_precision() -> None:
    spec = EpisodeSpec({"state": Feature("int64", (1,))}, {"command": Feature("float32", (1,))})
    builder = StatisticsBuilder(spec, "oxe")
    for seed in range(3):
        columns = episode_columns(make_episode(str(seed), 50, spec=spec), "oxe")
        state = columns["observation/state"]
        assert isinstance(state, np.ndarray)
        state[:, 0] = 10**12 + np.arange(50) % 2
        builder.add(columns)
    assert_allclose(builder.result().observation["state"].std, [0.5], rtol=1e-6)


@pytest.mark.parametrize(("profile", "final"), [("rlds", True), ("rlds", False), ("oxe", True)])
def test_invalid_actions_and_rewards_are_left_out(profile: Profile, final: bool) -> None:
    episode = make_episode(steps=6, final=final)
    builder = StatisticsBuilder(VECTOR_SPEC, profile)
    builder.add(episode_columns(episode, profile))
    found = builder.result()
    valid = 5 if (profile, final) == ("rlds", False) else 6
    action = _rows(episode.action["command"])[:valid]
    assert_allclose(found.action["command"].mean, action.mean(0), rtol=1e-9)
    assert_allclose(found.action["command"].max, action.max(0))
    assert found.num_transitions == valid


def test_beyond_the_sample_moments_stay_exact_and_quantiles_near() -> None:
    spec = EpisodeSpec({"state": Feature("float32", (1,))}, {"command": Feature("float32", (1,))})
    builder = StatisticsBuilder(spec, "oxe", sample_steps=500)
    episodes = [make_episode(str(seed), 199, spec=spec) for seed in range(40)]
    for episode in episodes:
        builder.add(episode_columns(episode, "oxe"))
    rows = np.concatenate([_rows(e.observation["state"]) for e in episodes])
    found = builder.result().observation["state"]
    assert_allclose(found.mean, rows.mean(0), rtol=1e-9)
    assert_allclose(found.max, rows.max(0))
    # 250 to 500 of 7,960 normal values with sigma 2: the quantile's own deviation is below 0.5.
    assert_allclose(found.p99, np.quantile(rows, 0.99, axis=0), atol=2.0)
    assert 200 <= builder.kept_steps <= 500


def test_one_step_has_no_control_period() -> None:
    builder = StatisticsBuilder(VECTOR_SPEC, "oxe")
    builder.add(episode_columns(make_episode(steps=1), "oxe"))
    assert builder.control_period_s == 0.0


def test_the_file_gives_the_figures_back_and_vectors_follow_the_spec(tmp_path: Path) -> None:
    builder = StatisticsBuilder(RICH_SPEC, "oxe")
    builder.add(episode_columns(make_episode(steps=9, spec=RICH_SPEC), "oxe"))
    written = builder.result()
    write_statistics(tmp_path, written)
    found = read_statistics(tmp_path)
    assert found == written
    action = [*written.action["arm/command"].mean, *written.action["gripper"].mean, *written.action["mode"].mean]
    assert_allclose(found.vector("action", "mean"), np.array(action, np.float32))
    assert found.to_octo()["proprio"]["q99"] == found.vector("observation", "q99").tolist()


@pytest.mark.parametrize("content", [None, b"{", b'{"reward": 3}'])
def test_missing_or_broken_figures_are_named(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "statistics.json").write_bytes(content)
    with pytest.raises(CorruptDataError, match=r"statistics\.json.*convert the episodes again"):
        read_statistics(tmp_path)
