"""Runs of `python -m cloud_trainer` out of one process that has everything imported: `python -m ... forked SPEC`.

SPEC is JSON: a list of groups, one after the other; a group is a list of runs at the same time. A run has
`arguments`, and may have `records` (a file that gets a line "step row crc" for every row that is made), `pause_s`
(for each batch, so that a signal comes in the middle), and `term_when` (a file, a text: SIGTERM once the file
holds the text). Prints a list of groups of [exit code, standard error].
"""

import json
import os
import signal
import sys
import time
import traceback
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from brain_service.datasets.gcs_libraries import prepare_gcs_libraries
from brain_service.datasets.loader import Batch, SequenceLoader
from cloud_trainer.cli import main

Run = dict[str, Any]


def record_rows(path: Path | None, pause_s: float) -> None:
    """Have every training row of this process noted with the CRC of all its numbers."""
    original = SequenceLoader.batch

    def batch(self: SequenceLoader, step: int) -> Batch:
        made = original(self, step)
        if self.split == "train":
            time.sleep(pause_s)
            lines = ""
            for number, row in enumerate(self._rows):
                crc = 0
                for leaf in vars(made).values():
                    crc = zlib.crc32(np.ascontiguousarray(leaf[number]).tobytes(), crc)
                lines += f"{step} {row} {crc}\n"
            if path is not None:
                with path.open("a") as file:
                    file.write(lines)
        return made

    SequenceLoader.batch = batch  # type: ignore[method-assign]


def child(run: Run, errors: Path) -> int:
    """Start a run in a child process and return its id."""
    process = os.fork()
    if process:
        return process
    code = 70
    try:
        os.dup2(os.open(errors, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
        record_rows(Path(run["records"]) if "records" in run else None, run.get("pause_s", 0.0))
        code = main(run["arguments"])
    except SystemExit as error:
        code = int(error.code or 0)
    except BaseException:  # noqa: BLE001 - a forked child must never go on as its parent
        traceback.print_exc()
    # As an interpreter does at its end: JAX leaves its service there.
    import jax

    jax.distributed.shutdown()
    os._exit(code)


def group(runs: list[Run], folder: Path) -> list[tuple[int, str]]:
    """Do the runs of a group."""
    started = [child(run, folder / f"stderr-{number}") for number, run in enumerate(runs)]
    waiting = [
        (process, *run["term_when"]) for process, run in zip(started, runs, strict=True) if "term_when" in run
    ]
    codes: dict[int, int] = {}
    deadline_s = time.monotonic() + 580
    while len(codes) < len(started):
        for process, file, text in list(waiting):
            if Path(file).exists() and text in Path(file).read_text():
                os.kill(process, signal.SIGTERM)
                waiting.remove((process, file, text))
        for process in started:
            if process not in codes:
                found, status = os.waitpid(process, os.WNOHANG)
                if found:
                    codes[process] = os.waitstatus_to_exitcode(status)
                elif time.monotonic() > deadline_s:
                    os.kill(process, signal.SIGKILL)
        time.sleep(0.01)
    return [
        (codes[process], (folder / f"stderr-{number}").read_text(errors="replace"))
        for number, process in enumerate(started)
    ]


if __name__ == "__main__":
    prepare_gcs_libraries()
    import cloud_trainer.job  # noqa: F401

    folder = Path(sys.argv[1])
    print(json.dumps([group(runs, folder) for runs in json.loads((folder / "spec.json").read_text())]))
