"""Which episodes a fine-tuning sees: enough of them, and of too many the newest with something to imitate."""

from collections.abc import Sequence

from brain_service.datasets.access import Steps, Window
from brain_service.datasets.dataset import Dataset
from brain_service.datasets.manifest import EpisodeEntry
from brain_service.datasets.storage import Folder
from brain_service.errors import InvalidError
from brain_service.training.feed import IMITATED_ROLES

__all__ = ["NewestEpisodes", "require_episodes"]

SPLIT = "train"


class NewestEpisodes(Dataset):
    """A dataset of whose training episodes only the newest `most` are there: ids begin with the time of recording.

    Those with something to imitate come first: what a policy played since must not crowd them out. The other
    splits are whole: they are never trained on.
    """

    def __init__(self, folder: Folder, most: int) -> None:
        super().__init__(folder)
        entries = self.manifest.splits.get(SPLIT, [])
        ranked = sorted(
            range(len(entries)), key=lambda index: (_teaches(entries[index]), entries[index].episode_id)
        )
        self._kept = sorted(ranked[-most:])

    def entries(self, split: str) -> list[EpisodeEntry]:
        """Return a split's index, of the training split the newest only.

        Raises:
            NotFoundError: there is no such split.
        """
        entries = super().entries(split)
        return [entries[index] for index in self._kept] if split == SPLIT else entries

    def windows(self, split: str, wanted: Sequence[Steps]) -> list[Window]:
        """Return windows of a split's episodes, which are counted as in `entries`.

        Raises:
            NotFoundError: there is no such split.
            CorruptDataError: a record is gone or fails its checksum, names shard and byte.
        """
        if split == SPLIT:
            wanted = [steps._replace(episode=self._kept[steps.episode]) for steps in wanted]
        return super().windows(split, wanted)


def require_episodes(dataset: Dataset, least: int) -> int:
    """Return how many episodes have something to imitate, held-out ones included.

    Raises:
        InvalidError: they are fewer than `least`.
    """
    found = sum(_teaches(entry) for split in dataset.splits for entry in dataset.entries(split))
    if found < least:
        raise InvalidError(
            f"{dataset.location} has {found} episodes with steps of {' or '.join(IMITATED_ROLES)}, a fine-tuning "
            f"needs {least}; record {least - found} more, or lower min_episodes",
            field="min_episodes",
        )
    return found


def _teaches(entry: EpisodeEntry) -> bool:
    return any(entry.roles.get(role) for role in IMITATED_ROLES)
