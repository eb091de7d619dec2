"""What does not hold in a dataset version."""

import msgspec

__all__ = ["Damage", "VerifyReport"]


class Damage(msgspec.Struct, frozen=True):
    """One thing that does not hold: in which file, and where known in which episode and record.

    `offset_bytes` is where the damaged record, or the gap between records, begins in the file.
    """

    file: str
    message: str
    episode: str | None = None
    offset_bytes: int | None = None


class VerifyReport(msgspec.Struct, frozen=True):
    """What was read and what does not hold. `sound_episodes` are those whose records are whole."""

    dataset_dir: str
    episodes: int
    sound_episodes: int
    shards: int
    size_bytes: int
    damages: list[Damage]

    @property
    def ok(self) -> bool:
        """Whether everything holds."""
        return not self.damages
