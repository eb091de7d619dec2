"""What keeps capture within bounds: bodies of many parts, fast robots, many flushes, keys of requests."""

import threading
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest

from brain_service.episodes.durable_mark import DurableMark
from brain_service.episodes.flusher import Flusher
from brain_service.episodes.log_format import encode_line
from brain_service.episodes.rate import StepRate
from brain_service.episodes.store import EpisodeStore
from brain_service.episodes.wire import split_steps
from brain_service.errors import (
    BrainError,
    ConflictError,
    InvalidError,
    MalformedError,
    TooLargeError,
    TooManyError,
    UnavailableError,
)
from tests.episodes.bodies import JSON, as_json, begin, open_store, step


@pytest.mark.parametrize(
    ("body", "kind", "error"),
    [
        (b"[" + b"0," * 200_000 + b"0]", "json", InvalidError),
        (b"[" + b"{}," * 200_000 + b"{}]", "json", TooLargeError),
        (b"[" + b"{}," * 200_000 + b"{}", "json", TooLargeError),
        (b"[" + b'{"a":1},' * 50_000 + b"nonsense]", "json", TooLargeError),
        (b"[" + b" " * 300_000 + b"{},]", "json", MalformedError),
        (b"{}\n" * 200_000, "ndjson", TooLargeError),
        (b"\xdd\xff\xff\xff\xff", "msgpack", TooLargeError),
        (b"\xdc\x00\x02\x80", "msgpack", MalformedError),
    ],
)
def test_a_body_of_countless_parts_is_refused_before_they_fill_the_memory(
    body: bytes, kind: Any, error: type[BrainError]
) -> None:
    with pytest.raises(error):
        split_steps(body, kind, 10_000)


def test_a_large_array_of_steps_is_cut_as_a_small_one() -> None:
    bodies = [as_json(step(i)) for i in range(3000)]
    pieces, batch = split_steps(b" [" + b" , ".join(bodies) + b"]\n", "json", 3000)
    assert batch
    assert [bytes(piece) for piece in pieces] == bodies
    packed, batch = split_steps(msgspec.msgpack.encode([msgspec.Raw(b"\x80")] * 20), "msgpack", 20)
    assert (len(packed), batch) == (20, True)
    assert split_steps(b"\x81\xa1a\x01", "msgpack", 1) == ([b"\x81\xa1a\x01"], False)
    assert split_steps(b"", "ndjson", 1) == ([], True)


def test_a_step_of_endless_text_is_refused_unread(tmp_path: Path) -> None:
    with open_store(tmp_path, max_step_bytes=2000) as store:
        episode = begin(store, 1)
        for body, field in ((as_json(step(1)), None), (b"[" + as_json(step(1)) + b"]", "steps/0")):
            padded = body.replace(b"{", b"{" + b" " * 1500)
            with pytest.raises(TooLargeError, match="bytes of JSON") as refused:
                store.append_json(episode, padded.replace(b'"reward":0.1', b'"reward":1e400'), JSON)
            assert refused.value.field == field


def test_a_bucket_gives_its_burst_and_then_its_rate() -> None:
    rate = StepRate(1000.0, 50.0)
    rate.take(50)
    with pytest.raises(TooManyError, match="max_steps_per_s = 1000") as refused:
        rate.take(20)
    wait_s = refused.value.members["retry_after_s"]
    assert 0 < wait_s <= 0.02
    time.sleep(wait_s + 0.001)
    rate.take(20)
    rate.take(0)


def test_episodes_that_are_due_together_are_flushed_side_by_side() -> None:
    """Each waits until the other has begun: one after the other they would wait for ever."""
    meeting = threading.Barrier(2)

    class Met:
        def sync(self) -> None:
            meeting.wait(10)

    flusher = Flusher(0.01)
    for _ in range(2):
        flusher.note(Met())
    flusher.start()
    flusher.close()
    assert not meeting.broken


def test_a_failed_flush_is_tried_again_and_a_closing_flusher_lets_it_be() -> None:
    class Failing:
        tries = 0
        again = threading.Event()

        def sync(self) -> None:
            self.tries += 1
            if self.tries == 2:
                self.again.set()
            flusher.retry(self)

    flusher, target = Flusher(0.001), Failing()
    flusher.start()
    flusher.note(target)
    assert target.again.wait(10)
    flusher.close()
    assert target.tries == 3


