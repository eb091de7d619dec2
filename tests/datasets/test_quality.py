"""Each finding, on data that has it and on data that comes near; features of every kind; bounds; determinism."""

import re
from pathlib import Path

import msgspec
import numpy as np
import pytest
from numpy.testing import assert_allclose

from brain_service.datasets import quality
from brain_service.datasets.columns import Profile
from brain_service.datasets.dataset import open_dataset
from brain_service.datasets.quality import Limits, QualityReport, measure_quality, render_page
from brain_service.errors import InvalidError, NotFoundError
from brain_service.spec import EpisodeSpec, Feature

from .quality_cases import SOUND, WRONG, Case, build
from .samples import RICH_SPEC, make_episode
from .written import write_version


def _report(folder: Path, case: Case) -> QualityReport:
    return measure_quality(open_dataset(build(folder, case)), limits=Limits().with_values(case.limits))


@pytest.mark.parametrize("case", WRONG, ids=lambda case: f"{case.code} {case.feature or ''}".strip())
def test_what_is_wrong_is_named_and_nothing_else_is(tmp_path: Path, case: Case) -> None:
    report = _report(tmp_path, case)
    assert [finding.code for finding in report.findings] == [case.code], report.findings
    (finding,) = report.findings
    assert (finding.severity, finding.feature) == (case.severity, case.feature)
    assert finding.fix
    if case.episodes == ("*",):
        assert finding.episodes
    else:
        assert tuple(sorted(finding.episodes)) == case.episodes
    # A message says where to look without the list.
    assert all(name in finding.message for name in case.episodes[:1] if name != "*")
    assert report.verdict == {"info": "pass"}.get(case.severity, case.severity)
    if finding.limit is not None and case.code not in (
        "period_mismatch",
        "no_validation",
        "nothing_to_imitate",
        "short_episode",
    ):
        assert finding.value is not None
        assert finding.value > finding.limit


@pytest.mark.parametrize("name", SOUND)
def test_what_comes_near_is_no_finding(tmp_path: Path, name: str) -> None:
    report = _report(tmp_path, SOUND[name])
    assert report.findings == []
    assert report.verdict == "pass"


def test_every_code_has_its_case() -> None:
    page = (Path(__file__).parents[2] / "docs" / "data-quality.md").read_text()
    documented = set(re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE))
    assert documented == {case.code for case in WRONG} | {"coverage_hole"}
    source = "".join(path.read_text() for path in Path(quality.__file__).parent.glob("*.py"))
    for code in re.findall(r'code="(\w+)"', source):
        assert code in documented


def test_figures_are_those_of_all_steps(tmp_path: Path) -> None:
    lengths = (5, 30, 1, 17)
    episodes = [make_episode(f"e{n}", steps) for n, steps in enumerate(lengths)]
    dataset = open_dataset(write_version(tmp_path, episodes))
    report = measure_quality(dataset)
    state = np.concatenate([np.asarray(episode.observation["state"]) for episode in episodes]).astype(np.float64)
    found = report.observation
    assert [dimension.name for dimension in found] == [f"observation/state[{i}]" for i in range(3)]
    assert_allclose([dimension.mean for dimension in found], state.mean(0), rtol=1e-6)
    assert_allclose([dimension.std for dimension in found], state.std(0), rtol=1e-6)
    assert_allclose([dimension.min for dimension in found], state.min(0))
    assert_allclose([dimension.at_max for dimension in found], (state == state.max(0)).mean(0))
    assert_allclose([dimension.median for dimension in found], np.median(state, axis=0), rtol=1e-6)
    assert all(sum(dimension.histogram.counts) == sum(lengths) for dimension in found)
    assert (report.episodes, report.steps) == (4, sum(lengths))
    assert (report.outcomes.lengths.min, report.outcomes.lengths.max) == (1, 30)
    assert report.timing.interval_count == sum(lengths) - 4
    assert sum(report.timing.intervals.counts) == sum(lengths) - 4
    command = [np.asarray(episode.action["command"]) for episode in episodes]
    largest = max(np.abs(np.diff(action[:, 0])).max(initial=0) for action in command)
    assert report.jumps.dimensions[0].largest == pytest.approx(largest)
    returns = [float(episode.reward.sum()) for episode in episodes]
    assert report.outcomes.rewards.return_max == pytest.approx(max(returns), rel=1e-6)


