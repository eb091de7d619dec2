"""The model that is evaluated, from wherever it came, and the episodes that it may be judged on."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from brain_service.datasets.dataset import Dataset, open_dataset
from brain_service.errors import BrainError, InvalidError
from brain_service.model.config import CoreModelConfig
from brain_service.model.core import Params
from brain_service.pixels import ImageInput
from brain_service.spec import EpisodeSpec
from brain_service.training.checkpointing import LoadedCheckpoint
from brain_service.training.normalisation import Normaliser

__all__ = ["Subject", "require_same_features"]


@dataclass(frozen=True)
class Subject:
    """A model with all that its numbers depend on; `trained_on` names the dataset version of its training."""

    name: str
    config: CoreModelConfig
    params: Params
    normaliser: Normaliser
    spec: EpisodeSpec
    trained_on: Mapping[str, Any] | None = None
    """`name`, `version` and `source_digest`; None where nobody knows."""
    image: ImageInput | None = None
    """What the model sees of the camera."""

    @staticmethod
    def of_checkpoint(loaded: LoadedCheckpoint, name: str) -> "Subject":
        """Return a checkpoint as a subject."""
        return Subject(
            name,
            loaded.config,
            loaded.params,
            loaded.normaliser,
            loaded.spec,
            loaded.meta.get("dataset"),
            loaded.image,
        )

    def trained_episodes(self, dataset: Dataset) -> frozenset[str] | None:
        """Return the ids of the episodes that the model was trained on, None where they cannot be known.

        The version of its training is the dataset itself or lies beside it (`<name>/<version>`).
        """
        if self.trained_on is None:
            return None
        trained = dataset
        if self.trained_on["source_digest"] != dataset.manifest.source_digest:
            try:
                folder = dataset.path.parent.parent / self.trained_on["name"] / self.trained_on["version"]
                trained = open_dataset(folder)
            except BrainError:
                return None
            if trained.manifest.source_digest != self.trained_on["source_digest"]:
                return None
        return frozenset(entry.episode_id for entry in trained.manifest.splits.get("train", ()))


def require_same_features(subject: Subject, dataset: Dataset) -> None:
    """Check that the model was made for the dataset's features.

    Raises:
        InvalidError: it was not; names the features that differ.
    """
    for part in ("observation", "action"):
        ours, theirs = getattr(subject.spec, part), getattr(dataset.spec, part)
        if ours != theirs:
            differing = sorted(path for path in ours.keys() | theirs.keys() if ours.get(path) != theirs.get(path))
            raise InvalidError(
                f"{part}: the {subject.name} and {dataset.location} differ in {', '.join(differing)}; "
                "evaluate on a dataset of the same features",
                field=f"{part}/{differing[0]}",
            )
