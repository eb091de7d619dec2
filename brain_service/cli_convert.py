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
_ABOUT = """\
Convert episodes (.jsonl, .jsonl.zst, .json) into an RLDS dataset that TFDS reads: OUT/NAME/1.0.0/.

Run it again after recording more: it reads what is new or changed and writes the next version. Episodes
that are still open wait for the next run; those that cannot be stored are left out, with the reason.
"""
_EXAMPLES = """\
exit code: 0 a dataset is there (even if files were left out), 2 none could be made

examples:
  brain convert --input-dir ./brain/episodes --output-dir ./datasets
  brain convert --input-dir episode.json --output-dir ./datasets --name one
  brain convert --input-dir ./brain/episodes --output-dir ./datasets --json | jq -r '.quarantined[].reason'

then:
  brain datasets report ./datasets                     # is it fit to train on?
  brain train --data-path ./datasets --checkpoint-dir ./checkpoints/run1 --steps 1000
  brain datasets prune episodes --keep 3 --output-dir ./datasets
"""


def add_convert_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what `brain convert` takes."""
    parser.description, parser.epilog = _ABOUT, _EXAMPLES
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument(
        "--input-dir", type=Path, required=True, metavar="IN", help="a directory of episodes, or one file"
    )
    parser.add_argument(
        "--output-dir", type=Path, required=True, metavar="OUT", help="where NAME/<x.y.z>/ is made"
    )
    parser.add_argument("--name", default="episodes", metavar="NAME", help="of the dataset (default: %(default)s)")
    parser.add_argument(
        "--profile",
        choices=["oxe", "rlds"],
        default="oxe",
        help="oxe: steps as they were recorded (default); rlds: the final observation is one more step",
    )
    parser.add_argument(
        "--val-fraction",
        type=float,
        default=0.1,
        metavar="SHARE",
        help="of the episodes, held out for validation (default: %(default)s)",
    )
    parser.add_argument(
        "--compress", action="store_true", help="also write gzipped shards for transport, beside the dataset"
    )
    parser.add_argument(
        "--drop-missing", action="store_true", help="leave out episodes whose files are gone (default: they stay)"
    )
    parser.add_argument(
        "--jobs", type=int, metavar="N", help="processes that read (default: one a core, at most 4)"
    )
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
    shared = 0 if report.reused else report.shared_shards
    lines = [
        f"{state} {report.dataset_dir}",
        f"  {report.episodes} episodes ({splits}), {report.steps} steps, {report.shards} shards"
        + f" ({shared} shared with the version before)" * bool(shared),
        f"  files: {len(report.new)} new, {len(report.changed)} changed, {len(report.unchanged)} unchanged",
    ]
    lines += _list("still open, skipped", report.skipped_open)
    lines += _list("gone, episodes kept", report.kept)
    lines += _list("gone, episodes dropped", report.dropped)
    lines += _list("left out", [_left_out(item) for item in report.quarantined])
    lines += _list("damaged version passed over", [f"{v['version']}: {v['reason']}" for v in report.passed_over])
    lines += _list("unknown shard set aside", report.orphans)
    lines += [f"  archive: {report.archive_dir}"] * (report.archive_dir is not None)
    lines += [f"next: brain datasets report {report.dataset_dir}"] * (not report.reused)
    return "\n".join(lines)


def _left_out(item: dict[str, str]) -> str:
    """Return the reason with its file named once: most reasons begin with the path and the line."""
    path, file = item["reason"].partition(":")[0], item["file"]
    return item["reason"] if Path(path).name == file else f"{file}: {item['reason']}"


def _list(label: str, items: list[str]) -> list[str]:
    if not items:
        return []
    more = [f"    and {len(items) - _SHOWN} more (--json lists them)"] * (len(items) > _SHOWN)
    return [f"  {label}: {len(items)}", *(f"    {item}" for item in items[:_SHOWN]), *more]
