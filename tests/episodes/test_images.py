"""Images beside the log: stored once under their hash, durable before the step, checked wherever they are read."""

import hashlib
import os
import threading
from pathlib import Path

import pytest

from brain_service.episodes.images import (
    ImageStore,
    image_reference,
    read_image,
    remove_images,
    split_images,
    sweep_images,
)
from brain_service.errors import CorruptDataError, InvalidError, NotFoundError, UnavailableError
from brain_service.spec import EpisodeSpec, Feature, Leaf
from tests.pictures import picture

CAMERA = Feature("image", (6, 8, 3))
SPEC = EpisodeSpec({"camera": CAMERA, "task": Feature("text")}, {"command": Feature("float32")})


@pytest.fixture
def images(tmp_path: Path) -> ImageStore:
    return ImageStore.beside(tmp_path / "e1.jsonl")


@pytest.mark.parametrize("name", ["e1.jsonl", "e1.jsonl.zst", "e1.json"])
def test_every_form_of_a_log_has_its_images_in_one_place(tmp_path: Path, name: str) -> None:
    assert ImageStore.beside(tmp_path / name).folder == tmp_path / "e1.images"


@pytest.mark.parametrize(("kind", "suffix"), [("png", "png"), ("jpeg", "jpg")])
def test_an_image_comes_back_under_the_hash_of_its_bytes(images: ImageStore, kind: str, suffix: str) -> None:
    data = picture(1, kind)
    reference = images.put(data)
    assert reference == f"images/{hashlib.sha256(data).hexdigest()}.{suffix}" == image_reference(data)
    images.sync()
    assert images.read(reference) == images.path(reference).read_bytes() == data
    assert read_image(images.folder.parent, "e1", reference.removeprefix("images/")) == data


def test_the_folder_is_made_with_the_first_image(images: ImageStore) -> None:
    images.sync()
    images.sync_names()
    assert not images.folder.exists()
    images.put(picture(1))
    assert images.folder.is_dir()


def test_the_same_picture_is_stored_once(images: ImageStore) -> None:
    references = {images.put(picture(1)) for _ in range(3)}
    assert [path.name for path in images.folder.iterdir()] == [images.path(*references).name]


def test_a_file_that_a_power_cut_tore_is_written_anew(images: ImageStore) -> None:
    reference = images.put(picture(1))
    for torn in (b"", picture(1)[:20], bytes(len(picture(1))), picture(1) + bytes(4096)):
        images.path(reference).write_bytes(torn)
        assert images.put(picture(1)) == reference
        assert images.read(reference) == picture(1)


def test_a_flip_of_any_byte_is_found(images: ImageStore) -> None:
    reference = images.put(picture(1))
    path = images.path(reference)
    for place in range(len(picture(1))):
        garbled = bytearray(picture(1))
        garbled[place] ^= 1
        path.write_bytes(garbled)
        with pytest.raises(CorruptDataError):
            images.read(reference)
        with pytest.raises(CorruptDataError):
            images.verify(reference)


def test_what_is_no_reference_leads_nowhere(images: ImageStore) -> None:
    images.put(picture(1))
    for name in ("../e1.jsonl", "images/../../e1.jsonl", "images/x.png", ""):
        with pytest.raises(InvalidError):
            images.path(name)
        with pytest.raises(NotFoundError):
            read_image(images.folder.parent, "e1", name)
    with pytest.raises(NotFoundError):
        read_image(images.folder.parent, "../e1", image_reference(picture(1)).removeprefix("images/"))


def test_a_missing_image_is_named(images: ImageStore) -> None:
    reference = image_reference(picture(1))
    with pytest.raises(NotFoundError, match=r"e1\.images"):
        images.read(reference)
    with pytest.raises(CorruptDataError):
        images.verify(reference)
    with pytest.raises(CorruptDataError, match="observation/camera"):
        images.load({"camera": reference, "task": "x"}, SPEC)


def test_a_reference_must_name_an_image_of_the_features_shape(images: ImageStore) -> None:
    images.require(images.put(picture(1)), CAMERA, "observation/camera")
    for reference in (image_reference(picture(2)), images.put(picture(1, height=7))):
        with pytest.raises(InvalidError) as refused:
            images.require(reference, CAMERA, "observation/camera")
        assert refused.value.field == "observation/camera"


