"""What is wrong with a dataset before anybody trains on it: measures, findings that name episodes, a page."""

from typing import TYPE_CHECKING

from brain_service.lazy import lazy_names

if TYPE_CHECKING:
    from brain_service.datasets.quality.document import QualityReport
    from brain_service.datasets.quality.findings import Finding
    from brain_service.datasets.quality.limits import Limits
    from brain_service.datasets.quality.measure import measure_quality
    from brain_service.datasets.quality.page import render_page

__all__ = ["Finding", "Limits", "QualityReport", "measure_quality", "render_page"]

__getattr__ = lazy_names(
    __name__,
    {
        "Finding": "findings",
        "Limits": "limits",
        "QualityReport": "document",
        "measure_quality": "measure",
        "render_page": "page",
    },
)