@pytest.mark.parametrize("final", [True, False])
def test_an_action_that_means_nothing_is_not_measured(tmp_path: Path, final: bool) -> None:
    episodes = [make_episode(f"e{n}", 12, final=final) for n in range(3)]
    report = measure_quality(open_dataset(write_version(tmp_path, episodes, profile="rlds")))
    action = np.concatenate([np.asarray(episode.action["command"])[: 12 if final else 11] for episode in episodes])
    assert_allclose([dimension.min for dimension in report.action], action.min(0))
    assert_allclose([dimension.mean for dimension in report.action], action.mean(0), rtol=1e-5)
    assert report.steps == 3 * (13 if final else 12)


WIDE = EpisodeSpec(
    {"raw": Feature("uint8", (20, 20)), "eye": Feature("image", (2, 3, 3)), **RICH_SPEC.observation},
    RICH_SPEC.action,
)
TEXT_ONLY = EpisodeSpec({"note": Feature("text")}, {"word": Feature("text")})
SCALARS = EpisodeSpec({"depth": Feature("float32")}, {"open": Feature("bool")})


@pytest.mark.parametrize("spec", [WIDE, TEXT_ONLY, SCALARS, RICH_SPEC], ids=["wide", "text", "scalars", "rich"])
@pytest.mark.parametrize(
    ("profile", "lengths"), [("oxe", [1]), ("rlds", [1]), ("rlds", [9, 4, 1]), ("oxe", [2, 8])]
)
def test_any_features_lengths_and_profile(
    tmp_path: Path, spec: EpisodeSpec, profile: Profile, lengths: list[int]
) -> None:
    episodes = [make_episode(f"e{n}", steps, spec=spec) for n, steps in enumerate(lengths)]
    report = measure_quality(open_dataset(write_version(tmp_path, episodes, profile=profile)))
    names = [dimension.name for dimension in report.observation]
    assert len(names) == len(set(names))
    if spec is WIDE:
        assert {"observation/raw[min]", "observation/raw[mean]", "observation/grid[1,2]"} <= set(names)
        assert report.outcomes.images[0].count == sum(lengths)
    assert msgspec.json.decode(report.to_json(), type=QualityReport) == report
    assert "<h1>episodes/1.0.0</h1>" in render_page(report)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("low", [np.finfo(np.float32).min, 0.0])
@pytest.mark.parametrize("high", [np.finfo(np.float32).max, np.finfo(np.float32).smallest_subnormal])
@pytest.mark.parametrize("steps", [1, 2, 20])
def test_the_ends_of_float32_are_figures_too(tmp_path: Path, low: float, high: float, steps: int) -> None:
    episodes = [make_episode(f"e{n:02d}", steps, seed=n) for n in range(12)]
    for episode in episodes:
        for column in (
            np.asarray(episode.observation["state"]),
            np.asarray(episode.action["command"]),
            episode.reward,
        ):
            column[::2], column[1::2] = low, high
    report = measure_quality(open_dataset(write_version(tmp_path, episodes, val_fraction=0.25)))
    assert b"null" not in msgspec.json.encode(report.observation + report.action)
    assert {dimension.max for dimension in report.action} == {float(max(high, low)) if steps > 1 else float(low)}
    assert not re.search(r"\b(nan|inf)\b", render_page(report))


def test_a_split_alone_and_one_that_is_not_there(tmp_path: Path) -> None:
    dataset = open_dataset(build(tmp_path, SOUND["nothing"]))
    report = measure_quality(dataset, ["val"])
    assert list(report.splits) == ["val"]
    assert report.episodes == len(dataset.entries("val"))
    with pytest.raises(NotFoundError, match="no split 'test'"):
        measure_quality(dataset, ["test"])


def test_the_same_dataset_gives_the_same_report(tmp_path: Path) -> None:
    first, second = (measure_quality(open_dataset(build(tmp_path / name, SOUND["images"]))) for name in ("a", "b"))
    assert first.to_json() == second.to_json()
    assert render_page(first) == render_page(second)


def test_progress_counts_steps(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    measure_quality(open_dataset(build(tmp_path, SOUND["nothing"])), progress=lambda *now: seen.append(now))
    assert seen[-1] == (480, 480)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


@pytest.mark.parametrize(
    ("given", "word"),
    [
        ({"max_gaps": "1"}, "max_gap_periods"),
        ({"max_jump_z": "far"}, "not a number"),
        ({"max_frozen_steps": "1.5"}, "whole number"),
        ({"max_jump_z": "-1"}, "from 0 on"),
        ({"max_jump_z": "nan"}, "finite"),
    ],
)
def test_a_wrong_limit_is_named(given: dict[str, str], word: str) -> None:
    with pytest.raises(InvalidError, match=word):
        Limits().with_values(given)
