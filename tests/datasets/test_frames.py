"""Images of a dataset in batches: the right pixels at the right step, in bounded memory, checked like all else."""

import pickle
from pathlib import Path
from zlib import crc32

import numpy as np
import pytest

from brain_service.datasets.access import Steps
from brain_service.datasets.convert import convert_directory_to_tfrecord
from brain_service.datasets.dataset import Dataset, open_dataset
from brain_service.datasets.frames import Frames
from brain_service.datasets.loader import Mode, SequenceLoader
from brain_service.episodes.logger import EpisodeLogger
from brain_service.errors import CorruptDataError, InvalidError
from brain_service.pixels import ImageInput, choose_image
from tests.fakes.gcs import fake_gcs
from tests.pictures import decode, picture

LENGTHS = (5, 9, 3, 12)


def film(directory: Path, broken: int | None = None) -> Path:
    """Record and convert episodes whose images differ at every step; one may hold pixels that are rubbish."""
    with EpisodeLogger(directory / "in") as logger:
        for number, length in enumerate(LENGTHS):
            logger.start_episode(episode_id=f"e{number}")
            for t in range(length):
                file = picture(100 * number + t, "jpeg" if t % 2 else "png", 12, 16)
                if number == broken and t == 2:
                    file = spoilt(file)
                logger.log_step({"camera": file, "state": [number, t]}, {"command": [0.25]})
            logger.end_episode()
    return convert_directory_to_tfrecord(directory / "in", directory / "out", val_fraction=0.0).dataset_dir


def spoilt(file: bytes) -> bytes:
    """Return a PNG whose chunks all hold and whose compressed pixels do not."""
    start = file.index(b"IDAT")
    size = int.from_bytes(file[start - 4 : start], "big")
    body = b"IDAT" + bytes(size)
    return file[:start] + body + crc32(body).to_bytes(4, "big") + file[start + size + 8 :]


def image_of(dataset: Dataset) -> ImageInput:
    found = choose_image(dataset.spec.observation, "camera", "6x8")
    assert found is not None
    return found


@pytest.mark.parametrize("mode", ["windows", "packed", "streams", "episodes"])
def test_every_step_of_a_batch_has_its_own_image_and_padding_none(tmp_path: Path, mode: Mode) -> None:
    dataset = open_dataset(film(tmp_path))
    image = image_of(dataset)
    loader = SequenceLoader(dataset, "train", batch_size=3, sequence_length=12, seed=0, mode=mode, image=image)
    seen = set()
    for step in range(2 * loader.steps_per_epoch):
        batch = loader.batch(step)
        assert batch.image.shape == (*batch.mask.shape, 6, 8, 3)
        for row, t in np.ndindex(batch.mask.shape):
            number, index = batch.observation[row, t].astype(int).tolist()
            if batch.mask[row, t]:
                file = picture(100 * number + index, "jpeg" if index % 2 else "png", 12, 16)
                assert np.array_equal(batch.image[row, t], image.pixels(file))
                seen.add((number, index))
            else:
                assert not batch.image[row, t].any()
    assert len(seen) == sum(LENGTHS)


def test_a_loader_of_no_image_decodes_none(tmp_path: Path) -> None:
    dataset = open_dataset(film(tmp_path))
    assert SequenceLoader(dataset, "train", batch_size=2, sequence_length=4, seed=0).batch(0).image.size == 0


def test_batches_are_the_same_by_threads_processes_and_hosts(tmp_path: Path) -> None:
    dataset = open_dataset(film(tmp_path))
    image = image_of(dataset)

    def loader(host: int = 0, hosts: int = 1) -> SequenceLoader:
        return SequenceLoader(
            dataset,
            "train",
            batch_size=2,
            sequence_length=4,
            seed=1,
            image=image,
            host_index=host,
            host_count=hosts,
        )

    expected = [loader().batch(step).image for step in range(3)]
    for workers in (0, 1):
        batches = loader().batches(workers=workers)
        for wanted in expected:
            assert np.array_equal(next(batches).image, wanted)
        batches.close()
    rows = np.concatenate([loader(host, 2).batch(1).image for host in range(2)])
    assert np.array_equal(rows, expected[1])


def test_the_memory_for_decoded_images_is_bounded(tmp_path: Path) -> None:
    dataset = open_dataset(film(tmp_path))
    image = image_of(dataset)
    whole = Frames(dataset, "train", image).window(Steps(1, 0, 9))
    frames = Frames(dataset, "train", image, cache_bytes=4 * image.size_bytes)
    for first, stop in ((0, 9), (5, 9), (3, 7), (0, 9)):
        assert np.array_equal(frames.window(Steps(1, first, stop)), whole[first:stop])
        assert frames.cached_bytes == 4 * image.size_bytes
    assert pickle.loads(pickle.dumps(frames)).cached_bytes == 0


def test_images_come_from_a_bucket_too(tmp_path: Path) -> None:
    folder = film(tmp_path)
    expected = open_dataset(folder).images("train", "camera", Steps(3, 4, 8))
    with fake_gcs() as server:
        server.make_bucket("robot")
        place = server.upload(folder, "robot", "datasets/episodes/1.0.0")
        for cache_bytes in (0, 256 * 1024**2):
            there = open_dataset(place, cache_bytes=cache_bytes)
            assert there.images("train", "camera", Steps(3, 4, 8)) == expected


def test_pixels_that_cannot_be_decoded_name_episode_and_step(tmp_path: Path) -> None:
    dataset = open_dataset(film(tmp_path, broken=3))
    index = [entry.episode_id for entry in dataset.entries("train")].index("e3")
    with pytest.raises(CorruptDataError, match=r"episode e3, step 2: .* cannot be decoded") as refused:
        Frames(dataset, "train", image_of(dataset)).window(Steps(index, 1, 4))
    assert refused.value.field == "observation/camera"


def test_an_image_that_changed_since_it_was_checked_is_found(tmp_path: Path) -> None:
    folder = film(tmp_path)
    dataset = open_dataset(folder)
    before = dataset.images("train", "camera", Steps(0, 0, 5))
    entry = dataset.entries("train")[0]
    shard = folder / entry.shard
    data = bytearray(shard.read_bytes())
    data[data.index(before[3]) + 40] ^= 1
    shard.write_bytes(data)
    with pytest.raises(CorruptDataError, match="changed since they were checked"):
        dataset.images("train", "camera", Steps(0, 3, 4))
    assert decode(before[3]).shape == (12, 16, 3)


def test_a_feature_that_is_no_image_has_none(tmp_path: Path) -> None:
    dataset = open_dataset(film(tmp_path))
    with pytest.raises(InvalidError, match="no image 'state'"):
        dataset.images("train", "state", Steps(0, 0, 1))
