"""`brain datasets`: list datasets, report on the quality of one, verify every byte of one, remove old versions."""

import argparse
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from brain_service.errors import BrainError, InvalidError, NotFoundError, UnavailableError
from brain_service.settings import load_settings
from brain_service.terminal import progress_bar, say, say_json, size_text, table_lines

if TYPE_CHECKING:
    from brain_service.datasets.dataset import Dataset
    from brain_service.datasets.quality import QualityReport

__all__ = ["add_datasets_command"]

LS_EXAMPLES = """\
examples:
  brain datasets ls --data-dir ./brain
  brain datasets ls --output-dir ./datasets --json | jq -r '.[] | select(.newest) | .path'
"""
REPORT_EXAMPLES = """\
exit code: 0 pass, 1 warn, 2 fail (or no report could be made)

examples:
  brain datasets report ./datasets                     # the newest version of the only dataset in there
  brain datasets report ./datasets/episodes/1.0.3 --html report.html
  brain datasets report ./datasets --split train --json | jq -r '.findings[] | .code + " " + .message'
  brain datasets report ./datasets --limit max_action_rate=2.5 --limit max_gap_periods=5
"""
VERIFY_EXAMPLES = """\
exit code: 0 everything holds, 2 something does not

examples:
  brain datasets verify ./datasets/episodes/1.0.3
  brain datasets verify ./datasets --json | jq -r '.damages[] | .file + " " + (.episode // "-")'
"""
PRUNE_EXAMPLES = """\
examples:
  brain datasets prune episodes --keep 3               # says which versions would go, and what that frees
  brain datasets prune episodes --keep 3 --yes
  brain datasets prune episodes --keep 1 --output-dir ./datasets --yes --json | jq -r '.removed[]'
"""

Run = Callable[[argparse.Namespace], int]
_HEADS = ("dataset", "version", "episodes", "steps", "size", "profile", "period", "made (UTC)", "left out", "")
_EPISODES_SHOWN = 20
_MARKS = {"fail": "FAIL", "warn": "warn", "info": "note"}


