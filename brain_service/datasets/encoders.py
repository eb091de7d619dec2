"""Reading and encoding many capture files, here or in processes of their own; answers come in the files' order.

The processes are started by module name, not through `multiprocessing`: a caller's script needs no main guard,
one that dies is known by the file it was at, and none outlives its converter.
"""

import queue
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec

from brain_service.datasets.columns import Profile
from brain_service.datasets.encode_worker import Answer, Failure
from brain_service.datasets.encoding import EncodedSource, encode_source
from brain_service.datasets.patience import results
from brain_service.errors import UnavailableError

__all__ = ["encode_here", "encode_in_processes"]


def encode_here(folder: Path, files: Sequence[str], profile: Profile, work: Path) -> Iterator[EncodedSource]:
    """Yield what each file holds; the records go to a file in `work`.

    Raises:
        UnavailableError: a file cannot be read.
        OSError: the medium is full.
    """
    with (work / "part-0").open("wb") as part:
        for file in files:
            encoded = encode_source(folder / file, profile, part)
            part.flush()
            yield encoded


def encode_in_processes(
    folder: Path, files: Sequence[str], profile: Profile, work: Path, jobs: int, tick: Callable[[], None]
) -> Iterator[EncodedSource]:
    """Yield what each file holds; `jobs` processes write the records to files in `work`.

    `tick` is called at least five times a second and may raise to stop; the processes are killed then.

    Raises:
        UnavailableError: a file cannot be read, or a process died; names the file.
        OSError: the medium is full.
    """
    idle: queue.SimpleQueue[subprocess.Popen[bytes]] = queue.SimpleQueue()
    processes = [_start(folder, profile, work / f"part-{n}") for n in range(jobs)]
    for process in processes:
        idle.put(process)

    def encode(file: str) -> Answer | Failure:
        process = idle.get()
        try:
            return _ask(process, file)
        finally:
            idle.put(process)

    with ThreadPoolExecutor(jobs, thread_name_prefix="encode") as pool:
        try:
            yield from map(_unwrap, results([pool.submit(encode, file) for file in files], tick))
        finally:
            for process in processes:
                process.kill()
            pool.shutdown(wait=True, cancel_futures=True)
            for process in processes:
                process.communicate()


def _start(folder: Path, profile: Profile, part: Path) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", "brain_service.datasets.encode_worker", str(folder), profile, str(part)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)


def _ask(process: "subprocess.Popen[bytes]", file: str) -> Answer | Failure:
    assert process.stdin is not None and process.stdout is not None  # both are pipes
    try:
        process.stdin.write(msgspec.json.encode(file) + b"\n")
        process.stdin.flush()
        line = process.stdout.readline()
    except BrokenPipeError:
        line = b""
    if not line.endswith(b"\n"):
        status = process.wait()
        how = f"was killed by signal {-status}" if status < 0 else f"ended with exit code {status}"
        hint = "out of memory? Convert with --jobs 1, or give it more" if status == -9 else "see its message above"
        return Failure(0, f"the process that was converting {file} {how} ({hint})")
    return msgspec.json.decode(line, type=Answer | Failure)


def _unwrap(answer: Answer | Failure) -> EncodedSource:
    """Return what a file held.

    Raises:
        UnavailableError, OSError: the process could not tell.
    """
    if isinstance(answer, Answer):
        return answer.source
    raise OSError(answer.errno, answer.detail) if answer.errno else UnavailableError(answer.detail)
