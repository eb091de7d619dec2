"""Damage of every kind at every place: what is good stays, what is bad is cut or set aside, never guessed."""

import os
import random
import shutil
from pathlib import Path

import pytest

from brain_service.episodes.log import EpisodeFile
from brain_service.episodes.reader import read_episode
from brain_service.episodes.recovery import LogScan, RecoveryReport, recover, scan
from brain_service.errors import BrainError, ConflictError, CorruptDataError, UnavailableError
from tests.episodes.bodies import JSON, as_json, begin, open_store, step

STEPS = 2


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A closed log of `STEPS` steps: header, steps, end."""
    root = tmp_path_factory.mktemp("whole")
    with open_store(root) as store:
        episode = store.create({"episode_id": "e", "durability": "episode"}).episode_id
        for index in range(STEPS):
            body = step(index, observation={"s": [0.1 * index]}, action={"a": 1})
            store.append_json(episode, as_json(body), JSON)
        store.end(episode, "truncated")
    return (root / "e.jsonl").read_bytes()


def ends(data: bytes) -> list[int]:
    """Offsets behind each newline."""
    return [place + 1 for place, byte in enumerate(data) if byte == ord("\n")]


def put(path: Path, data: bytes) -> None:
    """Write a fresh file: ext4 flushes one that is cut and written again, which costs these tests seconds."""
    path.unlink(missing_ok=True)
    path.write_bytes(data)


def recover_and_close(path: Path) -> tuple[LogScan, RecoveryReport]:
    file, found, report = recover(path)
    file.close()
    return found, report


def test_a_log_cut_at_any_byte_keeps_every_whole_line(whole: bytes, tmp_path: Path) -> None:
    path = tmp_path / "e.jsonl"
    line_ends = ends(whole)
    for length in range(line_ends[0], len(whole) + 1):
        put(path, whole[:length])
        found, report = recover_and_close(path)
        good = max(end for end in line_ends if end <= length)
        assert path.read_bytes() == whole[:good]
        assert len(found.offsets) == min(line_ends.index(good), STEPS) == report.steps
        assert (report.bytes_cut, report.lines_lost) == (length - good, int(length > good))
        assert report.moved_to is None
        assert (found.end is not None) == (length == len(whole))


def test_a_log_cut_inside_its_header_is_no_episode(whole: bytes, tmp_path: Path) -> None:
    path = tmp_path / "e.jsonl"
    for length in range(ends(whole)[0]):
        put(path, whole[:length])
        with pytest.raises(CorruptDataError, match=r"e\.jsonl:1"):
            recover(path)
        assert path.read_bytes() == whole[:length]


def test_a_flipped_bit_at_any_byte_costs_no_line_before_it(whole: bytes, tmp_path: Path) -> None:
    path = tmp_path / "e.jsonl"
    line_ends = ends(whole)
    for place in range(line_ends[0], len(whole)):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << (place % 8)
        put(path, bytes(damaged))
        found = scan(path)
        assert found.good_bytes == max(end for end in line_ends if end <= place)
        assert len(found.offsets) == line_ends.index(found.good_bytes)
        assert found.problem is not None


def test_what_stands_behind_a_flipped_bit_is_set_aside_whole(whole: bytes, tmp_path: Path) -> None:
    path = tmp_path / "e.jsonl"
    first = ends(whole)[0]
    for place in range(first, len(whole), 7):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << (place % 8)
        put(path, bytes(damaged))
        found, report = recover_and_close(path)
        good = found.good_bytes
        assert path.read_bytes() == whole[:good]
        if report.moved_to is None:
            assert b"\n" not in damaged[good:]
        else:
            aside = tmp_path / report.moved_to
            assert aside.read_bytes() == bytes(damaged[good:])
            aside.unlink()


def test_a_reader_never_returns_a_damaged_value(whole: bytes, tmp_path: Path) -> None:
    path = tmp_path / "e.jsonl"
    for place in range(len(whole)):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << (place % 8)
        put(path, bytes(damaged))
        try:
            found = read_episode(path)
        except CorruptDataError as error:
            assert str(path) in error.detail
        else:
            # Only the last newline can go unnoticed: the end line then counts as torn.
            assert place == len(whole) - 1
            assert (len(found), found.end) == (STEPS, None)


def test_damage_longer_than_one_read_is_set_aside_to_its_last_byte(
    whole: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel gives 2 GiB at once at most (here 64 kB); a medium that loses a sector early leaves more."""
    path, good = tmp_path / "e.jsonl", ends(whole)[0]
    last = whole.splitlines(keepends=True)[-1]
    far = good + 2**23
    with path.open("wb") as file:
        file.write(whole[:good] + b"damaged\n")
        file.seek(far)
        file.write(last)
    pread = os.pread
    monkeypatch.setattr(os, "pread", lambda fd, length, offset: pread(fd, min(length, 2**16), offset))
    _, report = recover_and_close(path)
    assert (report.lines_lost, report.bytes_cut) == (2, far + len(last) - good)
    with (tmp_path / (report.moved_to or "")).open("rb") as aside:
        assert aside.read(8) == b"damaged\n"
        aside.seek(far - good)
        assert aside.read() == last
        assert os.fstat(aside.fileno()).st_blocks * 512 < 2**20, "holes take no room"
    assert path.stat().st_size == good