def test_split_and_load_are_inverse(images: ImageStore) -> None:
    values: dict[str, Leaf] = {"camera": picture(1), "task": "reach"}
    named, found = split_images(values, SPEC)
    assert named == {"camera": image_reference(picture(1)), "task": "reach"}
    for reference, data in found.items():
        images.put(data, reference)
    assert images.load(named, SPEC) == values
    assert split_images(named, SPEC) == (named, {})


def test_sync_flushes_files_first_then_their_names(images: ImageStore, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed: list[str] = []

    def note(fd: int) -> None:
        flushed.append(os.path.realpath(f"/proc/self/fd/{fd}"))

    monkeypatch.setattr(os, "fdatasync", note)
    monkeypatch.setattr(os, "fsync", note)
    references = sorted(images.put(picture(n)) for n in range(3))
    images.sync()
    files = [str(images.path(reference)) for reference in references]
    assert flushed == [*files, str(images.folder), str(images.folder.parent)]
    flushed.clear()
    images.sync()
    assert flushed == []
    again = images.put(picture(1))
    images.sync()
    assert flushed == [str(images.path(again)), str(images.folder)]


def test_after_a_failed_flush_the_same_bytes_are_written_and_flushed_again(
    images: ImageStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    reference = images.put(picture(1))
    flush = os.fdatasync

    def fail(fd: int) -> None:
        raise OSError(5, "I/O error")

    monkeypatch.setattr(os, "fdatasync", fail)
    with pytest.raises(UnavailableError, match="the medium fails"):
        images.sync()
    written: list[int] = []
    write = os.write

    def count(fd: int, data: bytes) -> int:
        written.append(len(data))
        return write(fd, data)

    monkeypatch.setattr(os, "write", count)
    monkeypatch.setattr(os, "fdatasync", flush)
    images.sync()
    assert written == [len(picture(1))]
    assert images.read(reference) == picture(1)
    images.sync()
    assert len(written) == 1


def test_what_the_medium_lost_before_its_flush_is_told(
    images: ImageStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    reference = images.put(picture(1))

    def fail(fd: int) -> None:
        raise OSError(5, "I/O error")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fdatasync", fail)
        with pytest.raises(UnavailableError):
            images.sync()
    images.path(reference).write_bytes(bytes(len(picture(1))))
    with pytest.raises(UnavailableError, match="the medium lost it"):
        images.sync()
    images.put(picture(1))
    images.sync()


def test_a_full_disk_leaves_no_part_of_an_image(images: ImageStore, monkeypatch: pytest.MonkeyPatch) -> None:
    images.put(picture(2))
    write = os.write

    def short(fd: int, data: bytes) -> int:
        if len(data) < 100:
            raise OSError(28, "No space left on device")
        return write(fd, data[:64])

    monkeypatch.setattr(os, "write", short)
    with pytest.raises(UnavailableError, match="disk is full"):
        images.put(picture(1))
    assert len(list(images.folder.iterdir())) == 1


def test_images_that_come_during_a_flush_are_in_the_next(images: ImageStore) -> None:
    stop = threading.Event()

    def flush() -> None:
        while not stop.is_set():
            images.sync()

    thread = threading.Thread(target=flush)
    thread.start()
    references = [images.put(picture(n)) for n in range(50)]
    stop.set()
    thread.join()
    images.sync()
    for number, reference in enumerate(references):
        assert images.read(reference) == picture(number)


def test_only_images_without_an_episode_are_swept(tmp_path: Path) -> None:
    for episode_id, log in (("open", ".jsonl"), ("closed", ".jsonl.zst"), ("document", ".json"), ("gone", "")):
        ImageStore(tmp_path / f"{episode_id}.images").put(picture(1))
        if log:
            (tmp_path / f"{episode_id}{log}").touch()
    ImageStore(tmp_path / "damaged.images").put(picture(1))
    ImageStore(tmp_path / "new.images").put(picture(1))
    (tmp_path / "quarantine").mkdir()
    (tmp_path / "quarantine" / "damaged.jsonl").touch()
    for folder in tmp_path.glob("*.images"):
        if folder.name != "new.images":
            os.utime(folder, (0, 0))
    sweep_images(tmp_path)
    found = sorted(folder.name for folder in tmp_path.glob("*.images"))
    assert found == ["closed.images", "damaged.images", "document.images", "new.images", "open.images"]
    remove_images(tmp_path, "open")
    remove_images(tmp_path, "open")
    assert not (tmp_path / "open.images").exists()
