"""`brain export-dataset` and `brain import-dataset`: datasets to and from other formats."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from brain_service.terminal import progress_bar, say, say_json

__all__ = ["add_format_commands"]

EXPORT_EXAMPLES = """\
examples:
  brain export-dataset --dataset ./datasets/episodes --output-dir ./lerobot --format lerobot
  brain export-dataset --dataset ./datasets/episodes/1.0.0 --output-dir ./lr --format lerobot --images --fps 30
  brain export-dataset --dataset ./datasets --output-dir ./mcap --format mcap --split val

The folder appears whole or not at all. lerobot: LeRobot v3.0 (parquet, no video; images only with --images).
mcap: one file an episode, for Foxglove and rerun.
"""

IMPORT_EXAMPLES = """\
examples:
  brain import-dataset --from ./bridge/1.0.0 --format rlds --output-dir ./brain/episodes
  brain import-dataset --from ./bridge --format rlds --output-dir ./episodes --observation state,image_0 --fps 5
  brain import-dataset --from ./aloha --format lerobot --output-dir ./episodes
  brain convert --input-dir ./episodes --output-dir ./datasets

Episodes that are there already are skipped, so the same call takes an interrupted import up again.
"""

Run = Callable[[argparse.Namespace], int]


def add_format_commands(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `export-dataset` and `import-dataset` to the parser of `brain`."""

    def command(name: str, run: Run, summary: str, examples: str) -> argparse.ArgumentParser:
        added = commands.add_parser(
            name,
            help=summary,
            description=summary,
            epilog=examples,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        added.set_defaults(run=run)
        added.add_argument("--json", action="store_true", help="print JSON")
        return added

    export = command("export-dataset", _export, "Write a dataset in another format.", EXPORT_EXAMPLES)
    export.add_argument("--dataset", type=Path, required=True, help="a dataset, or a folder that holds one")
    export.add_argument("--output-dir", type=Path, required=True, help="a new folder")
    export.add_argument("--format", choices=["lerobot", "mcap"], required=True)
    export.add_argument("--split", action="append", help="only this split; repeat it for several (default: all)")
    export.add_argument("--fps", type=int, help="lerobot: frames a second (default: from the control period)")
    export.add_argument("--robot-type", metavar="NAME", help="the robot's kind (default: the episodes' robot_id)")
    export.add_argument(
        "--images", action="store_true", help="lerobot: keep images, as PNG or JPEG in the parquet"
    )

    imported = command("import-dataset", _import, "Read a foreign dataset into capture logs.", IMPORT_EXAMPLES)
    imported.add_argument("--from", dest="source", type=Path, required=True, metavar="PATH", help="its folder")
    imported.add_argument("--output-dir", type=Path, required=True, help="a directory of episodes")
    imported.add_argument("--format", choices=["lerobot", "rlds"], required=True)
    imported.add_argument("--observation", type=_names, metavar="A,B", help="features to observe (default: all)")
    imported.add_argument("--action", type=_names, metavar="C", help="features to command (default: all)")
    imported.add_argument(
        "--profile", choices=["rlds", "oxe"], help="rlds: what the last step means (default: zeros there tell)"
    )
    imported.add_argument("--fps", type=float, help="steps a second, where the dataset tells no times")


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _export(options: argparse.Namespace) -> int:
    from brain_service.datasets.formats import export_dataset

    with progress_bar("exporting") as progress:
        report = export_dataset(
            options.dataset,
            options.output_dir,
            options.format,
            splits=options.split,
            fps=options.fps,
            robot_type=options.robot_type,
            images=options.images,
            progress=progress,
        )
    if options.json:
        say_json(report.to_json())
        return 0
    say(f"{report.episodes} episodes, {report.steps} steps in {report.output_dir}")
    return _say_notes(report.facts, report.left_out, report.warnings)


def _import(options: argparse.Namespace) -> int:
    from brain_service.datasets.formats import ImportOptions, import_dataset

    chosen = ImportOptions(options.observation, options.action, options.profile, options.fps)
    with progress_bar("importing") as progress:
        report = import_dataset(options.source, options.output_dir, options.format, chosen, progress=progress)
    if options.json:
        say_json(report.to_json())
        return 0
    say(
        f"{report.episodes} episodes, {report.steps} steps in {report.output_dir}; "
        f"{report.skipped} were there already, {sum(item['episodes'] for item in report.quarantined)} left out"
    )
    for item in report.quarantined:
        say(f"left out      {item['place']}: {item['reason']}")
    return _say_notes(report.facts, report.left_out, report.warnings)


def _say_notes(facts: dict[str, Any], left_out: dict[str, str], warnings: list[str]) -> int:
    for name, value in facts.items():
        say(f"{name:13} {value}")
    for name, reason in left_out.items():
        say(f"without       {name}: {reason}")
    for warning in warnings:
        say(f"warning       {warning}")
    return 0
