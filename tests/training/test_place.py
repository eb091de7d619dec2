"""Places that are written to: the same laws on disk and on a bucket (simulated: fake-gcs-server)."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from gcsfs.retry import HttpError, validate_response

from brain_service.datasets.storage import reaching_gcs
from brain_service.errors import CorruptDataError, ForbiddenError, InvalidError, NotFoundError, UnavailableError
from brain_service.training.checkpoint_store import open_store
from brain_service.training.place import Place, open_place
from tests.fakes.gcs import FakeGcs, fake_gcs


@pytest.fixture(scope="module")
def server() -> Iterator[FakeGcs]:
    with fake_gcs() as running:
        running.make_bucket("robots")
        yield running


@pytest.fixture(params=["disk", "bucket"])
def place(request: pytest.FixtureRequest, tmp_path: Path, server: FakeGcs) -> Place:
    return open_place(tmp_path / "run" if request.param == "disk" else f"gs://robots/{tmp_path.name}")


def test_what_is_written_is_read_and_replaced_whole(place: Place) -> None:
    assert place.read("a/b.json") is None
    for data in (b"one", b"", b"three"):
        place.write("a/b.json", data)
        assert place.read("a/b.json") == data
    assert place.child("a").read("b.json") == b"three"


def test_a_stamp_changes_with_the_bytes_alone(place: Place) -> None:
    assert place.stamps() == {}
    place.write("a", b"1")
    place.write("b/c", b"2")
    before = place.stamps()
    assert list(before) == ["a", "b/c"]
    place.write("a", b"1")
    assert place.stamps() == before
    place.write("b/c", b"3")
    assert place.stamps()["a"] == before["a"]
    assert place.stamps()["b/c"] != before["b/c"]


def test_a_folder_goes_with_all_that_is_in_it_and_nothing_else(place: Place) -> None:
    for name in ("6/x", "6/y/z", "60/x", "16/x"):
        place.write(name, b"data")
    place.delete("6")
    place.delete("7")
    assert list(place.stamps()) == ["16/x", "60/x"]


def test_a_place_that_is_none_is_refused() -> None:
    for place in ("s3://bucket/x", "gs://"):
        with pytest.raises(InvalidError):
            open_place(place)


def test_a_missing_bucket_is_said_with_what_to_do(server: FakeGcs) -> None:
    with pytest.raises(NotFoundError, match="no bucket nowhere; make it"):
        open_place("gs://nowhere/run").write("status.json", b"")


@pytest.mark.parametrize(
    ("code", "kind"),
    [(401, ForbiddenError), (403, ForbiddenError), (429, UnavailableError), (503, UnavailableError)],
)
def test_what_the_service_refuses_is_told_from_what_it_cannot_do_now(code: int, kind: type[Exception]) -> None:
    answer = b'{"error": {"code": %d, "message": "x does not have storage.objects.list access"}}' % code
    with pytest.raises(kind, match="gs://b/o"), reaching_gcs("gs://b/o"):
        validate_response(code, answer, "b/o")
    assert issubclass(HttpError, Exception)


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
