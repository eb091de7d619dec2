"""The page as a browser and a person without pictures meet it."""

import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import pytest

from brain_service.datasets.dataset import open_dataset
from brain_service.datasets.quality import QualityReport, measure_quality, render_page
from brain_service.spec import EpisodeSpec, Feature

from .quality_cases import SOUND, WRONG, Case, build
from .samples import make_episode
from .written import write_version

_VOID = {"meta", "link", "br", "img", "input", "hr"}


class Reader(HTMLParser):
    """Collects tags with their attributes and checks that elements close in order."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self._open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in _VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def finish(self) -> None:
        self.close()
        assert self._open == []


def _read(page: str) -> Reader:
    reader = Reader()
    reader.feed(page)
    reader.finish()
    return reader


@pytest.fixture
def report(tmp_path: Path) -> QualityReport:
    return measure_quality(open_dataset(build(tmp_path, SOUND["images"])))


def test_nothing_is_fetched_and_no_script_runs(report: QualityReport) -> None:
    page = render_page(report)
    for tag, attributes in _read(page).tags:
        assert tag not in ("script", "link", "iframe", "object")
        for name in ("src", "href", "xlink:href"):
            value = attributes.get(name) or ""
            assert not value or value.startswith(("#", "data:")), (tag, value)
        assert not any(name.startswith("on") for name in attributes)
    assert "@import" not in page
    assert not re.findall(r"url\((?!#|&quot;#|'#)", page)


def test_every_plot_has_words_and_every_id_stands_once(report: QualityReport) -> None:
    tags = _read(render_page(report)).tags
    plots = [attributes for tag, attributes in tags if tag == "div" and attributes.get("role") == "img"]
    assert len(plots) == 5
    assert all(len(attributes["aria-label"] or "") > 30 for attributes in plots)
    ids = Counter(attributes["id"] for _, attributes in tags if "id" in attributes)
    assert [name for name, count in ids.items() if count > 1] == []
    assert dict(tags)["html"]["lang"] == "en"


def test_plots_follow_dark_and_light(report: QualityReport) -> None:
    page = render_page(report)
    assert "prefers-color-scheme:dark" in page
    assert "var(--data)" in page[page.index("</style>") :]
    assert "#01020" not in page


def test_names_from_outside_are_text(tmp_path: Path) -> None:
    spec = EpisodeSpec({"<b>&": Feature("float32", (2,))}, {"a'\"": Feature("float32", (2,))})
    episodes = [make_episode(f"<script>{n}", 5, spec=spec) for n in range(3)]
    episodes[1].timestamp_ns[3:] += 10**10
    for episode in episodes:
        episode.metadata["language_instruction"] = "<img src=x>"
    page = render_page(measure_quality(open_dataset(write_version(tmp_path, episodes))))
    assert "&lt;script&gt;1" in page
    tags = {tag for tag, _ in _read(page).tags}
    assert not tags & {"script", "b", "img"}


def test_long_lists_end_and_say_so(tmp_path: Path) -> None:
    spec = EpisodeSpec({"state": Feature("float32", (150,))}, {"command": Feature("float32", (120,))})
    episodes = [make_episode(f"e{n:03d}", 12, spec=spec) for n in range(60)]
    for episode in episodes[10:55]:
        episode.timestamp_ns[6:] += 10**9
    for number, episode in enumerate(episodes):
        episode.metadata["language_instruction"] = f"task {number}"
    report = measure_quality(open_dataset(write_version(tmp_path, episodes)))
    page = render_page(report)
    assert "and 25 more in report.json" in page
    assert "and 54 more dimensions in report.json" in page
    assert "40 more instructions" in page
    (gap,) = [finding for finding in report.findings if finding.code == "time_gap"]
    assert len(gap.episodes) == 45
    assert len(page) < 500_000


@pytest.mark.parametrize("case", WRONG[::6], ids=lambda case: case.code)
def test_a_finding_is_on_the_page_with_what_to_do(tmp_path: Path, case: Case) -> None:
    report = measure_quality(open_dataset(build(tmp_path, case)))
    page = render_page(report)
    _read(page)
    for finding in report.findings:
        assert f"<code>{finding.code}</code>" in page
        assert all(f"<code>{name}</code>" in page for name in finding.episodes)


def test_shares_are_of_all_episodes_and_one_gap_is_seen(tmp_path: Path) -> None:
    episodes = [make_episode(f"e{n:02d}", 40, seed=n) for n in range(12)]
    for episode in episodes[:9]:
        episode.metadata["language_instruction"] = ""
    episodes[3].timestamp_ns[20:] += 10**9
    page = render_page(measure_quality(open_dataset(write_version(tmp_path, episodes))))
    _read(page)
    shares = dict(re.findall(r'<th scope="row">([^<]*)</th><td>\d+</td><td>(\d+%)</td>', page))
    assert shares["reach the puck"] == "25%"
    assert shares["(none)"] == "75%"
    # A scale on which one interval among hundreds has a height.
    (plot,) = re.findall(r'aria-label="Histogram of the intervals.*?</figure>', page, re.DOTALL)
    assert "mathdefault" in plot
    assert "1 episode to look at<" in page
