"""`python -m tests.faults [kill|power|ailing|flips ...] [--share 0.1]`: run the faults, count, write the table.

Without a group all are run and `docs/crash-table.md` is written; `--share` makes it shorter or longer.
"""

import argparse
import logging
import os
import platform
import sys
import time
from pathlib import Path

from tests.faults.table import GROUPS, Row

_TABLE = Path(__file__).parents[2] / "docs" / "crash-table.md"
_HEAD = """\
# What faults cost

Written by `make crash-table`; the same runs are tests (`make soak`). An acknowledged step is one that was
answered: a kill must lose none that was accepted, a power cut none up to `durable_through`. What it may take are
the accepted steps above that, counted here as drawn by the model below: it tries the worst, so the number says
nothing about an ordinary power cut, which takes at most what came in the last 200 ms.

| fault | runs | acknowledged | **lost** | accepted above `durable_through` lost | recovery p50 / max | command |
|---|---|---|---|---|---|---|
"""
_FOOT = """
A run is one kill, one state of the medium after a power cut, one time that a medium fails, or one damaged file.
Recovery is the time until everything that was recorded answers again: of the whole daemon from the start of its
process (kill), of the store in process (power cut), of `/health` after the medium works again (medium).

**Power cuts** are not simulated by kills. The tests record each change of a file or folder that the capture code
makes, with its flushes and with what was answered meanwhile (`tests/fakes/disk.py`), cut the record at every
change, and draw what POSIX allows a medium to hold then (`tests/fakes/medium.py`): any mix of old and new 512-byte
sectors, torn ones, sizes without data, stale blocks, entries of folders that happened or not, in any order.
Whatever a returned flush covered is there, nothing else is sure. The real recovery runs on each, and every step is
compared bit by bit. At one change in sixteen the power goes a second time, in the midst of that recovery. Where
flushes fail before a kill, the next process finds in the cache what the medium lacks, until it drops the pages
(`tests/fakes/failing.py`). That the judge would notice is tested, too: with flushes of files or folders left out,
with an end that is answered before its flush, with a recovery that believes every line, or the cache
(`tests/faults/test_power_cut.py`).

**Media** fail in a real daemon whose file calls go through the same layer (`tests/faults/faulty_daemon.py`), while
one robot records and another is driven by a model: refusals must be 503 with `Retry-After` and the reason in
`/health`, actions must go on, and all must be well again by itself. "Lose what they held" also drops the pages of
a failed flush, as kernels do.

**Damage** of a byte is found by the checksum of its line, frame, image or document. A log that is cut, or whose
last line is torn, is what a crash leaves: it is read as an episode without an end, and recovery reports what it
cut.
"""


def main() -> int:
    """Run the groups that were asked for and return 1 if anything was lost."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("groups", nargs="*", metavar="group", help="(default: all, and write the table)")
    parser.add_argument("--share", type=float, default=1.0, help="of the usual number of runs")
    options = parser.parse_args()
    if unknown := set(options.groups) - set(GROUPS):
        parser.error(f"unknown {', '.join(sorted(unknown))}; groups: {', '.join(GROUPS)}")
    logging.disable(logging.CRITICAL)
    rows: list[Row] = []
    began_s = time.monotonic()
    for group in options.groups or GROUPS:
        for row in GROUPS[group](options.share):
            rows.append(row)
            print(row.line(), flush=True)
            for problem in row.problems[:5]:
                print(f"  {problem}", file=sys.stderr, flush=True)
    if not options.groups:
        minutes = (time.monotonic() - began_s) / 60
        machine = f"{platform.machine()}, {os.cpu_count()} cores, Linux {platform.release().split('-')[0]}"
        made = f"\nMeasured on {machine}, CPython {platform.python_version()}, in {minutes:.0f} minutes.\n"
        _TABLE.write_text(_HEAD + "".join(f"{row.line()}\n" for row in rows) + made + _FOOT)
    return int(any(row.lost or row.problems for row in rows))


if __name__ == "__main__":
    sys.exit(main())
