"""Places that are written to: the same laws on disk and on a bucket (simulated: fake-gcs-server)."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from gcsfs.retry import HttpError, validate_response

from brain_service.datasets.places import LocalPlace, Place, open_place
from brain_service.datasets.storage import reaching_gcs
from brain_service.errors import CorruptDataError, ForbiddenError, InvalidError, NotFoundError, UnavailableError
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


def test_a_file_is_made_once(place: Place) -> None:
    assert place.create("claim", b"mine") is True
    assert place.create("claim", b"yours") is False
    assert place.read("claim") == b"mine"
    assert list(place.stamps()) == ["claim"]


def test_a_stream_that_is_cut_off_leaves_nothing(place: Place) -> None:
    with pytest.raises(ZeroDivisionError), place.stream("shard") as written:
        written.write(b"half")
        raise ZeroDivisionError
    assert place.read("shard") is None
    with place.stream("shard") as written:
        written.write(b"who")
        written.write(b"le")
    assert place.read("shard") == b"whole"


def test_a_file_of_any_place_is_taken(place: Place, tmp_path: Path) -> None:
    for name, source in (("here", LocalPlace(tmp_path / "here")), ("there", place.child("there"))):
        source.write("shard", name.encode())
        place.take(source.folder, "shard", f"taken-{name}")
        assert place.read(f"taken-{name}") == name.encode()
        with pytest.raises(CorruptDataError, match="is gone"):
            place.take(source.folder, "lost", name)


def test_a_removed_place_is_empty_and_its_neighbour_stays(place: Place) -> None:
    place.write("work/a/b", b"1")
    place.write("workshop", b"2")
    place.child("work").remove()
    place.child("never").remove()
    assert list(place.stamps()) == ["workshop"]


def test_a_file_in_the_way_of_a_folder_is_said(tmp_path: Path) -> None:
    (tmp_path / "run").write_bytes(b"")
    place = open_place(tmp_path / "run")
    for put in (lambda: place.write("a", b""), lambda: place.create("a", b"")):
        with pytest.raises(UnavailableError, match="run"):
            put()


def test_a_place_that_is_none_is_refused() -> None:
    for place in ("s3://bucket/x", "gs://"):
        with pytest.raises(InvalidError):
            open_place(place)


def test_a_missing_bucket_is_said_with_what_to_do(server: FakeGcs) -> None:
    place = open_place("gs://nowhere/run")
    for put in (lambda: place.write("a", b""), lambda: place.create("a", b"")):
        with pytest.raises(NotFoundError, match="no bucket nowhere; make it"):
            put()


@pytest.mark.parametrize(
    ("code", "kind"),
    [(401, ForbiddenError), (403, ForbiddenError), (429, UnavailableError), (503, UnavailableError)],
)
def test_what_the_service_refuses_is_told_from_what_it_cannot_do_now(code: int, kind: type[Exception]) -> None:
    answer = b'{"error": {"code": %d, "message": "x does not have storage.objects.list access"}}' % code
    with pytest.raises(kind, match="gs://b/o"), reaching_gcs("gs://b/o"):
        validate_response(code, answer, "b/o")
    assert issubclass(HttpError, Exception)
