"""A histogram that takes a value many times."""

from __future__ import annotations

from kerneld.histogram import BatchHistogram


def test_buckets_count_what_is_at_most_their_bound() -> None:
    histogram = BatchHistogram((1.0, 2.0))

    histogram.observe(1.0, 3)
    histogram.observe(1.5)
    histogram.observe(9.0, 2)

    assert histogram.buckets() == [("1.0", 3), ("2.0", 4), ("+Inf", 6)]
    assert histogram.total == 3.0 + 1.5 + 18.0
