"""The steps of a run's checkpoints: the same laws on disk and on a bucket (simulated: fake-gcs-server)."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from brain_service.datasets.places import Place, open_place
from brain_service.errors import CorruptDataError
from brain_service.training.checkpoint_store import open_store
from tests.fakes.gcs import FakeGcs, fake_gcs


@pytest.fixture(scope="module")
def server() -> Iterator[FakeGcs]:
    with fake_gcs() as running:
        running.make_bucket("robots")
        yield running


@pytest.fixture(params=["disk", "bucket"])
def place(request: pytest.FixtureRequest, tmp_path: Path, server: FakeGcs) -> Place:
    return open_place(tmp_path / "run" if request.param == "disk" else f"gs://robots/{tmp_path.name}")


def sealed(place: Place, step: int) -> None:
    for name in ("params/data", "meta/metadata"):
        place.write(f"{step}/{name}", b"%d" % step)
    open_store(place.location).seal(step)


def test_a_step_counts_once_it_is_sealed_and_verifies_while_it_is_whole(place: Place) -> None:
    store = open_store(place.location)
    for step in (4, 60, 6):
        sealed(place, step)
    place.write("8/params/data", b"8")
    assert store.steps() == [4, 6, 60]
    store.verify(6)
    store.delete(6)
    assert store.steps() == [4, 60]


@pytest.mark.parametrize("damage", ["missing", "changed", "added"])
def test_a_file_that_is_not_as_it_was_sealed_is_named(damage: str, place: Place) -> None:
    store = open_store(place.location)
    sealed(place, 6)
    if damage == "missing":
        place.delete("6/params/data")
    else:
        place.write("6/params/data" if damage == "changed" else "6/params/more", b"7")
    name = "params/more" if damage == "added" else "params/data"
    with pytest.raises(CorruptDataError, match=f"6: {name} is"):
        store.verify(6)


def test_on_a_bucket_nothing_goes_that_was_only_passed_over(server: FakeGcs) -> None:
    place = open_place("gs://robots/passed-over")
    sealed(place, 6)
    place.write("8/params/data", b"8")
    store = open_store(place.location)
    before = place.stamps()
    store.prepare()
    assert store.leftovers() == {8}
    assert store.pass_over(6) is False
    assert place.stamps() == before
