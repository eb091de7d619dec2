"""The data report as a document: `report.json`, and what the page is made of."""

from typing import Literal

import msgspec

from brain_service.datasets.quality.coverage import Coverage
from brain_service.datasets.quality.findings import Finding
from brain_service.datasets.quality.jumps import Jumps
from brain_service.datasets.quality.outcomes import Outcomes
from brain_service.datasets.quality.ranges import Dimension
from brain_service.datasets.quality.repeats import Repeats
from brain_service.datasets.quality.timing import Timing

__all__ = ["SCHEMA", "QualityReport", "SplitSize"]

SCHEMA = "continuon-brain/data-report/1"


class SplitSize(msgspec.Struct, frozen=True):
    """Episodes and stored steps of a split."""

    episodes: int
    steps: int


class QualityReport(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that was measured of one dataset version; docs/data-quality.md says what each figure means.

    The same dataset and limits give the same report, byte for byte: it holds neither time nor place.
    """

    schema: str = SCHEMA
    dataset: str
    profile: str
    verdict: Literal["pass", "warn", "fail"]
    findings: list[Finding]
    limits: dict[str, int | float]
    splits: dict[str, SplitSize]
    size_bytes: int
    quarantined: int
    sampled_steps: int
    outcomes: Outcomes
    timing: Timing
    observation: list[Dimension]
    action: list[Dimension]
    repeats: Repeats
    jumps: Jumps
    coverage: Coverage

    @property
    def episodes(self) -> int:
        """Episodes of all measured splits."""
        return sum(size.episodes for size in self.splits.values())

    @property
    def steps(self) -> int:
        """Stored steps of all measured splits."""
        return sum(size.steps for size in self.splits.values())

    def to_json(self) -> bytes:
        """Return the document, indented."""
        return msgspec.json.format(msgspec.json.encode(self), indent=1) + b"\n"
