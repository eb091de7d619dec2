"""Full and read-only file systems, mounted for real in a user namespace of the test's own."""

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from brain_service.episodes.logger import EpisodeLogger
from brain_service.episodes.store import EpisodeStore
from brain_service.errors import ConfigError, UnavailableError
from brain_service.settings import CaptureSettings
from tests.episodes.bodies import JSON, as_json, open_store, step

_NAMESPACE = ["unshare", "--user", "--map-root-user", "--mount"]


def can_mount() -> bool:
    try:
        return subprocess.run([*_NAMESPACE, "mount", "-t", "tmpfs", "none", "/mnt"], check=False).returncode == 0
    except FileNotFoundError:
        return False


needs_mount = pytest.mark.skipif(not can_mount(), reason="this kernel grants no user namespaces with mounts")

PRELUDE = """
    import pathlib, subprocess, sys
    from brain_service.errors import BrainError
    from brain_service.episodes.reader import read_episode
    from tests.episodes.bodies import JSON, as_json, open_store, step
    root = pathlib.Path(sys.argv[1])

    def mount(*options):
        subprocess.run(["mount", *options, str(root)], check=True)

    def refused(call, *arguments):
        try:
            call(*arguments)
        except BrainError as error:
            return f"{error.status} {error.detail}"
        raise SystemExit(f"{call} was not refused")
"""


def run_mounted(tmp_path: Path, script: str) -> list[str]:
    """Run a script that may mount over `root` in a namespace of its own; return the lines it printed."""
    source = textwrap.dedent(PRELUDE) + textwrap.dedent(script)
    done = subprocess.run(
        [*_NAMESPACE, sys.executable, "-c", source, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@needs_mount
def test_a_full_disk_refuses_steps_keeps_the_rest_and_recovers(tmp_path: Path) -> None:
    said = run_mounted(
        tmp_path,
        """
        mount("-t", "tmpfs", "-o", "size=64k", "none")
        with open_store(root) as store:
            episode = store.create({}).episode_id
            stored = 0
            big = dict(step(), observation={"state": [0.1] * 1000})
            try:
                while True:
                    store.append_json(episode, as_json([dict(big, step_index=stored)]), JSON)
                    stored += 1
            except BrainError as error:
                print(error.status, error.detail)
            print(store.status()["last_error"])
            (root / "ballast").write_bytes(b"")
            assert store.get(episode)["steps"] == stored
            data = (root / f"{episode}.jsonl").read_bytes()
            assert data.endswith(b"\\n") and data.count(b"\\n") == stored + 1
            while True:
                try:
                    with (root / "ballast").open("ab", buffering=0) as ballast:
                        ballast.write(b"x" * 4096)
                except OSError:
                    break
            print(refused(store.create, {}))
            assert [path.name for path in root.iterdir() if path.name.endswith(".tmp")] == []
            (root / "ballast").unlink()
            mount("-o", "remount,size=1m")
            store.append_json(episode, as_json(dict(big, step_index=stored)), JSON)
            print(store.status()["last_error"])
            assert store.end(episode, "truncated").steps == stored + 1
        assert len(read_episode(root / f"{episode}.jsonl")) == stored + 1 > 5
        """,
    )
    assert len(said) == 4
    for line in (said[0], said[2]):
        assert line.startswith("503 ")
        assert "the disk is full: convert, upload or delete episodes" in line
    assert "disk is full" in said[1]
    assert said[3] == "None"


@needs_mount
def test_a_disk_that_turns_read_only_refuses_steps_and_still_reads(tmp_path: Path) -> None:
    said = run_mounted(
        tmp_path,
        """
        mount("-t", "tmpfs", "none")
        with open_store(root) as store:
            ended, episode = store.create({}).episode_id, store.create({}).episode_id
            store.append_json(ended, as_json(step(0)), JSON)
            store.end(ended)
            subprocess.run(["umount", "--lazy", str(root)], check=True)
            mount("-t", "tmpfs", "none")
            mount("-o", "remount,ro")
            print(refused(store.create, {}))
        print(refused(open_store(root).__enter__))
        """,
    )
    assert said[0].startswith("503 ")
    assert "read-only" in said[0]
    assert said[1].startswith("500 cannot write to the episodes directory")
    assert "choose another data_dir" in said[1]


@pytest.mark.parametrize("place", ["/sys/kernel", "file"])
def test_a_directory_that_cannot_be_written_stops_the_start(tmp_path: Path, place: str) -> None:
    """The kernel's own file system refuses even root; a regular file is no directory for anyone."""
    (tmp_path / "file").write_text("")
    root = (tmp_path / place) / "episodes"
    with pytest.raises(ConfigError, match="choose another data_dir"):
        EpisodeStore(root, CaptureSettings()).start()
    with pytest.raises(UnavailableError, match="cannot make"):
        EpisodeLogger(root)


def test_below_the_reserve_new_steps_wait_but_an_episode_can_end(tmp_path: Path) -> None:
    with open_store(tmp_path) as store:
        episode = store.create({}).episode_id
        store.append_json(episode, as_json(step(0)), JSON)
    with open_store(tmp_path, min_free_bytes=2**62) as store:
        with pytest.raises(UnavailableError, match="kept in reserve"):
            store.append_json(episode, as_json(step(1)), JSON)
        with pytest.raises(UnavailableError, match="kept in reserve"):
            store.create({})
        assert store.append_json(episode, as_json(step(0)), JSON).step_index == 0
        assert store.end(episode).steps == 1
