"""`make bench`: run every benchmark, print its figures beside their floors, write `build/bench.json`.

A timing is a benchmark and never a test: nothing here passes or fails.
"""

import argparse
import importlib
import json
import platform
import sys
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

BENCHMARKS = sorted(path.stem for path in Path(__file__).parent.glob("bench_*.py"))


def main() -> int:
    """Run the benchmarks named on the command line (default: all) and return 0."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("names", nargs="*", default=BENCHMARKS, help=f"among {', '.join(BENCHMARKS)}")
    parser.add_argument("--output", type=Path, default=Path("build/bench.json"))
    options = parser.parse_args()
    table = Table(title=f"{platform.machine()}, Python {platform.python_version()}")
    for column in ("figure", "value", "floor or peer", "", "ratio"):
        table.add_column(column, justify="left" if column in ("figure", "floor or peer") else "right")
    rows = []
    for name in options.names:
        for row in importlib.import_module(f"tests.bench.{name}").measure():
            rows.append({"benchmark": name, **asdict(row), "ratio": row.ratio})
            table.add_row(
                row.name,
                f"{row.value:,.4g} {row.unit}",
                row.floor_name,
                f"{row.floor:,.4g} {row.unit}",
                f"{row.ratio:.2f}",
            )
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(rows, indent=1) + "\n")
    Console().print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
