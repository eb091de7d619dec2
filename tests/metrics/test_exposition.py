"""Instruments and the page, judged by Prometheus' own parser: what goes in comes out, whatever the labels hold."""

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from brain_service.metrics import (
    LATENCY_BUCKETS_S,
    OTHER,
    Growing,
    Histogram,
    HistogramFamily,
    Page,
)


def parsed(page: Page) -> dict[str, Any]:
    """Return the families of a page by name, as Prometheus reads them."""
    return {family.name: family for family in text_string_to_metric_families(page.render().decode())}


@given(st.lists(st.floats(min_value=0, max_value=1e4)))
def test_buckets_count_what_is_at_most_their_bound(values: list[float]) -> None:
    histogram = Histogram()
    for value in values:
        histogram.observe(value)
    page = Page()
    page.histogram("x_seconds", "about", histogram)
    samples = {
        (sample.name, sample.labels.get("le")): sample.value for sample in parsed(page)["x_seconds"].samples
    }
    for bound in (*LATENCY_BUCKETS_S, math.inf):
        text = "+Inf" if bound == math.inf else repr(bound) if not float(bound).is_integer() else str(int(bound))
        assert samples["x_seconds_bucket", text] == sum(value <= bound for value in values)
    assert samples["x_seconds_count", None] == len(values) == histogram.count
    assert samples["x_seconds_sum", None] == pytest.approx(sum(values))


@given(st.lists(st.floats(min_value=1e-5, max_value=9), min_size=1), st.sampled_from([0.5, 0.99]))
def test_a_quantile_is_the_bound_of_its_bucket(values: list[float], share: float) -> None:
    histogram = Histogram()
    for value in values:
        histogram.observe(value)
    at = sorted(values)[math.ceil(share * len(values)) - 1]
    assert histogram.quantile(share) == next(bound for bound in LATENCY_BUCKETS_S if at <= bound)


def test_nothing_observed_has_no_quantile_and_much_has_no_bound() -> None:
    histogram = Histogram()
    assert histogram.quantile(0.5) is None
    histogram.observe(1e6)
    assert histogram.quantile(0.5) == math.inf


@given(st.text(), st.text(), st.floats(allow_nan=False))
def test_labels_and_help_come_back_as_they_were(label: str, about: str, value: float) -> None:
    page = Page()
    page.gauge("x", about, [({"name": label}, value)])
    (sample,) = parsed(page)["x"].samples
    assert sample.value == value
    # The parser splits lines as Python does, where the format knows "\n" alone.
    if len(label.splitlines()) < 2 and len(about.splitlines()) < 2:
        assert sample.labels == {"name": label}


def test_no_label_can_make_up_more_series_than_the_bound() -> None:
    histograms = HistogramFamily("y_seconds", "about", ("path", "status"), max_series=3)
    for number in range(50):
        histograms.of(f"/{number}", "2xx").observe(1.0)
    assert len(list(histograms.series())) == 4
    assert histograms.of(OTHER, OTHER).count == 47
    page = Page()
    page.histograms(histograms)
    counts = [sample.value for sample in parsed(page)["y_seconds"].samples if sample.name == "y_seconds_count"]
    assert sum(counts) == 50


def test_what_is_unknown_is_left_out_and_what_is_odd_has_a_name() -> None:
    page = Page()
    page.gauge("a", "about", None)
    page.gauge("b", "about", [({"l": "x"}, None)])
    page.gauge("c", "about", [({"l": "1"}, math.nan), ({"l": "2"}, -math.inf), ({"l": "3"}, True)])
    values = {sample.labels["l"]: sample.value for sample in parsed(page)["c"].samples}
    assert set(parsed(page)) == {"c"}
    assert math.isnan(values["1"])
    assert (values["2"], values["3"]) == (-math.inf, 1.0)
    with pytest.raises(AssertionError, match="_total"):
        page.counter("d", "about", 1)
    with pytest.raises(AssertionError, match="one family"):
        page.gauge("c", "about", 1)


@given(st.lists(st.dictionaries(st.sampled_from("abc"), st.integers(0, 5)), max_size=20))
def test_a_total_over_things_that_come_and_go_never_falls(looks: list[dict[str, int]]) -> None:
    growing, before = Growing(), 0.0
    for look in looks:
        total = growing.take({name: float(count) for name, count in look.items()})
        assert total >= before
        before = total
    assert Growing().take({"a": 3.0}) == 3.0


def test_a_count_that_begins_anew_goes_on_from_there() -> None:
    growing = Growing()
    assert [growing.take(look) for look in ({"a": 2.0}, {"a": 5.0}, {}, {"a": 1.0}, {"a": 0.0, "b": 4.0})] == [
        *(2.0, 5.0, 5.0),
        *(6.0, 10.0),
    ]
