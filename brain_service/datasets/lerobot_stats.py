"""The statistics that LeRobot keeps of each feature, of an episode and of all: moments are exact in both."""

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float64

from brain_service.datasets.columns import Column
from brain_service.errors import InvalidError
from brain_service.spec import Feature

__all__ = ["FeatureSummary", "stat_rows", "stat_shape"]

QUANTILES = {"q01": 0.01, "q10": 0.1, "q50": 0.5, "q90": 0.9, "q99": 0.99}
_SAMPLED_IMAGES = 32
_SAMPLED_PIXELS = 4096


class FeatureSummary:
    """Merges rows `[N, n]`; quantiles come from every k-th row, so that at most `sample_rows` are held."""

    def __init__(self, shape: tuple[int, ...], sample_rows: int = 100_000) -> None:
        self._shape = shape
        self._sample_rows = sample_rows
        self._count = 0
        self._rows = 0
        self._stride = 1
        self._kept = 0
        self._sample: list[Any] = []

    def add(self, rows: Float64[np.ndarray, "N n"], count: int) -> None:
        """Take rows, shape `[N, n]`, that stand for `count` frames (Chan, Golub, LeVeque 1979)."""
        added, mean = len(rows), rows.mean(axis=0)
        if self._rows == 0:
            self._mean, self._squares = np.zeros_like(mean), np.zeros_like(mean)
            self._low, self._high = rows.min(axis=0), rows.max(axis=0)
        total = self._rows + added
        delta = mean - self._mean
        self._squares += ((rows - mean) ** 2).sum(axis=0) + delta**2 * (self._rows * added / total)
        self._mean += delta * (added / total)
        self._low, self._high = np.minimum(self._low, rows.min(axis=0)), np.maximum(self._high, rows.max(axis=0))
        self._rows, self._count = total, self._count + count
        self._sample.append(rows[:: self._stride])
        self._kept += len(self._sample[-1])
        while self._kept > self._sample_rows:
            self._stride *= 2
            self._sample = [np.concatenate(self._sample)[::2]]
            self._kept = len(self._sample[0])

    def result(self) -> dict[str, Any]:
        """Return `{statistic: nested list}` of the feature's shape, and `count` as a list of one."""
        quantiles = np.quantile(np.concatenate(self._sample), list(QUANTILES.values()), axis=0)
        figures = {
            "min": self._low,
            "max": self._high,
            "mean": self._mean,
            "std": np.sqrt(self._squares / self._rows),
            **dict(zip(QUANTILES, quantiles, strict=True)),
        }
        shaped = {name: figure.reshape(self._shape).tolist() for name, figure in figures.items()}
        return shaped | {"count": [self._count]}


def stat_shape(feature: Feature) -> tuple[int, ...]:
    """Return the shape of a feature's figures: its own, and `[3, 1, 1]` of an image (a figure a colour)."""
    return (3, 1, 1) if feature.dtype == "image" else feature.shape or (1,)


def stat_rows(column: Column, feature: Feature) -> tuple[Float64[np.ndarray, "N n"], int]:
    """Return the rows to summarise, shape `[N, n]`, and how many frames they stand for.

    Of images they are pixels of some, shape `[N, 3]`, in [0, 1].

    Raises:
        InvalidError: Pillow, which decodes images, is not installed, or an image cannot be decoded.
    """
    if feature.dtype != "image":
        rows = np.asarray(column).reshape(len(column), -1).astype(np.float64)
        return rows, len(column)
    chosen = np.unique(np.linspace(0, len(column) - 1, min(len(column), _SAMPLED_IMAGES)).round().astype(int))
    return _pixels([column[index] for index in chosen]), len(chosen)


def _pixels(images: Sequence[Any]) -> Float64[np.ndarray, "N 3"]:
    try:
        from PIL import Image
    except ImportError as error:
        raise InvalidError("statistics of images need Pillow: install it, or leave out --images") from error
    rows = []
    for data in images:
        try:
            with Image.open(io.BytesIO(data)) as image:
                flat = np.asarray(image.convert("RGB"), np.float64).reshape(-1, 3) / 255
        except OSError as error:
            raise InvalidError(f"an image cannot be decoded: {error}; leave out --images") from error
        rows.append(flat[:: -(-len(flat) // _SAMPLED_PIXELS)])
    return np.concatenate(rows)
