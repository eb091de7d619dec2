"""`cloud-trainer convert`: recorded episodes of a fleet to one RLDS dataset, on this machine or on Dataflow."""

import argparse
import json
from typing import TYPE_CHECKING, cast

from brain_service.datasets.columns import PROFILES, Profile
from brain_service.datasets.convert import SHARD_BYTES, check_options
from brain_service.errors import ConfigError
from cloud_trainer.fleet.run import Run
from cloud_trainer.fleet.sources import find_folders

if TYPE_CHECKING:
    from cloud_trainer.fleet.publish import FleetReport

__all__ = ["main"]

EXAMPLES = """\
examples:
  cloud-trainer convert --inputs 'robots/*/episodes' --output-dir ./datasets --name fleet
  cloud-trainer convert --inputs 'gs://fleet/robots/*/episodes' --output-dir gs://fleet/datasets --name fleet \\
      --runner DataflowRunner --project my-project --region europe-west4 \\
      --temp_location gs://fleet/tmp --sdk_container_image europe-docker.pkg.dev/my-project/brain/beam:1 \\
      --max_num_workers 20

Options that are not listed above are Apache Beam's own. Without --runner it runs here (DirectRunner). The result
is what `brain convert` makes of the same episodes; the same input gives the same version, and nothing is written
twice.
"""


def main(arguments: list[str]) -> int:
    """Convert and print the report; returns the exit code.

    Raises:
        BrainError: an option is wrong, there is nothing to convert, or a worker failed; tells which and why.
    """
    parser = argparse.ArgumentParser(
        prog="cloud-trainer convert",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--inputs",
        nargs="+",
        required=True,
        metavar="PATTERN",
        help="folders of episodes, or patterns of folders or files, local or gs://",
    )
    parser.add_argument("--output-dir", required=True, help="root of datasets, local or gs://")
    parser.add_argument("--name", default="episodes", help="of the dataset (default: %(default)s)")
    parser.add_argument(
        "--profile", choices=PROFILES, default="oxe", help="how episodes end (default: %(default)s)"
    )
    parser.add_argument(
        "--val-fraction", type=float, default=0.1, help="of episodes for validation (default: %(default)s)"
    )
    parser.add_argument(
        "--shard-bytes", type=int, default=SHARD_BYTES, help="most bytes of a shard (default: %(default)s)"
    )
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    options, flags = parser.parse_known_args(arguments)
    template = Run("", "", options.name, cast(Profile, options.profile), options.val_fraction, options.shard_bytes)
    check_options(template.options)
    try:
        from cloud_trainer.fleet.beam import convert_fleet, parse_options
    except ModuleNotFoundError as error:
        if error.name != "apache_beam":
            raise
        raise ConfigError(
            "convert needs Apache Beam, which wants an environment of its own: make fleet, then "
            ".venv/fleet/bin/python -m cloud_trainer convert"
        ) from error
    beam_options = parse_options(flags)
    report = convert_fleet(find_folders(options.inputs), options.output_dir, template, beam_options)
    print(_as_json(report) if options.json else _as_text(report))  # noqa: T201
    return 0


def _as_json(report: "FleetReport") -> str:
    return json.dumps({name: getattr(report, name) for name in report.__struct_fields__}, indent=1)


def _as_text(report: "FleetReport") -> str:
    splits = ", ".join(f"{count} {split}" for split, count in report.splits.items())
    made = f"{report.episodes} episodes ({splits}), {report.steps} steps in {report.shards} shards"
    lines = [f"{report.dataset_dir}: {made}" + (", as it stood already" if report.reused else "")]
    lines += [f"left out: {item['file']}: {item['reason']}" for item in report.quarantined]
    lines += [f"still open: {name}" for name in report.skipped_open]
    return "\n".join(lines)
