"""Numbers for Prometheus: instruments that the hot paths feed, and the page that shows them. Imports no room."""

from brain_service.metrics.exposition import CONTENT_TYPE, Page
from brain_service.metrics.growing import Growing
from brain_service.metrics.registry import (
    LATENCY_BUCKETS_S,
    OTHER,
    Histogram,
    HistogramFamily,
)

__all__ = [
    "CONTENT_TYPE",
    "LATENCY_BUCKETS_S",
    "OTHER",
    "Growing",
    "Histogram",
    "HistogramFamily",
    "Page",
]
