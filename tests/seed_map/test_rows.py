"""Every row of docs/seed-map.md runs: the seed's snippets and commands, one after the other on one recording.

Simulated: fake-gcs-server is the bucket, stand-ins are Hailo's compiler and device. Nothing else is.
"""

from collections.abc import Iterator

import pytest

from tests.fakes.gcs_faults import faulty_gcs
from tests.seed_map.chain import BUCKET, Chain
from tests.seed_map.runs import RUNS
from tests.seed_map.table import MAP, Row, read_rows

ROWS = [
    pytest.param(row, id=str(row), marks=pytest.mark.slow if row.runner in RUNS and RUNS[row.runner].slow else ())
    for row in read_rows(MAP.read_text())[1]
]


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chain]:
    with faulty_gcs() as bucket:
        bucket.server.make_bucket(BUCKET)
        yield Chain(tmp_path_factory.mktemp("seed"), bucket)


@pytest.fixture(scope="module")
def ended() -> dict[str, bool]:
    """How each run ended so far: rows of one thing share its run, and its failure."""
    return {}


@pytest.mark.parametrize("row", ROWS)
def test_row(row: Row, chain: Chain, ended: dict[str, bool]) -> None:
    if row.runner not in ended:
        ended[row.runner] = False
        RUNS[row.runner].check(chain)
        ended[row.runner] = True
    assert ended[row.runner], f"{row.runner} failed in the first row that it runs"
