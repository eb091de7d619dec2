"""The offline buffer: nothing leaves it before it is durable, nothing comes twice, and its bound holds."""

import errno
import os
import random
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from brain_service.client.errors import BufferFullError, EndedError, SpoolError
from brain_service.client.outbox import STEP_OVERHEAD_BYTES, Outbox
from brain_service.client.spool import SEGMENT_BYTES, Spool
from brain_service.client.spool_folder import waiting_spools
from tests.fakes.disk import Call, watched
from tests.fakes.medium import Medium
from tests.fakes.recording import Claim, Recording, write_tree
from tests.fakes.sectors import Fate

BODY = {"episode_id": "e1"}


def text(index: int) -> bytes:
    return b"step %d " % index + b"x" * (index % 5)


class OutboxMachine(RuleBasedStateMachine):
    """Put, send, lose the connection, make durable, in any order; the daemon is a list."""

    def __init__(self) -> None:
        super().__init__()
        self.outbox = Outbox(40 * (len(text(0)) + STEP_OVERHEAD_BYTES))
        self.daemon: list[bytes] = []
        self.durable = 0
        self.put = 0

    @rule(count=st.integers(1, 10))
    def record(self, count: int) -> None:
        for _ in range(count):
            try:
                assert self.outbox.put(text) == self.put
            except BufferFullError:
                assert self.put - self.durable > 25
                return
            self.put += 1

    @rule(count=st.integers(1, 7))
    def send(self, count: int) -> None:
        first = self.outbox.cursor
        assert first == len(self.daemon)
        self.daemon += self.outbox.take(count, 1000)

    @precondition(lambda self: len(self.daemon) > self.durable)
    @rule(data=st.data())
    def make_durable(self, data: st.DataObject) -> None:
        self.durable = data.draw(st.integers(self.durable, len(self.daemon)))
        self.outbox.release(len(self.daemon) - 1, self.durable - 1)

    @rule(data=st.data())
    def power_cut(self, data: st.DataObject) -> None:
        del self.daemon[data.draw(st.integers(self.durable, len(self.daemon))) :]
        self.outbox.rewind(len(self.daemon))

    @invariant()
    def what_is_not_durable_is_kept(self) -> None:
        assert self.daemon == [text(i) for i in range(len(self.daemon))]
        assert self.outbox.first_index == self.durable
        assert self.outbox.next_index == self.put
        assert self.outbox.memory_bytes == sum(
            len(text(i)) + STEP_OVERHEAD_BYTES for i in range(self.durable, self.put)
        )


TestOutbox = OutboxMachine.TestCase


def test_a_batch_is_bounded_in_bytes_and_steps() -> None:
    outbox = Outbox(10_000)
    for _ in range(10):
        outbox.put(lambda index: b"x" * 100)
    assert len(outbox.take(4, 10_000)) == 4
    assert len(outbox.take(100, 250)) == 2
    assert len(outbox.take(100, 10)) == 1, "a step over the bound still goes, alone"


def test_a_forgetful_outbox_drops_accepted_steps_only() -> None:
    outbox = Outbox(10 * (100 + STEP_OVERHEAD_BYTES), forgetful=True)
    for _ in range(10):
        outbox.put(lambda index: b"x" * 100)
    with pytest.raises(BufferFullError):
        outbox.put(lambda index: b"x" * 100)
    outbox.take(4, 10_000)
    outbox.release(2, -1)
    for _ in range(3):
        outbox.put(lambda index: b"x" * 100)
    assert outbox.first_index == 3
    with pytest.raises(BufferFullError):
        outbox.put(lambda index: b"x" * 100)


def resumed(path: Path) -> Spool:
    spool = Spool.resume(path, 10**9)
    assert spool is not None
    return spool


def drain(outbox: Outbox) -> list[bytes]:
    found: list[bytes] = []
    while True:
        if outbox.needs_loading:
            outbox.load()
        steps = outbox.take(100, 10_000)
        if not steps and not outbox.needs_loading:
            return found
        found += steps
        outbox.release(outbox.cursor - 1, outbox.cursor - 1)
        if outbox.untidy:
            outbox.tidy()


