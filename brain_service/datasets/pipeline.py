"""Batches ahead of time through Grain, with the global step as the only state.

Grain runs the threads or processes; the order stays ours. Its shuffles and its checkpoint formats belong to its
version, so neither is used: item n of the source is batch n, and a restored iterator is a new one that starts at
the step. The same batches come out of any version of Grain, for ever.
"""

from collections.abc import Callable, Mapping
from typing import Any, Generic, TypeVar

from brain_service.errors import InvalidError

__all__ = ["BatchIterator", "BatchSource"]

T = TypeVar("T")

_ENDLESS = 2**62


class BatchSource(Generic[T]):
    """Item i is batch `start + i`: a random-access source for Grain, as good as endless."""

    def __init__(self, make: Callable[[int], T], start: int = 0) -> None:
        self._make = make
        self._start = start

    def __len__(self) -> int:
        return _ENDLESS - self._start

    def __getitem__(self, index: int) -> T:
        return self._make(self._start + int(index))


class BatchIterator(Generic[T]):
    """Batches from step `start` on, without end. Close it to end its thread or processes.

    `make` must be picklable where there are `workers`.

    Raises:
        InvalidError: `prefetch` or `workers` is negative.
    """

    def __init__(self, make: Callable[[int], T], start: int, *, prefetch: int = 2, workers: int = 0) -> None:
        for field, value in (("prefetch", prefetch), ("workers", workers)):
            if value < 0:
                raise InvalidError(
                    f"{field} {value} is negative; 0 makes each batch when it is asked for", field=field
                )
        self._make = make
        self._prefetch = prefetch
        self._workers = workers
        self._step = start
        self._batches = self._open()

    def _open(self) -> Any:
        import grain  # brings JAX along: only for those who want batches ahead of time

        source = grain.MapDataset.source(BatchSource(self._make, self._step))
        if self._workers:
            _parse_flags()
            options = grain.MultiprocessingOptions(self._workers, max(self._prefetch // self._workers, 1))
            read = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
            return iter(source.to_iter_dataset(read).mp_prefetch(options))
        # One thread: batches are made of short pieces of Python, and a second one would wait for the first.
        read = grain.ReadOptions(num_threads=min(self._prefetch, 1), prefetch_buffer_size=self._prefetch)
        return iter(source.to_iter_dataset(read))

    def __iter__(self) -> "BatchIterator[T]":
        return self

    def __next__(self) -> T:
        batch: T = next(self._batches)
        self._step += 1
        return batch

    def get_state(self) -> dict[str, int]:
        """Return `{"step": n}`: the step of the batch that comes next."""
        return {"step": self._step}

    def set_state(self, state: Mapping[str, int]) -> None:
        """Go on with the batch of `state["step"]`, whichever iterator, process or number of hosts it is from.

        Raises:
            InvalidError: the state holds no step, or one that no training reaches.
        """
        step = state.get("step")
        if type(step) is not int or not 0 <= step < _ENDLESS:
            raise InvalidError(
                f"loader state {dict(state)!r} is not {{'step': n}} with n from 0 to 2^62 - 1", field="step"
            )
        self._batches.close()
        self._step = step
        self._batches = self._open()

    def close(self) -> None:
        """End the thread or the processes; a batch that is being made is finished and dropped."""
        self._batches.close()


def _parse_flags() -> None:
    # Grain reads flags of absl when it starts processes, and absl refuses in a program that never parsed its own.
    # To be removed when Grain asks no flag.
    from absl import flags

    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
