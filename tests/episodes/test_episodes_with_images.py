"""Episodes with a camera: what a step with an image goes through, and what no crash may take from it."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from brain_service.episodes.images import ImageStore, image_reference
from brain_service.episodes.logger import EpisodeLogger
from brain_service.episodes.reader import read_episode, read_episodes
from brain_service.episodes.recovery import recover
from brain_service.episodes.store import EpisodeStore
from brain_service.errors import (
    BrainError,
    ConflictError,
    CorruptDataError,
    InvalidError,
    NotFoundError,
    TooLargeError,
    UnavailableError,
)
from brain_service.spec import Feature
from tests.episodes.bodies import open_store
from tests.pictures import picture

MSGPACK = "application/msgpack"
ACTION = {"command": [0.5, -0.5]}


def seen(index: int, **changes: Any) -> dict[str, Any]:
    """A step whose image tells its index."""
    return {
        "step_index": index,
        "observation": {"camera": {"front": picture(index)}, "state": [0.1 * index]},
        "action": ACTION,
        "timestamp_ns": index,
        **changes,
    }


def send(store: EpisodeStore, episode: str, body: Any) -> int:
    return store.append_json(episode, msgspec.msgpack.encode(body), MSGPACK).step_index


def names(root: Path, episode: str) -> list[str]:
    return sorted(path.name for path in (root / f"{episode}.images").iterdir())


def test_a_step_refers_to_its_image_by_hash(store: EpisodeStore, tmp_path: Path) -> None:
    episode = store.create({}).episode_id
    assert send(store, episode, [seen(0), seen(1, observation=seen(0)["observation"])]) == 1
    reference = image_reference(picture(0))
    records = store.steps(episode)
    assert [record["observation"]["camera"]["front"] for record in records] == [reference] * 2
    assert names(tmp_path, episode) == [reference.removeprefix("images/")]
    assert store.get(episode)["features"]["observation"]["camera/front"] == {"dtype": "image", "shape": [6, 8, 3]}


def test_a_retry_repeats_its_image(store: EpisodeStore, tmp_path: Path) -> None:
    episode = store.create({}).episode_id
    send(store, episode, [seen(0), seen(1)])
    assert send(store, episode, seen(0)) == 0
    by_name = seen(1, observation={"camera/front": image_reference(picture(1)), "state": [0.1]})
    assert send(store, episode, by_name) == 1
    with pytest.raises(ConflictError) as refused:
        send(store, episode, seen(1, observation={"camera/front": picture(2), "state": [0.1]}))
    assert refused.value.field == "observation"
    assert len(names(tmp_path, episode)) == 2


def test_an_image_that_is_stored_may_be_named_instead_of_sent(store: EpisodeStore, tmp_path: Path) -> None:
    episode = store.create({}).episode_id
    again = {"camera/front": image_reference(picture(0)), "state": [1.0]}
    # In one request too, and the images that are new after it are stored as well.
    assert send(store, episode, [seen(0), seen(1, observation=again), seen(2)]) == 2
    assert send(store, episode, seen(3, observation=again)) == 3
    assert len(names(tmp_path, episode)) == 2


@pytest.mark.parametrize(
    ("front", "kind", "says"),
    [
        (image_reference(picture(7)), InvalidError, "holds no whole images/"),
        ("images/none.png", InvalidError, "reference .images"),
        (picture(1, height=7), InvalidError, "expected an image of shape"),
        (picture(1)[:-4], InvalidError, "not a whole PNG"),
        (picture(1, height=40, width=40), TooLargeError, "limit is 4096"),
    ],
)
def test_a_wrong_image_is_named_and_leaves_nothing(
    tmp_path: Path, front: bytes | str, kind: type[BrainError], says: str
) -> None:
    feature = {"dtype": "image", "shape": [40, 40, 3] if kind is TooLargeError else [6, 8, 3]}
    features = {
        "observation": {"camera/front": feature, "state": {"dtype": "float32", "shape": [1]}},
        "action": {"command": {"dtype": "float32", "shape": [2]}},
    }
    with open_store(tmp_path, max_image_bytes=4096) as store:
        episode = store.create({"features": features}).episode_id
        wrong = seen(0, observation={"camera/front": front, "state": [0.0]})
        with pytest.raises(kind, match=says) as refused:
            send(store, episode, wrong)
        assert refused.value.field == "observation/camera/front"
        assert not (tmp_path / f"{episode}.images").exists()


def test_a_batch_with_one_wrong_step_stores_no_image(store: EpisodeStore, tmp_path: Path) -> None:
    episode = store.create({}).episode_id
    with pytest.raises(InvalidError) as refused:
        send(store, episode, [seen(0), seen(1), seen(2, observation={"camera/front": b"x", "state": [0.0]})])
    assert refused.value.field == "steps/2/observation/camera/front"
    assert not (tmp_path / f"{episode}.images").exists()


def test_another_episode_cannot_name_it(store: EpisodeStore) -> None:
    first, second = store.create({}).episode_id, store.create({}).episode_id
    send(store, first, seen(0))
    send(store, second, seen(0, observation={"camera/front": picture(1), "state": [0.0]}))
    with pytest.raises(InvalidError, match="this episode holds no whole"):
        again = {"camera/front": image_reference(picture(0)), "state": [0.0]}
        send(store, second, seen(1, observation=again))


def test_the_episode_reads_back_with_its_images(tmp_path: Path) -> None:
    with open_store(tmp_path) as store:
        episode = store.create({}).episode_id
        send(store, episode, [seen(0), seen(1)])
        store.end(episode, "truncated", {"camera/front": picture(5, "jpeg"), "state": [9.0]})
    found = read_episode(tmp_path / f"{episode}.jsonl")
    assert found.spec.observation["camera/front"] == Feature("image", (6, 8, 3))
    assert found.observation["camera/front"] == [picture(0), picture(1)]
    assert found.final_observation is not None
    assert found.final_observation["camera/front"] == picture(5, "jpeg")


def test_a_document_reads_back_with_its_images(tmp_path: Path) -> None:
    with EpisodeLogger(tmp_path, format="json") as logger:
        episode = logger.start_episode()
        for index in range(3):
            logger.log_step({"camera": bytearray(picture(index))}, ACTION)
        path = logger.end_episode(final_observation={"camera": picture(9)})
    (found,) = read_episodes(path)
    assert found.episode_id == episode
    assert found.observation["camera"] == [picture(index) for index in range(3)]
    assert found.final_observation == {"camera": picture(9)}


@pytest.mark.parametrize("harm", ["gone", "flipped"])
def test_a_closed_episode_without_its_images_is_damaged(tmp_path: Path, harm: str) -> None:
    with open_store(tmp_path) as store:
        episode = store.create({}).episode_id
        send(store, episode, [seen(0), seen(1)])
        store.end(episode)
    path = ImageStore.beside(tmp_path / f"{episode}.jsonl").path(image_reference(picture(1)))
    if harm == "gone":
        path.unlink()
    else:
        path.write_bytes(picture(1)[:-1] + b"x")
    with pytest.raises(CorruptDataError, match=rf"{episode}\.jsonl:3: .*{path.name}"):
        read_episode(tmp_path / f"{episode}.jsonl")


def test_deleting_an_episode_deletes_its_images(store: EpisodeStore, tmp_path: Path) -> None:
    episode = store.create({}).episode_id
    send(store, episode, seen(0))
    store.end(episode)
    store.delete(episode)
    assert not (tmp_path / f"{episode}.images").exists()
    with pytest.raises(NotFoundError):
        store.get(episode)


def test_images_are_flushed_before_the_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed: list[str] = []

    def noting(flush: Callable[[int], None]) -> Callable[[int], None]:
        def note(fd: int) -> None:
            flushed.append(Path(os.readlink(f"/proc/self/fd/{fd}")).name)
            flush(fd)

        return note

    with open_store(tmp_path, durability="step") as store:
        episode = store.create({}).episode_id
        monkeypatch.setattr(os, "fdatasync", noting(os.fdatasync))
        monkeypatch.setattr(os, "fsync", noting(os.fsync))
        store.append_json(episode, msgspec.msgpack.encode(seen(0)), MSGPACK)
        monkeypatch.undo()
    # The log still goes by the temporary name that it was made under.
    (log,) = (place for place, name in enumerate(flushed) if ".jsonl" in name)
    assert flushed.index(names(tmp_path, episode)[0]) < flushed.index(f"{episode}.images") < log


def test_a_step_whose_image_cannot_be_flushed_is_not_durable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flush = os.fdatasync

    def fail(fd: int) -> None:
        if os.readlink(f"/proc/self/fd/{fd}").endswith(".png"):
            raise OSError(5, "I/O error")
        flush(fd)

    with open_store(tmp_path, durability="step") as store:
        episode = store.create({}).episode_id
        monkeypatch.setattr(os, "fdatasync", fail)
        with pytest.raises(UnavailableError, match="accepted but"):
            send(store, episode, seen(0))
        assert store.get(episode)["durable_through"] == -1
        monkeypatch.undo()
        assert send(store, episode, seen(0)) == 0
        assert store.get(episode)["durable_through"] == 0


def leave_open(root: Path, steps: int) -> Path:
    """Record an episode, and leave its files as a kill would."""
    with open_store(root / "live") as store:
        episode = store.create({"episode_id": "e1"}).episode_id
        send(store, episode, [seen(index) for index in range(steps)])
        shutil.copytree(root / "live", root / "after")
    return root / "after"


@pytest.mark.parametrize("harm", ["gone", "empty", "zeroed", "cut", "flipped"])
def test_recovery_stops_at_the_first_step_whose_image_is_not_whole(tmp_path: Path, harm: str) -> None:
    root = leave_open(tmp_path, 4)
    data = picture(2)
    path = ImageStore.beside(root / "e1.jsonl").path(image_reference(data))
    path.write_bytes(
        {"empty": b"", "zeroed": bytes(len(data)), "cut": data[:50], "flipped": b"x" + data[1:]}.get(harm, b"")
    )
    if harm == "gone":
        path.unlink()
    with open_store(root) as store:
        assert store.get("e1")["steps"] == 2
        (report,) = store.status()["recoveries"]
        assert report["lines_lost"] == 2
        assert path.name in report["reason"]
        assert (root / report["moved_to"]).read_bytes().count(b"\n") == 2
        # The robot resends what was not durable; the torn image is written anew.
        assert send(store, "e1", [seen(2), seen(3)]) == 3
        store.end("e1")
    assert read_episode(root / "e1.jsonl").observation["camera/front"] == [picture(n) for n in range(4)]


def test_recovery_keeps_every_step_whose_images_are_whole(tmp_path: Path) -> None:
    root = leave_open(tmp_path, 4)
    with open_store(root) as store:
        assert store.get("e1")["steps"] == 4
        assert send(store, "e1", seen(4)) == 4


def test_recovery_looks_at_an_image_once_however_many_steps_share_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_store(tmp_path) as store:
        episode = store.create({}).episode_id
        same = {"camera/front": picture(0), "state": [1.0]}
        send(store, episode, [seen(index, observation=same) for index in range(50)])
    looked: list[str] = []
    verify = ImageStore.verify

    def look(images: ImageStore, reference: str) -> None:
        looked.append(reference)
        verify(images, reference)

    monkeypatch.setattr(ImageStore, "verify", look)
    with open_store(tmp_path) as store:
        assert store.get(episode)["steps"] == 50
    assert looked == [image_reference(picture(0))]


def test_an_end_whose_image_is_not_whole_is_no_end(tmp_path: Path) -> None:
    with open_store(tmp_path) as store:
        episode = store.create({"episode_id": "e1"}).episode_id
        send(store, episode, seen(0))
        store.end(episode, None, {"camera/front": picture(5), "state": [0.0]})
    ImageStore.beside(tmp_path / "e1.jsonl").path(image_reference(picture(5))).unlink()
    file, found, report = recover(tmp_path / "e1.jsonl")
    file.close()
    assert (found.end, report.steps, report.lines_lost) == (None, 1, 1)


def test_a_medium_that_cannot_read_an_image_now_costs_no_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = leave_open(tmp_path, 2)
    size_bytes = (root / "e1.jsonl").stat().st_size
    read = Path.read_bytes

    def fail(path: Path) -> bytes:
        if path.suffix == ".png":
            raise OSError(5, "I/O error")
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", fail)
    with pytest.raises(UnavailableError, match="the medium fails"):
        recover(root / "e1.jsonl")
    assert (root / "e1.jsonl").stat().st_size == size_bytes


def test_written_images_are_counted_as_wear(tmp_path: Path) -> None:
    images = ImageStore.beside(tmp_path / "e1.jsonl")
    written: list[int] = []
    images.written = written.append
    for _ in range(3):
        images.put(picture(1))
    assert written == [len(picture(1))]
