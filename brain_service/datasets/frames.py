"""The images of a split as a model sees them: read, decoded, shrunk, and the last used ones kept in memory."""

import threading
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

import numpy as np

from brain_service.datasets.access import Steps
from brain_service.errors import CorruptDataError, InvalidError
from brain_service.pixels import ImageInput

if TYPE_CHECKING:
    from jaxtyping import UInt8

    from brain_service.datasets.dataset import Dataset

__all__ = ["FRAMES_BYTES", "Frames"]

FRAMES_BYTES = 256 * 1024**2
"""Default memory for decoded images: 20,000 of 64 x 64 pixels in colour. Decoding one costs 0.1 to 10 ms."""


class Frames:
    """Windows of one image feature. Safe to use from several threads, and picklable for worker processes.

    One window's files and their pixels are in memory at a time, besides at most `cache_bytes` of shrunk images.
    """

    def __init__(self, dataset: "Dataset", split: str, image: ImageInput, cache_bytes: int = FRAMES_BYTES) -> None:
        self.image = image
        self._dataset = dataset
        self._split = split
        self._most = cache_bytes // image.size_bytes
        self._forget()

    def _forget(self) -> None:
        self._kept: OrderedDict[tuple[int, int], UInt8[np.ndarray, "h w C"]] = OrderedDict()
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name not in ("_kept", "_lock")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._forget()

    @property
    def cached_bytes(self) -> int:
        """Memory in bytes that the images last used take."""
        return len(self._kept) * self.image.size_bytes

    def window(self, span: Steps) -> "UInt8[np.ndarray, 'T h w C']":
        """Return the images of a span's T steps.

        Raises:
            CorruptDataError: an image cannot be decoded, names episode and step; or as `Dataset.images`.
            UnavailableError: the bucket cannot be reached.
        """
        found = np.empty((span.stop - span.first, *self.image.shape), np.uint8)
        missing = []
        with self._lock:
            for t in range(span.first, span.stop):
                kept = self._kept.get((span.episode, t))
                if kept is None:
                    missing.append(t)
                else:
                    self._kept.move_to_end((span.episode, t))
                    found[t - span.first] = kept
        if missing:
            wanted = Steps(span.episode, missing[0], missing[-1] + 1)
            files = self._dataset.images(self._split, self.image.path, wanted)
            for t in missing:
                found[t - span.first] = self._decoded(span.episode, t, files[t - wanted.first])
            self._keep(span, found, missing)
        return found

    def _decoded(self, episode: int, t: int, file: bytes) -> "UInt8[np.ndarray, 'h w C']":
        try:
            return self.image.pixels(file)
        except InvalidError as error:
            name = self._dataset.entries(self._split)[episode].episode_id
            raise CorruptDataError(
                f"{self._dataset.location}: episode {name}, step {t}: {error.detail}; delete the episode and "
                "convert again",
                field=error.field,
            ) from error

    def _keep(self, span: Steps, found: "UInt8[np.ndarray, 'T h w C']", steps: list[int]) -> None:
        with self._lock:
            for t in steps:
                # A copy: a view would keep the whole window alive.
                self._kept[span.episode, t] = found[t - span.first].copy()
            while len(self._kept) > self._most:
                self._kept.popitem(last=False)
