"""Names in bodies and results (`episodes/1.0.3`, a run's id) to folders, and the newest where none is named."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from brain_service.datasets.dataset import Dataset
from brain_service.datasets.versions import list_versions
from brain_service.errors import NotFoundError
from brain_service.settings import Settings

__all__ = ["checkpoint_path", "dataset_folder", "dataset_identity", "dataset_path", "job_dataset", "run_id_of"]


def dataset_path(settings: Settings, reference: str | None) -> Path:
    """Return the version folder of `name`, `name/1.0.3`, or of the dataset that was converted last.

    Raises:
        NotFoundError: there is no such dataset or version; names those that are.
    """
    root = settings.datasets_dir
    found = {
        f"{folder.name}/{version}": folder / version
        for folder in (sorted(root.iterdir()) if root.is_dir() else ())
        for version in list_versions(folder)
    }
    if not found:
        raise NotFoundError(
            "there is no dataset yet; POST /convert makes one of what was recorded", field="dataset"
        )
    if reference is None:
        return max(found.values(), key=lambda path: path.stat().st_mtime_ns)
    # Versions come oldest first: of several, the newest stays.
    matching = [path for name, path in found.items() if reference in (name, path.parent.name)]
    if not matching:
        raise NotFoundError(f"no dataset {reference!r}; there are {', '.join(found)}", field="dataset")
    return matching[-1]


def dataset_folder(settings: Settings, result: Mapping[str, Any]) -> Path:
    """Return where the dataset of a job's `convert` stage lies, or will."""
    return settings.datasets_dir / str(result["dataset"]["name"]) / str(result["dataset"]["version"])


def run_id_of(job_id: str) -> str:
    """Return the id of a job's run away from here: names in the cloud have no capital letters."""
    return job_id.lower()


def job_dataset(settings: Settings, result: Mapping[str, Any]) -> Path:
    """Return the version folder of the dataset that a job's `convert` stage made or found.

    Raises:
        NotFoundError: it was deleted since.
    """
    return dataset_path(settings, f"{result['dataset']['name']}/{result['dataset']['version']}")


def dataset_identity(dataset: Dataset) -> dict[str, str]:
    """Return what tells a dataset's version from every other, as checkpoints keep it."""
    manifest = dataset.manifest
    return {"name": manifest.name, "version": manifest.version, "source_digest": manifest.source_digest}


def checkpoint_path(settings: Settings, reference: str | None) -> Path:
    """Return the folder of a run's checkpoints, or that of the newest run that has any.

    Raises:
        NotFoundError: there is no such run; names those that are.
    """
    root = settings.checkpoints_dir
    # By time: the names that people give stand in no order.
    written = ((_written_ns(folder), folder.name) for folder in (root.iterdir() if root.is_dir() else ()))
    runs = [root / name for _, name in sorted(each for each in written if each[0] is not None)]
    if not runs:
        raise NotFoundError("there is no checkpoint yet; POST /train makes one", field="checkpoint")
    if reference is None:
        return runs[-1]
    matching = [folder for folder in runs if folder.name == reference]
    if not matching:
        names = ", ".join(folder.name for folder in runs[-10:])
        raise NotFoundError(f"no run {reference!r} with a checkpoint; the newest are {names}", field="checkpoint")
    return matching[0]


def _written_ns(folder: Path) -> int | None:
    """Return when a run's last checkpoint was made, None where it has none."""
    steps = (child for child in folder.iterdir() if child.name.isdigit()) if folder.is_dir() else ()
    return max((step.stat().st_mtime_ns for step in steps), default=None)