def test_with_a_spool_memory_overflows_to_disk_and_comes_back_in_order(tmp_path: Path) -> None:
    outbox = Outbox(5_000, Spool.create(tmp_path, BODY, 10**9))
    for _ in range(3_000):
        outbox.put(text)
    assert outbox.memory_bytes <= 5_000
    assert drain(outbox) == [text(i) for i in range(3_000)]
    assert outbox.put(text) == 3_000
    assert drain(outbox) == [text(3_000)]


def test_durable_segments_vanish_and_the_bound_on_disk_holds(tmp_path: Path) -> None:
    spool = Spool.create(tmp_path, BODY, 3 * SEGMENT_BYTES)
    outbox = Outbox(10_000, spool)
    count = 0
    with pytest.raises(BufferFullError, match="max_spool_bytes"):
        while True:
            outbox.put(lambda index: b"x" * 50_000)
            count += 1
    assert len(list(spool.path.glob("*.steps"))) == 3
    assert len(drain(outbox)) == count
    assert [path.stat().st_size for path in spool.path.glob("*.steps")] == []
    assert outbox.put(text) == count
    spool.remove()
    assert not spool.path.exists()


@given(cut=st.integers(0, 400), flip=st.integers(0, 400))
def test_a_torn_or_flipped_spool_gives_the_steps_before_it(
    tmp_path_factory: pytest.TempPathFactory, cut: int, flip: int
) -> None:
    root = tmp_path_factory.mktemp("spool")
    spool = Spool.create(root, BODY, 10**9)
    ends = [0]
    for index in range(20):
        spool.append(index, text(index))
        ends.append(spool.size_bytes)
    spool.close()
    (segment,) = spool.path.glob("*.steps")
    data = bytearray(segment.read_bytes()[: ends[-1] - cut % ends[-1]])
    if flip < len(data):
        data[flip] ^= 0x40
    segment.write_bytes(bytes(data))
    good = min(len(data), flip if flip < len(data) else len(data))
    expected = sum(end <= good for end in ends) - 1
    (path,) = waiting_spools(root)
    again = resumed(path)
    assert drain(Outbox(100, again)) == [text(i) for i in range(expected)]
    again.close()


def test_a_spool_has_one_owner(tmp_path: Path) -> None:
    spool = Spool.create(tmp_path, BODY, 10**9)
    spool.append(0, b"x")
    with pytest.raises(SpoolError):
        Spool.resume(spool.path, 10**9)
    with pytest.raises(SpoolError):
        Spool.create(tmp_path, BODY, 10**9)
    spool.close()
    again = resumed(spool.path)
    assert (again.first_index, again.next_index) == (0, 1)
    again.set_aside()
    assert waiting_spools(tmp_path) == []
    assert waiting_spools(tmp_path / "none") == []


def test_closing_waits_for_the_step_that_is_being_taken_and_refuses_the_next(tmp_path: Path) -> None:
    spool = Spool.create(tmp_path, BODY, 10**9)
    outbox = Outbox(10_000, spool)
    outbox.put(text)
    closing = threading.Thread(target=outbox.close, args=(EndedError("closed"),))

    def encode(index: int) -> bytes:
        closing.start()
        closing.join(0.2)
        assert closing.is_alive()
        return text(index)

    assert outbox.put(encode) == 1
    closing.join()
    with pytest.raises(EndedError, match="closed"):
        outbox.put(text)
    with pytest.raises(SpoolError, match="closed"):
        spool.append(2, text(2))
    again = resumed(spool.path)
    assert drain(Outbox(10_000, again)) == [text(0), text(1)]
    again.close()


@pytest.mark.parametrize("document", [b"{", b"[1]", b"{}", b'{"episode_id": 7}', b"\xff", b"[" * 100_000])
def test_a_folder_without_an_episode_is_set_aside_and_its_lock_let_go(tmp_path: Path, document: bytes) -> None:
    spool = Spool.create(tmp_path, BODY, 10**9)
    spool.append(0, text(0))
    spool.close()
    (spool.path / "episode.json").write_bytes(document)
    with pytest.raises(SpoolError, match="holds no episode"):
        Spool.resume(spool.path, 10**9)
    assert waiting_spools(tmp_path) == []
    aside = tmp_path / "e1.rejected"
    assert len(list(aside.glob("*.steps"))) == 1
    (aside / "episode.json").write_bytes(b'{"episode_id": "e1"}')
    again = resumed(aside)
    assert again.next_index == 1, "nobody holds its lock"
    again.close()


