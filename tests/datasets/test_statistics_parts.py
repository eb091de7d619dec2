"""Figures of a training split that is counted in parts."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from brain_service.datasets.columns import Profile, episode_columns
from brain_service.datasets.statistics import (
    SamplePlace,
    StatisticsBuilder,
    StatisticsPart,
    sample_stride,
)

from .samples import VECTOR_SPEC, make_episode

_LENGTHS = st.lists(st.integers(1, 5) | st.just(530), min_size=1, max_size=6)


@settings(max_examples=30)
@given(_LENGTHS, st.sampled_from([2, 7, 64, 600]), st.data(), st.sampled_from(["oxe", "rlds"]))
def test_parts_in_order_give_the_figures_of_the_whole(
    lengths: list[int], sample_steps: int, data: st.DataObject, profile: Profile
) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(lengths)), max_size=3)))
    episodes = [make_episode(f"e{n}", steps, final=True) for n, steps in enumerate(lengths)]
    columns = [episode_columns(episode, profile) for episode in episodes]
    stored = [len(its["control_role"]) for its in columns]
    whole = StatisticsBuilder(VECTOR_SPEC, profile, sample_steps)
    for its in columns:
        whole.add(its)
    stride = sample_stride(stored, sample_steps)
    parts = []
    for first, stop in zip([0, *cuts], [*cuts, len(lengths)], strict=True):
        if first == stop:
            continue
        before = sum(stored[:first])
        place = SamplePlace(stride, before, before - first * (profile == "rlds"))
        builder = StatisticsBuilder(VECTOR_SPEC, profile, place=place)
        for its in columns[first:stop]:
            builder.add(its)
        parts.append(builder.part())
    joined = StatisticsPart.joined(parts)
    expected, found = whole.result(), joined.statistics()
    assert joined.control_period_s == whole.control_period_s
    assert (found.num_transitions, found.num_trajectories) == (expected.num_transitions, expected.num_trajectories)
    for ours, theirs in [
        (found.observation["state"], expected.observation["state"]),
        (found.action["command"], expected.action["command"]),
        (found.reward, expected.reward),
    ]:
        # What is sampled is the same, to the step.
        assert (ours.q01, ours.q99, ours.min, ours.max) == (theirs.q01, theirs.q99, theirs.min, theirs.max)
        np.testing.assert_allclose(ours.mean, theirs.mean, rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(ours.std, theirs.std, rtol=1e-12, atol=1e-12)


def test_joining_changes_no_part() -> None:
    builders = [StatisticsBuilder(VECTOR_SPEC, "oxe") for _ in range(2)]
    for n, builder in enumerate(builders):
        builder.add(episode_columns(make_episode(f"e{n}", 9), "oxe"))
    parts = [builder.part() for builder in builders]
    once = StatisticsPart.joined(parts).statistics()
    assert StatisticsPart.joined(parts).statistics() == once
