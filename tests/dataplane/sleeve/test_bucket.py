"""Token buckets give what they promise and no more."""

from __future__ import annotations

from dataplane.sleeve.bucket import Bucket


def test_a_burst_then_the_rate() -> None:
    bucket = Bucket(2.0, 3, 10.0)
    assert [bucket.take(10.0) for _ in range(5)] == [True, True, True, False, False]
    assert not bucket.take(10.4)
    assert bucket.take(10.5)
    assert not bucket.take(10.5)


def test_rest_fills_it_no_further_than_the_burst() -> None:
    bucket = Bucket(1.0, 2, 0.0)
    assert [bucket.take(1e6) for _ in range(3)] == [True, True, False]


def test_a_clock_that_stands_still_or_goes_back_gives_nothing() -> None:
    bucket = Bucket(1.0, 1, 5.0)
    assert bucket.take(5.0)
    assert not bucket.take(4.0)
    assert not bucket.take(5.5)
    assert bucket.take(6.0)