def test_a_medium_that_cannot_be_read_keeps_no_lock(tmp_path: Path) -> None:
    spool = Spool.create(tmp_path, BODY, 10**9)
    spool.append(0, text(0))
    spool.close()
    (bad := spool.path / "000000000001.steps").mkdir()
    with pytest.raises(SpoolError, match="cannot read"):
        Spool.resume(spool.path, 10**9)
    bad.rmdir()
    resumed(spool.path).close()


def test_a_stray_file_is_no_segment(tmp_path: Path) -> None:
    spool = Spool.create(tmp_path, BODY, 10**9)
    spool.append(0, text(0))
    spool.close()
    (spool.path / "notes.steps").write_bytes(b"mine")
    again = resumed(spool.path)
    assert drain(Outbox(100, again)) == [text(0)]
    again.close()


def test_of_two_clients_on_one_folder_one_has_each_spool(tmp_path: Path) -> None:
    done = threading.Event()
    found: list[str] = []

    def look() -> None:
        while not done.is_set():
            for path in waiting_spools(tmp_path):
                try:
                    spool = Spool.resume(path, 10**9)
                except SpoolError:
                    continue
                if spool is not None:
                    found.append(path.name)
                    spool.close()

    threads = [threading.Thread(target=look) for _ in range(2)]
    for thread in threads:
        thread.start()
    for number in range(150):
        spool = Spool.create(tmp_path, {"episode_id": f"e{number}"}, 10**9)
        spool.append(0, text(0))
        spool.remove()
        assert not spool.path.exists() or not (spool.path / "episode.json").exists()
    done.set()
    for thread in threads:
        thread.join()
    assert found == [], "a spool was taken over from its living owner"
    assert list(tmp_path.iterdir()) == []


def test_what_is_called_spooled_survives_a_power_cut_of_this_computer(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    recording = Recording(root)
    with watched(root, recording):
        outbox = Outbox(10_000, Spool.create(root / "spool", BODY, 10**9))
        for index in range(60):
            outbox.put(lambda index: b"%06d" % index + b"x" * 50_000)
            if index % 7 == 6:
                outbox.sync()
                assert not outbox.unsynced
                recording.say("spooled", "e1", outbox.synced_through)
        outbox.close(EndedError("closed"))
    medium = Medium(recording)
    through, looks = -1, 0
    rng = random.Random(1)
    for number, event in enumerate(recording.events):
        medium.play(event)
        if isinstance(event, Claim):
            through = event.value
        if through >= 0 and number % 5 == 0:
            for fate in (Fate("lost", "lost"), Fate("mixed", "mixed"), Fate("torn", "kept")):
                looks += 1
                after = tmp_path / f"after{looks}"
                write_tree(after, medium.survive(fate, rng))
                spool = resumed(after / "spool" / "e1")
                assert spool.next_index > through
                assert drain(Outbox(10_000, spool))[through].startswith(b"%06d" % through)
                spool.close()
    assert looks > 50


class NoFlush(Recording):
    """A medium that refuses to flush files while `refuses`."""

    refuses = True

    def before(self, call: Call) -> bool:
        if call.kind == "sync" and call.data_only and self.refuses:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return super().before(call)


def test_after_a_flush_that_failed_nothing_more_is_called_spooled(tmp_path: Path) -> None:
    medium = NoFlush(tmp_path)
    with watched(tmp_path, medium):
        outbox = Outbox(10_000, Spool.create(tmp_path, BODY, 10**9))
        outbox.put(text)
        with pytest.raises(SpoolError, match="Input/output error"):
            outbox.sync()
        medium.refuses = False
        assert outbox.put(text) == 1, "the page cache still takes it"
        assert (outbox.unsynced, outbox.synced_through) == (False, -1)
        outbox.close(EndedError("closed"))