def test_a_slow_flush_holds_up_no_other() -> None:
    class Slow:
        began = threading.Event()
        gate = threading.Event()

        def sync(self) -> None:
            self.began.set()
            self.gate.wait(10)

    class Quick:
        synced = threading.Event()

        def sync(self) -> None:
            self.synced.set()

    flusher = Flusher(3600.0)
    flusher.start()
    flusher.note(Slow(), urgent=True)
    assert Slow.began.wait(10)
    flusher.note(Quick(), urgent=True)
    assert Quick.synced.wait(5)
    Slow.gate.set()
    flusher.close()


def test_a_defect_in_one_flush_ends_no_other(caplog: pytest.LogCaptureFixture) -> None:
    """More defective ones than threads, so that each thread meets one."""

    class Defective:
        def sync(self) -> None:
            raise ZeroDivisionError

    class Sound:
        def __init__(self) -> None:
            self.synced = threading.Event()

        def sync(self) -> None:
            self.synced.set()

    flusher = Flusher(0.001)
    sound = [Sound() for _ in range(40)]
    for target in sound:
        flusher.note(Defective())
        flusher.note(target)
    flusher.start()
    assert all(target.synced.wait(10) for target in sound)
    flusher.close()
    assert "could not be flushed" in caplog.text


def test_a_mark_tells_each_who_waits_once() -> None:
    mark = DurableMark(-1)
    told: list[tuple[str, BrainError | None]] = []
    mark.when(0, lambda error: told.append(("first", error)))
    mark.when(5, lambda error: told.append(("later", error)))
    mark.advance(2)
    mark.advance(1)
    assert (told, mark.through) == ([("first", None)], 2)
    mark.when(2, lambda error: told.append(("at once", error)))
    refusal = UnavailableError("the medium refuses")
    mark.fail(refusal)
    mark.advance(9)
    assert told[1:] == [("at once", None), ("later", refusal)]
    mark.wait(9)


def test_a_key_makes_one_episode_of_repeated_requests(tmp_path: Path) -> None:
    body = {"environment_id": "pi5-dev", "metadata": {"a": 1, "b": 2}}
    same = {"metadata": {"b": 2, "a": 1}, "environment_id": "pi5-dev"}
    made: list[str] = []
    with open_store(tmp_path) as store:
        threads = [
            threading.Thread(target=lambda: made.append(store.create(body, "key").episode_id)) for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(made) == 4
        assert len(set(made)) == 1
        assert store.create(same, "key").episode_id == made[0]
        assert store.create(body, "another key").episode_id != made[0]
        assert store.create(body).episode_id != store.create(body).episode_id
        with pytest.raises(ConflictError, match="another body") as raised:
            store.create({"environment_id": "elsewhere"}, "key")
        assert raised.value.field == "Idempotency-Key"
        for key in ("", "x" * 256):
            with pytest.raises(InvalidError, match="255"):
                store.create(body, key)
    with open_store(tmp_path) as store:
        assert store.create(body, "key").episode_id == made[0]
        store.end(made[0])
        assert store.create(body, "key").episode_id == made[0]


@pytest.mark.parametrize(
    ("record", "field"),
    [
        ({"a": {"b": [1, 2**64]}}, "a/b/1"),
        ({"a": 1, "text": "\ud800"}, "text"),
        ({"a": {1: 2}}, "a"),
        ({"a": object()}, "a"),
    ],
)
def test_what_json_has_no_form_for_is_named(record: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidError) as raised:
        encode_line(record)
    assert raised.value.field == field


def test_an_integer_beyond_64_bits_is_named_and_never_rounded(store: EpisodeStore) -> None:
    with pytest.raises(InvalidError) as raised:
        store.create({"metadata": {"serial": {"number": 2**70}}})
    assert raised.value.field == "metadata/serial/number"
    episode = begin(store, 1)
    with pytest.raises(InvalidError) as raised:
        store.append_json(episode, b"[" + msgspec.json.encode(step(1, policy={"id": 2**70})) + b"]", JSON)
    assert raised.value.field == "steps/0/step_metadata/policy/id"
