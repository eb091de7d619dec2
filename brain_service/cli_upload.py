"""`brain upload`: datasets and folders to a bucket by hand, over the queue that the daemon's jobs use."""

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from brain_service.errors import InvalidError, NotFoundError
from brain_service.settings import load_settings
from brain_service.terminal import byte_bar, say, say_json, size_text

if TYPE_CHECKING:
    from brain_service.cloud.upload_queue import UploadQueue, UploadReport

__all__ = ["add_upload_command"]

_ABOUT = """\
Upload a directory to Google Cloud Storage.

DIR may be a dataset version (DIR/manifest.json), a dataset's folder (its newest version goes), a root of datasets
(the newest version of each), or any folder. A version goes to gs://B/P/NAME/X.Y.Z/, a folder's files to gs://B/P/.
Nothing on the bucket is ever overwritten or deleted. What was sent already is not sent again: after Ctrl-C, a kill
or a broken link the same command goes on where it was.
"""
_EXAMPLES = """\
exit code: 0 all of it is there, 2 it is not; the same command goes on

examples:
  brain upload --local-dir ./datasets --gcs-bucket my-robots
  brain upload --local-dir ./datasets/episodes/1.0.3 --gcs-bucket my-robots --gcs-prefix fleet/arm-7
  brain upload --local-dir ./models/3f9a1c0d2b4e5f60 --gcs-bucket my-robots --gcs-prefix models/3f9a1c0d2b4e5f60
  brain upload --local-dir ./datasets --gcs-bucket my-robots --json | jq -r '.[].location'
  brain upload --list                                  # what is in the queue, and how far it is

credentials:
  gcloud auth application-default login                # or cloud.credentials_file in brain.toml
"""


@dataclass(frozen=True, slots=True)
class _Item:
    """A folder to be uploaded; `is_version` tells a dataset version from any folder."""

    folder: Path
    is_version: bool


def add_upload_command(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `upload` to the parser of `brain`."""
    added = commands.add_parser(
        "upload",
        help="Upload datasets, or any directory, to Google Cloud Storage.",
        description=_ABOUT,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    added.set_defaults(run=_run)
    added.add_argument("--local-dir", type=Path, metavar="DIR", help="what to upload")
    added.add_argument("--gcs-bucket", metavar="B", help="name of the bucket (default: cloud.bucket)")
    added.add_argument(
        "--gcs-prefix",
        metavar="P",
        help="folder in the bucket (default: cloud.prefix, then /datasets for datasets)",
    )
    added.add_argument("--list", action="store_true", help="show the queue and upload nothing")
    added.add_argument("--json", action="store_true", help="print JSON")
    added.add_argument("--data-dir", type=Path, help="everything the daemon keeps; its brain.db holds the queue")
    added.add_argument("--config", type=Path, help="settings file (default: brain.toml)")


def _run(options: argparse.Namespace) -> int:
    from brain_service.cloud.upload_queue import UploadQueue

    settings = load_settings({"data_dir": options.data_dir}, config=options.config)
    if options.list:
        with UploadQueue(settings.database, settings.cloud) as queue:
            return _show(queue, options.json)
    if options.local_dir is None:
        raise InvalidError("--local-dir is missing: name the directory to upload", field="local_dir")
    bucket = (options.gcs_bucket or settings.cloud.bucket or "").removeprefix("gs://").rstrip("/")
    if not bucket or "/" in bucket:
        raise InvalidError(
            f"--gcs-bucket {bucket!r} names no bucket; give a bare name, or set cloud.bucket", field="gcs_bucket"
        )
    items = _items(options.local_dir)
    prefix = options.gcs_prefix
    if prefix is None:
        prefix = settings.cloud.prefix + ("/datasets" if items[0].is_version else "")
    destination = f"gs://{bucket}/{prefix.strip('/')}".rstrip("/")
    with UploadQueue(settings.database, settings.cloud) as queue:
        reports = [_upload(queue, item, destination) for item in items]
    if options.json:
        say_json([report.to_json() for report in reports])
    else:
        for report in reports:
            say(_summary(report))
    return 0


def _items(local_dir: Path) -> list[_Item]:
    """Return what there is to upload at a place.

    Raises:
        NotFoundError: there is no such directory.
    """
    from brain_service.datasets.versions import list_versions

    if not local_dir.is_dir():
        raise NotFoundError(f"no directory at {local_dir}; give one with --local-dir")
    if _is_version(local_dir):
        return [_Item(local_dir, True)]
    folders = [local_dir, *sorted(path for path in local_dir.iterdir() if path.is_dir())]
    found = [_Item(folder / versions[-1], True) for folder in folders if (versions := list_versions(folder))]
    newest = [item for item in found if _is_version(item.folder)]
    return newest or [_Item(local_dir, False)]


def _is_version(folder: Path) -> bool:
    """Tell whether a folder is a dataset version; a bundle has a manifest too, of another kind."""
    from brain_service.datasets.layout import INFO_FILE
    from brain_service.datasets.manifest import MANIFEST_FILE

    return (folder / MANIFEST_FILE).is_file() and (folder / INFO_FILE).is_file()


def _upload(queue: "UploadQueue", item: _Item, destination: str) -> "UploadReport":
    name = item.folder.absolute().name
    add: Callable[..., str] = queue.add_dataset if item.is_version else queue.add_folder
    with byte_bar(f"reading {name}") as report:
        upload_id = add(item.folder, destination, report)
    if not sys.stderr.isatty():
        return queue.work(upload_id)
    with byte_bar(f"uploading {name}") as report:
        return queue.work(upload_id, report)


def _summary(report: "UploadReport") -> str:
    rate = f" at {size_text(report.sent_bytes / report.duration_s)}/s" if report.sent_bytes else ""
    retries = f", {report.retries} retries" if report.retries else ""
    return (
        f"{report.location}/  {report.sent} files sent ({size_text(report.sent_bytes)}{rate}{retries}), "
        f"{report.skipped} there already, {size_text(report.size_bytes)} in all"
    )


def _show(queue: "UploadQueue", as_json: bool) -> int:
    found: list[dict[str, Any]] = [view.to_json() for view in queue.list()]
    if as_json:
        say_json(found)
        return 0
    for item in found:
        done = f"{item['done_files']} of {item['files']} files, {size_text(item['done_bytes'])}"
        size = size_text(item["size_bytes"])
        say(f"{item['state']:8} {item['location']}  {done} of {size}  from {item['folder']}")
        if item["error"]:
            say(f"         {item['error']['detail']}")
    if not found:
        say("nothing in the queue")
    return 0
