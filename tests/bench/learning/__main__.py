"""`make bench-learning`: train and judge every model on every task, then print the table.

A cell (task, model, seed) is a process and a JSON file of its own: a rerun skips what was run with the same
settings, here or for the published table, so a long table may be stopped and taken up at any time. Nothing here
passes or fails.
"""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tests.bench.learning.cell import Cell, read_cell, run_cell
from tests.bench.learning.models import MODELS
from tests.bench.learning.published import PUBLISHED, publish, read_published
from tests.bench.learning.report import write_report
from tests.bench.learning.tasks import TASKS

FULL_SEEDS = (0, 1, 2)
# The daily subset: does it still learn and remember? Less training, one seed, the bars' tasks.
QUICK = (
    ("repeat-first", "core", 0.4),
    ("repeat-first", "gru", 0.4),
    ("pendulum", "core", 0.3),
    ("pendulum", "gru", 0.3),
    ("reach-hidden", "core", 0.3),
    ("reach-hidden", "mlp", 0.3),
)


def main() -> int:
    """Run the cells that are asked for; return 1 where one of them did not end well."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.learning", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="the ten-minute subset")
    parser.add_argument("--tasks", nargs="*", choices=list(TASKS), default=list(TASKS))
    parser.add_argument("--models", nargs="*", choices=MODELS, default=list(MODELS))
    parser.add_argument("--seeds", nargs="*", type=int, default=list(FULL_SEEDS))
    parser.add_argument("--jobs", type=int, default=2, help="cells at once, each on one thread (default: 2)")
    parser.add_argument("--output", type=Path, help="(default: build/learning or build/learning-quick)")
    parser.add_argument("--report-only", action="store_true", help="run nothing, write the table of what is there")
    parser.add_argument("--afresh", action="store_true", help="run what is published too")
    parser.add_argument(
        "--publish", action="store_true", help=f"write all cells that there are to {PUBLISHED.name}"
    )
    parser.add_argument("--cell", nargs=4, metavar=("TASK", "MODEL", "SEED", "SCALE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    folder: Path = options.output or Path("build") / ("learning-quick" if options.quick else "learning")
    folder.mkdir(parents=True, exist_ok=True)
    if options.cell:
        task, model, seed, scale = options.cell
        run_cell(folder, Cell(task, model, int(seed), float(scale)))
        return 0
    cells = list(_quick() if options.quick else _full(options.tasks, options.models, options.seeds))
    missing = [cell for cell in cells if cell not in _known(folder, cells, options.afresh)]
    failed = 0
    if not options.report_only:
        with ThreadPoolExecutor(options.jobs) as pool:
            failed = sum(pool.map(lambda cell: _in_process(folder, cell), missing))
    known = _known(folder, cells, options.afresh)
    results = {(cell.task, cell.model, cell.seed): document for cell, document in known.items()}
    print(write_report(folder, results, dict.fromkeys(cell.task for cell in cells)))
    if options.publish:
        publish(PUBLISHED, _known(folder, list(_full(list(TASKS), list(MODELS), list(FULL_SEEDS))), False))
    return int(failed > 0)


def _known(folder: Path, cells: Iterable[Cell], afresh: bool) -> dict[Cell, dict[str, Any]]:
    """Return the results that there are, in the order of the cells: the folder's own before published ones."""
    published = {} if afresh else read_published(PUBLISHED, cells)
    found = {cell: read_cell(folder, cell) or published.get(cell) for cell in cells}
    return {cell: document for cell, document in found.items() if document}


def _full(tasks: list[str], models: list[str], seeds: list[int]) -> Iterator[Cell]:
    # A seed after the other: a table that is stopped early is whole for the seeds it has.
    return (Cell(task, model, seed) for seed in seeds for task in tasks for model in models)


def _quick() -> Iterator[Cell]:
    return (Cell(task, model, 0, scale) for task, model, scale in QUICK)


def _in_process(folder: Path, cell: Cell) -> bool:
    """Run one cell on one thread; return whether it failed."""
    begun_s = time.monotonic()
    arguments = [
        *("--output", str(folder)),
        "--cell",
        cell.task,
        cell.model,
        str(cell.seed),
        str(cell.steps_scale),
    ]
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_multi_thread_eigen=false"
    environment = {**os.environ, "XLA_FLAGS": flags.strip(), "OMP_NUM_THREADS": "1", "JAX_PLATFORMS": "cpu"}
    # The seeds of a model are one program: the second and third do not compile it again.
    environment["JAX_COMPILATION_CACHE_DIR"] = str((folder / "compiled").resolve())
    log = folder / f"{cell.name}.log"
    with log.open("wb") as output:
        done = subprocess.run(
            [sys.executable, "-m", "tests.bench.learning", *arguments],
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    seconds = time.monotonic() - begun_s
    state = "done" if done.returncode == 0 else f"failed (exit {done.returncode}), see {log}"
    print(f"{cell.name}: {state} in {seconds:.0f} s", flush=True)
    return done.returncode != 0


if __name__ == "__main__":
    sys.exit(main())
