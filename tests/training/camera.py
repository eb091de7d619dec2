"""A world that only a camera shows: the action is where the red square lies, all other observations are noise."""

from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from brain_service.datasets.convert import convert_directory_to_tfrecord
from brain_service.episodes.logger import EpisodeLogger
from tests.pictures import encode

SIDE = 16
SQUARE = 5
SMALL_EYE = {"image_channels": (8, 16)}


def scene(
    rng: np.random.Generator, side: int = SIDE
) -> "tuple[UInt8[np.ndarray, 'S S 3'], Float[np.ndarray, '2']]":
    """Return an image of a blue and a red square, and where the red one lies: (x, y) in [-1, 1]."""
    image = np.full((side, side, 3), 40, np.uint8)
    for channel in (2, 0):
        y, x = rng.integers(0, side - SQUARE + 1, 2)
        image[y : y + SQUARE, x : x + SQUARE] = 40
        image[y : y + SQUARE, x : x + SQUARE, channel] = 220
    return image, np.asarray([x, y]) * (2.0 / (side - SQUARE)) - 1.0


def record_scenes(folder: Path, count: int, *, length: int = 12, side: int = SIDE, seed: int = 3) -> Path:
    """Record episodes of scenes, every step another one; every second file is a JPEG."""
    rng = np.random.default_rng(seed)
    with EpisodeLogger(folder) as logger:
        for number in range(count):
            logger.start_episode(episode_id=f"scene-{number}")
            for t in range(length):
                image, place = scene(rng, side)
                file = encode(Image.fromarray(image), "jpeg" if t % 2 else "png", quality=95)
                logger.log_step(
                    {"camera": file, "noise": rng.uniform(-1, 1, 2)}, {"command": place}, reward=float(t)
                )
            logger.end_episode()
    return folder


def make_scenes(folder: Path, count: int = 8, *, length: int = 12, side: int = SIDE) -> Path:
    """Record scenes and return them as a dataset."""
    record_scenes(folder / "in", count, length=length, side=side)
    return convert_directory_to_tfrecord(folder / "in", folder / "out", val_fraction=0.25).dataset_dir