@pytest.mark.parametrize("size_bytes", [20, 2**20, 2**20 + 1, 3 * 2**20])
def test_what_is_set_aside_is_the_same_byte_for_byte(whole: bytes, tmp_path: Path, size_bytes: int) -> None:
    path, good = tmp_path / "e.jsonl", ends(whole)[0]
    damage = b"x\n" + random.Random(size_bytes).randbytes(size_bytes - 4) + b"\0\0"
    path.write_bytes(whole[:good] + damage)
    _, report = recover_and_close(path)
    assert (tmp_path / (report.moved_to or "")).read_bytes() == damage
    assert report.lines_lost == damage.count(b"\n") + 1


def test_damage_that_cannot_be_set_aside_whole_stays_where_it_is(
    whole: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, good = tmp_path / "e.jsonl", ends(whole)[0]
    path.write_bytes(whole[:good] + b"x\n" * 2000)
    read = EpisodeFile.read
    monkeypatch.setattr(
        EpisodeFile, "read", lambda file, start, _: read(file, start, 1000) if start < 3000 else b""
    )
    with pytest.raises(UnavailableError, match="damaged bytes"):
        recover(path)
    assert path.read_bytes() == whole[:good] + b"x\n" * 2000
    assert list(tmp_path.iterdir()) == [path]


def test_set_aside_pieces_keep_their_own_names(whole: bytes, tmp_path: Path) -> None:
    path = tmp_path / "e.jsonl"
    for _ in range(2):
        path.write_bytes(whole.replace(b'"step_index":1', b'"step_index":7'))
        recover_and_close(path)
    assert sorted(p.name for p in tmp_path.glob("*corrupt*")) == ["e.jsonl.corrupt-1", "e.jsonl.corrupt-2"]


@pytest.mark.parametrize("order", [(0, 2, 1), (0, 1, 1, 2), (0, 2, 3), (0, 1, 3, 2), (0, 1, 0)])
def test_whole_lines_in_a_wrong_order_are_bad_lines(whole: bytes, tmp_path: Path, order: tuple[int, ...]) -> None:
    lines = whole.splitlines(keepends=True)
    path = tmp_path / "e.jsonl"
    path.write_bytes(b"".join(lines[number] for number in order))
    found = scan(path)
    assert found.problem is not None
    kept = len(found.offsets) + 1 + (found.end is not None)
    assert b"".join(lines[number] for number in order[:kept]) == path.read_bytes()[: found.good_bytes]
    with pytest.raises(BrainError):
        read_episode(path)


def test_a_copy_of_an_open_log_takes_no_steps_of_the_original(tmp_path: Path) -> None:
    """Under its own name it would be recovered as the original, whose steps would then go into the copy."""
    with open_store(tmp_path) as store:
        episode = begin(store, 5, episode_id="run")
        shutil.copy(tmp_path / "run.jsonl", tmp_path / "backup.jsonl")
        store.append_json(episode, as_json(step(5)), JSON)
        copied = (tmp_path / "backup.jsonl").read_bytes()
        with pytest.raises(CorruptDataError, match=r"a log of episode 'run'; remove the file"):
            store.append_json("backup", as_json(step(5)), JSON)
        assert store.append_json(episode, as_json(step(6)), JSON).step_index == 6
        assert (tmp_path / "backup.jsonl").read_bytes() == copied
    with open_store(tmp_path) as store:
        assert [item["episode_id"] for item in store.list()[0]] == ["run"]
        assert store.append_json(episode, as_json(step(7)), JSON).step_index == 7
        (report,) = [report for report in store.status()["recoveries"] if report["episode_id"] == "backup"]
        assert report["moved_to"] == "quarantine/backup.jsonl"
        assert store.status()["last_error"] is None
    assert (tmp_path / "quarantine" / "backup.jsonl").read_bytes() == copied
    assert read_episode(tmp_path / "run.jsonl").reward.shape == (8,)


def test_a_locked_log_is_left_alone(whole: bytes, tmp_path: Path) -> None:
    path = tmp_path / "e.jsonl"
    path.write_bytes(whole[:-5])
    holder = EpisodeFile.open(path)
    with pytest.raises(ConflictError, match="another process"):
        recover(path)
    holder.close()
    assert path.read_bytes() == whole[:-5]