def add_datasets_command(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `datasets` and its own commands to the parser of `brain`."""
    summary = "List datasets, report on their quality, verify their bytes, remove old versions."
    datasets = commands.add_parser(
        "datasets",
        help=summary,
        description=summary,
        epilog=LS_EXAMPLES
        + "".join(text[text.index("  brain") :] for text in (REPORT_EXAMPLES, VERIFY_EXAMPLES, PRUNE_EXAMPLES)),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    actions = datasets.add_subparsers(dest="action", required=True, metavar="action")

    def action(name: str, run: Run, summary: str, examples: str) -> argparse.ArgumentParser:
        added = actions.add_parser(
            name,
            help=summary,
            description=summary,
            epilog=examples,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        added.add_argument("--json", action="store_true", help="print JSON")
        added.set_defaults(run=run)
        return added

    ls = action("ls", _list, "List datasets and their versions, oldest first.", LS_EXAMPLES)
    _add_place(ls)
    report = action(
        "report",
        _report,
        "Say what is wrong with a dataset before anybody trains on it; writes <version>-report/ beside it.",
        REPORT_EXAMPLES,
    )
    report.add_argument(
        "path",
        help="a version, a dataset's folder (newest version), or a root of one; gs:// with --html or --json",
    )
    report.add_argument("--html", type=Path, help="write the page to this file instead, and nothing else")
    report.add_argument("--split", action="append", default=[], help="only this split; repeat it for several")
    report.add_argument(
        "--limit", action="append", default=[], metavar="NAME=VALUE", help="another limit; docs/data-quality.md"
    )
    verify = action(
        "verify", _verify, "Read every byte of a dataset and name all that is damaged.", VERIFY_EXAMPLES
    )
    verify.add_argument("path", help="a version, a dataset's folder (newest version), or a root of one")
    prune = action(
        "prune",
        _prune,
        "Remove old versions of a dataset; without --yes it only says which.",
        PRUNE_EXAMPLES,
    )
    prune.add_argument("name", help="the dataset, as 'brain datasets ls' calls it")
    prune.add_argument(
        "--keep", type=int, required=True, metavar="N", help="versions that stay, the newest of each profile"
    )
    prune.add_argument("--yes", action="store_true", help="remove them")
    _add_place(prune)


def _add_place(parser: argparse.ArgumentParser) -> None:
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--data-dir", type=Path, help="everything the daemon keeps")
    where.add_argument("--output-dir", type=Path, help="where 'brain convert' wrote <name>/<x.y.z>/")
    parser.add_argument("--config", type=Path, help="settings file (default: brain.toml)")


def _root(options: argparse.Namespace) -> Path:
    if options.output_dir is not None:
        return Path(options.output_dir)
    return load_settings({"data_dir": options.data_dir}, config=options.config).datasets_dir


def _prune(options: argparse.Namespace) -> int:
    from brain_service.datasets.prune import prune_versions

    done = prune_versions(_root(options) / options.name, options.keep, dry_run=not options.yes)
    if options.json:
        say_json(done.to_json())
        return 0
    if not done.removed:
        say(f"nothing to remove: {options.name} has {', '.join(done.kept) or 'no version that can be read'}")
    else:
        verb = "would remove" if done.dry_run else "removed"
        say(f"{verb} {', '.join(done.removed)} ({size_text(done.freed_bytes)}); {', '.join(done.kept)} stay")
    if done.damaged:
        say(f"damaged, left alone: {', '.join(done.damaged)}; 'brain datasets ls' says why")
    if done.removed and done.dry_run:
        say("nothing was removed yet: add --yes. A training that still reads one of them would fail.")
    return 0


def _list(options: argparse.Namespace) -> int:
    found = _versions(_root(options).absolute())
    if options.json:
        say_json(found)
        return 0
    for line in table_lines([_HEADS, *map(_row, found)], right=("steps", "size", "period", "left out")):
        say(line)
    for item in found:
        if item["error"]:
            say(f"damaged: {item['error']}")
    return 0


def _row(item: dict[str, Any]) -> tuple[str, ...]:
    newest = "newest" if item["newest"] else ""
    if item["error"]:
        return (item["name"], item["version"], "damaged", *[""] * (len(_HEADS) - 4), newest)
    return (
        item["name"],
        item["version"],
        ", ".join(f"{split} {count}" for split, count in item["episodes"].items()),
        f"{item['steps']:,}",
        size_text(item["size_bytes"]),
        item["profile"],
        f"{item['control_period_s'] * 1e3:.4g} ms" if item["control_period_s"] else "-",
        item["made"][:16].replace("T", " "),
        str(item["quarantined"]),
        newest,
    )


def _versions(root: Path) -> list[dict[str, Any]]:
    """Return what there is to say of each version below a root.

    Raises:
        NotFoundError: there is none.
    """
    from brain_service.datasets.versions import list_versions

    folders = sorted(folder for folder in root.iterdir() if folder.is_dir()) if root.is_dir() else []
    if list_versions(root):
        folders = [root]
    found: list[dict[str, Any]] = []
    for folder in folders:
        try:
            versions = list_versions(folder)
        except OSError as error:
            # One folder that cannot be read hides no other dataset.
            place = {"name": folder.name, "version": "-", "path": str(folder), "newest": False}
            found.append(place | {"error": f"{folder}: {error.strerror}; check its permissions"})
            continue
        found += [_describe(folder / version, version == versions[-1]) for version in versions]
    if not found:
        raise NotFoundError(
            f"no dataset in {root}; make one with 'brain convert', or name another place with --output-dir"
        )
    return found


def _describe(folder: Path, newest: bool) -> dict[str, Any]:
    from brain_service.datasets.manifest import MANIFEST_FILE, read_manifest

    item = {"name": folder.parent.name, "version": folder.name, "path": str(folder), "newest": newest}
    try:
        manifest = read_manifest(folder)
        made = datetime.fromtimestamp((folder / MANIFEST_FILE).stat().st_mtime, UTC)
    except BrainError as error:
        return item | {"error": error.detail}
    except OSError as error:
        return item | {"error": f"{folder}: {error.strerror}; it went while it was read"}
    return item | {
        "error": None,
        "episodes": manifest.split_episodes(),
        "steps": sum(entry.length for entries in manifest.splits.values() for entry in entries),
        "size_bytes": sum(shard.size_bytes for shard in manifest.shards),
        "profile": manifest.profile,
        "control_period_s": manifest.control_period_s,
        "made": made.isoformat(timespec="seconds"),
        "quarantined": len(manifest.quarantined),
        "skipped_open": len(manifest.skipped_open),
    }


def _report(options: argparse.Namespace) -> int:
    from brain_service.datasets import open_dataset
    from brain_service.datasets.quality import Limits, measure_quality, render_page

    limits = Limits().with_values(dict(_assignment(text) for text in options.limit))
    # Each episode is read once: a cache would only hold memory.
    dataset = open_dataset(options.path, cache_bytes=0)
    beside = None if options.html or options.json else _beside(dataset)
    with progress_bar("measuring steps") as progress:
        report = measure_quality(dataset, options.split, limits, progress)
    files: dict[Path, bytes] = {}
    if options.html:
        files[options.html.absolute()] = render_page(report).encode()
    elif beside:
        files = {beside / "report.html": render_page(report).encode(), beside / "report.json": report.to_json()}
    for file, data in files.items():
        _write(file, data)
    if options.json:
        sys.stdout.write(report.to_json().decode())
    else:
        _summarise(report)
        say(f"written: {', '.join(map(str, files))}")
    return {"pass": 0, "warn": 1, "fail": 2}[report.verdict]


def _beside(dataset: "Dataset") -> Path:
    """Return the folder of a version's report: a version never changes once it is published.

    Raises:
        InvalidError: the dataset lies on a bucket.
    """
    if "://" in dataset.location:
        raise InvalidError(f"{dataset.location} is no folder of this machine; use --html FILE or --json")
    version = dataset.path.absolute()
    return version.with_name(f"{version.name}-report")


def _write(file: Path, data: bytes) -> None:
    from brain_service.durable import write_atomic

    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(file, data)
    except OSError as error:
        raise UnavailableError(
            f"cannot write the report to {file}: {error.strerror}; name a file with --html"
        ) from error


def _assignment(text: str) -> tuple[str, str]:
    name, _, value = text.partition("=")
    return name.strip(), value.strip()


def _summarise(report: "QualityReport") -> None:
    splits = ", ".join(f"{size.episodes} {split}" for split, size in report.splits.items())
    say(f"{report.dataset}: {report.episodes:,} episodes ({splits}), {report.steps:,} steps: {report.verdict}")
    for finding in report.findings:
        say()
        say(f"{_MARKS[finding.severity]}  {finding.code}: {finding.message}")
        say(f"      {finding.fix}")
        if finding.episodes:
            say(f"      episodes: {_some(finding.episodes)}")


def _some(names: list[str]) -> str:
    more = len(names) - _EPISODES_SHOWN
    rest = f" and {more:,} more" if more > 0 else ""
    return f"{' '.join(names[:_EPISODES_SHOWN])}{rest}"


def _verify(options: argparse.Namespace) -> int:
    from brain_service.datasets.verify import verify_dataset

    if "://" in options.path:
        raise InvalidError(
            f"{options.path} is no folder of this machine; download the version and verify it there"
        )
    with progress_bar("verifying bytes") as progress:
        report = verify_dataset(options.path, progress)
    code = 0 if report.ok else 2
    if options.json:
        say_json(msgspec.to_builtins(report))
        return code
    for damage in report.damages:
        where = "" if damage.offset_bytes is None else f" at byte {damage.offset_bytes}"
        who = "" if damage.episode is None else f" episode {damage.episode}:"
        say(f"DAMAGED  {damage.file}{where}:{who} {damage.message}")
    say(
        f"{report.dataset_dir}: {report.sound_episodes} of {report.episodes} episodes sound, "
        f"{report.shards} shards, {size_text(report.size_bytes)}: "
        + (
            "everything holds"
            if report.ok
            else f"{len(report.damages)} things do not hold; restore or convert again"
        )
    )
    return code
