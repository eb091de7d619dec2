"""`brain convert`: episodes to a dataset by hand, with a bar, and a summary for people or JSON for programs."""

import argparse
import json
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from brain_service.datasets.convert import ConvertReport

__all__ = ["add_convert_arguments", "run_convert"]

_SHOWN = 5


def add_convert_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what `brain convert` takes."""
    parser.add_argument("--input-dir", type=Path, required=True, help="a directory of episodes, or one file")
    parser.add_argument("--output-dir", type=Path, required=True, help="<name>/<x.y.z>/ is made in here")
    parser.add_argument("--name", default="episodes", help="the dataset's name (default: %(default)s)")
    parser.add_argument("--profile", choices=["oxe", "rlds"], default="oxe", help="meaning of the last step")
    parser.add_argument(
        "--val-fraction", type=float, default=0.1, help="share of the episodes held out (default: %(default)s)"
    )
    parser.add_argument("--compress", action="store_true", help="also write gzip shards for transport")
    parser.add_argument(
        "--drop-missing", action="store_true", help="leave out episodes whose files are gone (default: they stay)"
    )
    parser.add_argument("--jobs", type=int, help="processes that read (default: one a core, at most 4)")
    parser.add_argument("--json", action="store_true", help="print the whole report, as where the output is piped")


def run_convert(options: argparse.Namespace, bar: AbstractContextManager[Callable[..., None]]) -> str:
    """Convert and return what went where, to be printed; `bar` shows the progress over files."""
    from brain_service.datasets.convert import convert_directory_to_tfrecord

    with bar as report:
        done = convert_directory_to_tfrecord(
            options.input_dir,
            options.output_dir,
            options.compress,
            name=options.name,
            profile=options.profile,
            val_fraction=options.val_fraction,
            drop_missing=options.drop_missing,
            jobs=options.jobs,
            progress=report,
        )
    return summary(done) if sys.stdout.isatty() and not options.json else json.dumps(done.to_json(), indent=2)


def summary(report: "ConvertReport") -> str:
    """Return what went where in a few lines; of long lists the first files."""
    splits = ", ".join(f"{count} {split}" for split, count in sorted(report.splits.items()))
    state = "unchanged since" if report.reused else "wrote"
    lines = [
        f"{state} {report.dataset_dir}",
        f"  {report.episodes} episodes ({splits}), {report.steps} steps, "
        f"{report.shards} shards ({report.shared_shards} shared with the version before)",
        f"  files: {len(report.new)} new, {len(report.changed)} changed, {len(report.unchanged)} unchanged",
    ]
    lines += _list("still open, skipped", report.skipped_open)
    lines += _list("gone, episodes kept", report.kept)
    lines += _list("gone, episodes dropped", report.dropped)
    lines += _list("left out", [f"{item['file']}: {item['reason']}" for item in report.quarantined])
    lines += _list("damaged version passed over", [f"{v['version']}: {v['reason']}" for v in report.passed_over])
    lines += _list("unknown shard set aside", report.orphans)
    lines += [f"  archive: {report.archive_dir}"] * (report.archive_dir is not None)
    return "\n".join(lines)


def _list(label: str, items: list[str]) -> list[str]:
    if not items:
        return []
    more = [f"    and {len(items) - _SHOWN} more (--json lists them)"] * (len(items) > _SHOWN)
    return [f"  {label}: {len(items)}", *(f"    {item}" for item in items[:_SHOWN]), *more]
