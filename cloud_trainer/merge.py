"""`cloud-trainer merge`: several robots' datasets as one, without writing their records again."""

import argparse
import json

from brain_service.datasets.merge import merge_datasets

__all__ = ["main"]

EXAMPLES = """\
examples:
  cloud-trainer merge --inputs datasets/arm/1.0.0 datasets/leg/2.1.0 --output-dir ./datasets --name fleet
  cloud-trainer merge --inputs r7=gs://fleet/r7/episodes r8=gs://fleet/r8/episodes \\
      --output-dir gs://fleet/datasets --name fleet

`<robot>=` names the robot of a dataset; without it, it is the one that its first episode names. An episode that
several datasets hold counts once; of different ones with one id the longest stays, and the others are told.
"""


def main(arguments: list[str]) -> int:
    """Merge and print the report; returns the exit code.

    Raises:
        BrainError: the datasets do not go together, one is damaged, or a place cannot be used; tells why.
    """
    parser = argparse.ArgumentParser(
        prog="cloud-trainer merge",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--inputs", nargs="+", required=True, metavar="[ROBOT=]PLACE", help="dataset versions, local or gs://"
    )
    parser.add_argument("--output-dir", required=True, help="root of datasets, local or gs://")
    parser.add_argument("--name", default="fleet", help="of the merged dataset (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    options = parser.parse_args(arguments)
    report = merge_datasets(options.inputs, options.output_dir, name=options.name)
    if options.json:
        print(json.dumps(report.to_json(), indent=1))  # noqa: T201
        return 0
    splits = ", ".join(f"{count} {split}" for split, count in report.splits.items())
    lines = [
        f"{report.dataset_dir}: {report.episodes} episodes ({splits}) of {len(report.parts)} datasets"
        + (", as it stood already" if report.reused else ""),
        f"{report.whole_shards} of {report.shards} shards as they were; {report.duplicates} episodes were doubled",
        *(f"left out: {item['file']}: {item['reason']}" for item in report.rivals),
    ]
    print("\n".join(lines))  # noqa: T201
    return 0
