"""What one fleet conversion is asked to do, and where it keeps what is not finished."""

import msgspec

from brain_service.datasets.build import BuildOptions
from brain_service.datasets.columns import Profile
from brain_service.datasets.places import Place, open_place

__all__ = ["PARTS", "SHARDS", "Run"]

PARTS = "parts"
SHARDS = "shards"


class Run(msgspec.Struct, frozen=True):
    """One conversion. It is sent to every worker, so it holds places as text.

    `dataset` is the folder of the dataset's versions, `work` a folder of this run alone.
    """

    dataset: str
    work: str
    name: str
    profile: Profile
    val_fraction: float
    shard_bytes: int

    @property
    def options(self) -> BuildOptions:
        """What shapes the version."""
        return BuildOptions(self.name, self.profile, self.val_fraction, self.shard_bytes)

    @property
    def parts(self) -> Place:
        """Where encoded episodes wait for their shard."""
        return open_place(self.work).child(PARTS)

    @property
    def shards(self) -> Place:
        """Where finished shards wait for the manifest."""
        return open_place(self.work).child(SHARDS)
