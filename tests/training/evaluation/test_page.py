import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from brain_service.errors import UnavailableError
from brain_service.training.evaluation import ClosedLoop, EvaluationResult, Promotion, render_page, write_report

VOID = {"meta", "br", "hr", "img", "link", "input"}


class Balance(HTMLParser):
    """Fails on a tag that is closed out of turn; keeps what is worth a look."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []
        self.ids: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        self.ids += [value or "" for name, value in attrs if name == "id"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        self.ids += [value or "" for name, value in attrs if name == "id"]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def whole(result: EvaluationResult) -> EvaluationResult:
    verdict = Promotion(False, "it is worse <than> the active model", "abc")
    return replace(result, closed_loop=ClosedLoop(20, 0.9, (0.7, 0.97), 12.5, 80.0), promotion=verdict)


def test_the_page_is_whole_and_asks_for_nothing_from_outside(learned: EvaluationResult) -> None:
    page = render_page(whole(learned))
    check = Balance()
    check.feed(page)
    assert check.open == []
    assert "script" not in check.seen
    assert check.seen.count("svg") == 4
    assert len(check.ids) == len(set(check.ids))
    assert not re.search(r"(?:src|href)=\"(?!#)", page)
    assert "url(http" not in page


def test_the_page_says_what_was_found(learned: EvaluationResult) -> None:
    page = render_page(whole(learned))
    assert "Not promoted: it is worse &lt;than&gt; the active model" in page
    assert "90% of 20 episodes succeeded (95 % interval 70% to 97%)" in page
    assert "Better than the mean action" in page
    assert all(name in page for name in (*learned.action_names, *learned.observation_names))
    assert f"{learned.action.rmse[0]:.4g}" in page


def test_the_page_does_not_flatter(learned: EvaluationResult) -> None:
    page = render_page(replace(learned, relative_rmse=1.0, split="train"))
    assert "No better than a trivial baseline" in page
    assert "the figures flatter the model" in page
    assert "whether the policy works is not known" in page


def test_the_report_is_two_files(learned: EvaluationResult, tmp_path: Path) -> None:
    page = write_report(tmp_path / "new" / "report", learned)
    assert page.read_text() == render_page(learned)
    assert json.loads((page.parent / "evaluation.json").read_text()) == learned.to_json()


def test_a_folder_that_cannot_be_made_is_said(learned: EvaluationResult, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UnavailableError, match="choose another folder"):
        write_report(tmp_path / "file", learned)
