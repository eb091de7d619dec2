"""docs/seed-map.md names everything that the seed names, once, and nothing that does not exist."""

import pytest

from tests.seed_map.existing import looks_checkable, problem, takes
from tests.seed_map.runs import RUNS
from tests.seed_map.table import ITEMS, MAP, Row, codes, links, read_items, read_rows

HEADINGS, ROWS = read_rows(MAP.read_text())
SEED = read_items(ITEMS.read_text())


def test_the_headings_are_the_seeds_in_its_order() -> None:
    assert list(SEED) == HEADINGS


@pytest.mark.parametrize("heading", SEED, ids=lambda heading: heading.lstrip("# "))
def test_every_item_of_the_seed_has_exactly_one_row(heading: str) -> None:
    mapped = [item for row in ROWS if row.heading == heading for item in row.items]
    assert sorted(mapped) == sorted(SEED[heading])


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_what_a_row_names_exists(row: Row) -> None:
    named = codes(row.here) + tuple(name for name in codes(row.better) if looks_checkable(name))
    assert codes(row.here) or links(row.here), "the row says nowhere where it lives"
    assert [said for name in named if (said := problem(name)) is not None] == []
    for link in links(f"{row.here} {row.better} {row.test}"):
        assert (MAP.parent / link).is_file(), f"{link} leads nowhere"
    assert row.runner in RUNS, f"there is no test {row.runner}"


@pytest.mark.parametrize("row", [row for row in ROWS if row.arguments], ids=str)
def test_the_seeds_arguments_still_work(row: Row) -> None:
    ours = codes(row.here)[0]
    assert [argument for argument in row.arguments if not takes(ours, argument)] == []


def test_every_run_is_the_test_of_a_row() -> None:
    assert {row.runner for row in ROWS} == RUNS.keys()


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_a_cell_is_a_short_line(row: Row) -> None:
    assert 0 < len(row.better) <= 110, f"{len(row.better)} characters"
