"""A page of metrics in Prometheus' text format, version 0.0.4.

Source: prometheus.io/docs/instrumenting/exposition_formats. Each family is written whole, with HELP and TYPE.
"""

from collections.abc import Iterable, Mapping
from typing import Literal

from brain_service.metrics.registry import Histogram, HistogramFamily

__all__ = ["CONTENT_TYPE", "Page"]

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

Sample = tuple[Mapping[str, str], float | None]


class Page:
    """Collects families in the order they are added; what has no sample is left out."""

    def __init__(self) -> None:
        self._lines: list[str] = []
        self._names: set[str] = set()

    def gauge(self, name: str, about: str, value: "float | Iterable[Sample] | None") -> None:
        """Add a value that goes up and down, or one a set of labels; None is left out.

        Its name ends in its unit if it has one: `_seconds`, `_bytes`.
        """
        self._plain("gauge", name, about, value)

    def counter(self, name: str, about: str, value: "float | Iterable[Sample] | None") -> None:
        """Add a value that only grows; its name ends in `_total`."""
        assert name.endswith("_total"), f"a counter's name ends in _total: {name}"
        self._plain("counter", name, about, value)

    def histograms(self, family: HistogramFamily) -> None:
        """Add every series of a family of histograms."""
        self.histogram(
            family.name,
            family.about,
            [(dict(zip(family.labels, values, strict=True)), each) for values, each in family.series()],
        )

    def histogram(
        self, name: str, about: str, series: "Histogram | Iterable[tuple[Mapping[str, str], Histogram]]"
    ) -> None:
        """Add a histogram, or one a set of labels."""
        found = [({}, series)] if isinstance(series, Histogram) else list(series)
        if not found:
            return
        self._head("histogram", name, about)
        for labels, each in found:
            seen = 0
            # Copied, so that the sum of the buckets is the count on this page, whoever observes meanwhile.
            counts = list(each.counts)
            for bound, count in zip((*each.bounds, float("inf")), counts, strict=True):
                seen += count
                self._sample(f"{name}_bucket", {**labels, "le": _number(bound)}, seen)
            self._sample(f"{name}_sum", labels, each.total)
            self._sample(f"{name}_count", labels, seen)

    def render(self) -> bytes:
        """Return the page."""
        return "".join(f"{line}\n" for line in self._lines).encode()

    def _plain(
        self,
        kind: Literal["gauge", "counter"],
        name: str,
        about: str,
        value: "float | Iterable[Sample] | None",
    ) -> None:
        samples = [({}, value)] if value is None or isinstance(value, int | float) else list(value)
        present = [(labels, found) for labels, found in samples if found is not None]
        if present:
            self._head(kind, name, about)
            for labels, found in present:
                self._sample(name, labels, found)

    def _head(self, kind: str, name: str, about: str) -> None:
        assert name not in self._names, f"one family a name: {name}"
        self._names.add(name)
        said = about.replace("\\", "\\\\").replace("\n", "\\n")
        self._lines += [f"# HELP {name} {said}", f"# TYPE {name} {kind}"]

    def _sample(self, name: str, labels: Mapping[str, str], value: float) -> None:
        told = ",".join(f'{label}="{_escaped(text)}"' for label, text in labels.items())
        self._lines.append(f"{name}{f'{{{told}}}' if told else ''} {_number(value)}")


def _number(value: float) -> str:
    number = float(value)
    if number != number:
        return "NaN"
    if number in (float("inf"), float("-inf")):
        return "+Inf" if number > 0 else "-Inf"
    return str(int(number)) if number.is_integer() and abs(number) < 2**53 else repr(number)


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
