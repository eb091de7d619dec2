"""The formats that datasets leave in and come in from, and the two calls that use them."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from brain_service.datasets.dataset import open_dataset
from brain_service.datasets.export_source import ExportNotes, ExportRequest, Progress
from brain_service.datasets.import_log import ImportReport, import_episodes
from brain_service.datasets.import_source import ImportOptions, ImportSource, check_rate
from brain_service.datasets.lerobot_export import LeRobotExport
from brain_service.datasets.lerobot_import import LeRobotImport
from brain_service.datasets.mcap_export import McapExport
from brain_service.datasets.rlds_import import RldsImport
from brain_service.datasets.staging import published_folder
from brain_service.errors import InvalidError, UnavailableError

__all__ = [
    "EXPORT_FORMATS",
    "IMPORT_FORMATS",
    "ExportFormat",
    "ExportReport",
    "ImportFormat",
    "ImportOptions",
    "export_dataset",
    "import_dataset",
]


# Checkable at run time since the tests check every annotation there.
@runtime_checkable
class ExportFormat(Protocol):
    """Writes a dataset into an empty folder that is published when it returns."""

    def write(self, request: ExportRequest, folder: Path) -> ExportNotes:
        """Write every episode of the request.

        Raises:
            InvalidError: the dataset or an option does not fit the format; says what to do.
            CorruptDataError: an episode cannot be read.
            OSError: the medium is full.
        """


@runtime_checkable
class ImportFormat(Protocol):
    """Opens a foreign dataset for reading."""

    def open(self, path: Path, options: ImportOptions) -> ImportSource:
        """Check the dataset's description and return its episodes.

        Raises:
            NotFoundError: nothing there is of this format.
            InvalidError: of another version, or without what an episode needs.
            CorruptDataError: its description cannot be read.
        """


EXPORT_FORMATS: Mapping[str, ExportFormat] = {"lerobot": LeRobotExport(), "mcap": McapExport()}
IMPORT_FORMATS: Mapping[str, ImportFormat] = {"lerobot": LeRobotImport(), "rlds": RldsImport()}


@dataclass(frozen=True)
class ExportReport:
    """What was written, which features are not in it and why, and what to know before using it."""

    output_dir: Path
    format: str
    episodes: int
    steps: int
    left_out: dict[str, str]
    warnings: list[str]
    facts: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """Return the report as a JSON-ready mapping."""
        return asdict(self) | {"output_dir": str(self.output_dir)}


def export_dataset(
    dataset: str | Path,
    output_dir: str | Path,
    format: str,
    *,
    splits: Sequence[str] | None = None,
    fps: int | None = None,
    robot_type: str | None = None,
    images: bool = False,
    progress: Progress | None = None,
) -> ExportReport:
    """Write a dataset, or some of its splits, to a new folder in another format.

    The folder appears whole or not at all; after a kill, start again. `progress(done, total)` counts episodes.
    `fps` is in frames a second (None: from the control period), for LeRobot alone, and so is `images`.

    Raises:
        NotFoundError: no such dataset or split.
        InvalidError: an unknown format, or a dataset that it cannot hold.
        ConflictError: the folder is there already, or another process writes it.
        CorruptDataError: an episode fails its checksum.
        UnavailableError: the medium refuses.
    """
    if format not in EXPORT_FORMATS:
        raise InvalidError(f"format {format!r} is none of {', '.join(EXPORT_FORMATS)}", field="format")
    if fps is not None and fps <= 0:
        raise InvalidError(f"fps {fps} is not positive: give steps a second", field="fps")
    opened = open_dataset(dataset)
    chosen = tuple(dict.fromkeys(splits or opened.splits))
    for split in chosen:
        opened.entries(split)
    request = ExportRequest(opened, chosen, fps, robot_type, images, progress or _ignore_progress)
    final = Path(output_dir).absolute()
    try:
        with published_folder(final) as work:
            notes = EXPORT_FORMATS[format].write(request, work)
    except OSError as error:
        raise UnavailableError(
            f"cannot export {dataset} to {final}: {error.strerror or error}; check permissions and free space, "
            "then start again: nothing half-written was kept"
        ) from error
    return ExportReport(final, format, notes.episodes, notes.steps, notes.left_out, notes.warnings, notes.facts)


def import_dataset(
    path: str | Path,
    output_dir: str | Path,
    format: str,
    options: ImportOptions | None = None,
    *,
    progress: Progress | None = None,
) -> ImportReport:
    """Read a foreign dataset into a directory of capture logs, which `convert` then takes like recorded ones.

    Each episode appears whole or not at all; a second run skips what is there. Episodes that cannot be read or
    that capture refuses are left out with the reason. `progress(done, total)` counts episodes.

    Raises:
        NotFoundError: nothing there is of this format.
        InvalidError: an unknown format, a version or features that cannot be read, or no episode that can.
        CorruptDataError: the dataset's description is damaged.
        ConflictError: another process imports into this directory.
        UnavailableError: the medium refuses.
    """
    if format not in IMPORT_FORMATS:
        raise InvalidError(f"format {format!r} is none of {', '.join(IMPORT_FORMATS)}", field="format")
    options = options or ImportOptions()
    if options.fps is not None:
        check_rate(options.fps, "fps")
    try:
        source = IMPORT_FORMATS[format].open(Path(path), options)
        return import_episodes(source, Path(output_dir).absolute(), format, progress or _ignore_progress)
    except OSError as error:
        raise UnavailableError(
            f"cannot import {path} to {output_dir}: {error.strerror or error}; check permissions and free space, "
            "then start again: what was imported stays and is skipped"
        ) from error


def _ignore_progress(done: int, total: int) -> None:
    """Stand in where nobody watches."""
