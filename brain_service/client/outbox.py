"""Steps that the daemon does not call durable yet: taken in order, sent in order, kept until they are."""

import threading
from collections import deque
from collections.abc import Callable

from brain_service.client.errors import BufferFullError, ClientError, SpoolError
from brain_service.client.spool import Position, Spool

__all__ = ["Outbox"]

STEP_OVERHEAD_BYTES = 48  # what Python keeps beside a step's bytes
LOAD_BYTES = 1024 * 1024


class Outbox:
    """A bounded buffer between the thread that records and the one that sends. Thread-safe; nothing waits.

    In memory stand the steps from `first_index` on, as many as fit `max_bytes`; with a `spool` every step is on
    disk too, and what no longer fits into memory is read back from there. Without one a full memory refuses
    steps. With `forgetful` it drops the oldest accepted steps instead: an episode that is durable only at its end
    could not be longer than the memory otherwise.
    """

    def __init__(self, max_bytes: int, spool: Spool | None = None, *, forgetful: bool = False) -> None:
        self.first_index = self.next_index = 0
        self.spool = spool
        self._max_bytes = max_bytes
        self.forgetful = forgetful
        self.synced_through = -1
        self._may_sync = True
        self._accepted_through = -1
        self._bytes = 0
        self._sent: deque[bytes] = deque()
        self._unsent: deque[bytes] = deque()
        self._unread: Position | None = None  # the first step that is on disk only
        self._skip_to = 0
        self._closed: ClientError | None = None
        self._lock = threading.Lock()
        if spool is not None and spool.next_index:
            self.first_index, self.next_index = spool.first_index, spool.next_index
            self._unread = spool.start

    @property
    def cursor(self) -> int:
        """Index of the next step to be sent."""
        return self.first_index + len(self._sent)

    @property
    def memory_bytes(self) -> int:
        """What the steps in memory cost, in bytes."""
        return self._bytes

    @property
    def ready(self) -> bool:
        """Whether there is something to send now."""
        return bool(self._unsent) or self.needs_loading

    @property
    def needs_loading(self) -> bool:
        """Whether the next step to be sent must be read from disk, and memory has room for it."""
        return not self._unsent and self._unread is not None and self._bytes < self._max_bytes

    def put(self, encode: Callable[[int], bytes]) -> int:
        """Take the step that `encode` returns for its index, and return that index.

        Raises:
            BufferFullError: there is no room; the index stays free.
            ClientError: what `encode` or the spool raises, or once closed `close`'s reason; the index stays free.
        """
        with self._lock:
            if self._closed is not None:
                raise self._closed
            index = self.next_index
            step = encode(index)
            cost = len(step) + STEP_OVERHEAD_BYTES
            fits = self._make_room(cost)
            if self.spool is not None:
                place = self.spool.append(index, step)
                if self._unread is None and not fits:
                    self._unread = place
            elif not fits:
                raise BufferFullError(
                    f"{self.next_index - self.first_index} steps ({self._bytes} bytes) wait for the daemon, "
                    f"the limit is max_buffer_bytes = {self._max_bytes}"
                )
            if self._unread is None:
                self._unsent.append(step)
                self._bytes += cost
            self.next_index = index + 1
        return index

    def take(self, max_steps: int, max_bytes: int) -> list[bytes]:
        """Return the next steps to send, at least one if there is any, and move the cursor past them."""
        taken: list[bytes] = []
        size_bytes = 0
        with self._lock:
            while self._unsent and len(taken) < max_steps:
                size_bytes += len(self._unsent[0])
                if taken and size_bytes > max_bytes:
                    break
                taken.append(self._unsent.popleft())
            self._sent.extend(taken)
        return taken

    def load(self) -> None:
        """Read from disk what comes after the memory's last step; blocks on the medium.

        Raises:
            SpoolError: the medium cannot be read, or a record is damaged.
        """
        place = self._unread
        if place is None or self.spool is None:
            return
        steps, following = self.spool.read(place, min(LOAD_BYTES, self._max_bytes))
        with self._lock:
            self._unsent.extend(steps)
            self._bytes += sum(len(step) + STEP_OVERHEAD_BYTES for step in steps)
            all_read = self.first_index + len(self._sent) + len(self._unsent) == self.next_index
            self._unread = None if all_read else following
            self._move_to(max(self.cursor, self._skip_to))
            self._make_room(0)

    def rewind(self, index: int) -> None:
        """Make `index` the next step to send: the daemon has all before it, and nothing of it or after."""
        with self._lock:
            self._skip_to = index
            self._move_to(index)

    def release(self, accepted_through: int, durable_through: int) -> None:
        """Forget the steps up to `durable_through`: they are on the daemon's medium."""
        with self._lock:
            self._accepted_through = accepted_through
            self._move_to(max(self.cursor, durable_through + 1))
            while self._sent and self.first_index <= durable_through:
                self._forget_first()
            if self._unread is not None:
                self._make_room(1)  # else steps on disk would wait for room that no further `put` makes

    @property
    def unsynced(self) -> bool:
        """Whether the disk has steps that a flush would keep from a power cut; none after one that failed."""
        return self.spool is not None and self._may_sync and self.synced_through < self.next_index - 1

    def sync(self) -> None:
        """Flush the spool to its medium: `synced_through` is the last step that is there; blocks on the medium.

        Raises:
            SpoolError: the medium refuses.
        """
        if self.spool is not None:
            with self._lock:
                through = self.next_index - 1
                segments = self.spool.segments_from(self.synced_through + 1)
            try:
                self.spool.sync(segments)
            except SpoolError:
                self._may_sync = False  # the kernel may call clean what it could not write
                raise
            with self._lock:
                if self._closed is None:  # else the files may have gone elsewhere meanwhile
                    self.synced_through = max(self.synced_through, through)

    @property
    def untidy(self) -> bool:
        """Whether the disk holds a segment of steps that memory has forgotten."""
        return self.spool is not None and self.spool.is_untidy(self.first_index - 1)

    def tidy(self) -> None:
        """Delete from disk what is durable; blocks on the medium.

        Raises:
            SpoolError: the medium refuses.
        """
        if self.spool is not None:
            with self._lock:
                self.spool.tidy(self.first_index - 1)

    def close(self, reason: ClientError, leave: Callable[[Spool], None] = Spool.close) -> None:
        """Take no more steps, and leave the spool in the way that `leave` says; blocks on the medium.

        A `put` in another thread is over before the spool is touched, and every later one raises `reason`.
        """
        with self._lock:
            self._closed = reason
        if self.spool is not None:
            leave(self.spool)

    def _move_to(self, index: int) -> None:
        while self._sent and self.cursor > index:
            self._unsent.appendleft(self._sent.pop())
        while self._unsent and self.cursor < index:
            self._sent.append(self._unsent.popleft())

    def _make_room(self, cost: int) -> bool:
        while self.forgetful and self._sent and self.first_index <= self._accepted_through:
            if self._bytes + cost <= self._max_bytes:
                break
            self._forget_first()
        return self._bytes + cost <= self._max_bytes

    def _forget_first(self) -> None:
        self._bytes -= len(self._sent.popleft()) + STEP_OVERHEAD_BYTES
        self.first_index += 1
