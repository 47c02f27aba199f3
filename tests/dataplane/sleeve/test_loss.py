"""The loss meter: records shrink with what is lost, and grow again when nothing is."""

from __future__ import annotations

from random import Random

import pytest

from dataplane.sleeve.loss import BURST, EARLY_MAX, GUARD_FROM, GUARD_MEMORY_S, GUARDED, LADDER, LossMeter


def feed(meter: LossMeter, loss: float, start: float, duration: float, rate: int = 10_000) -> float:
    """Reports every 20 ms of a path that loses that share at random."""
    random = Random(5)
    now = start
    owed = 0.0
    while now < start + duration:
        sent = rate // 50
        owed += sent * loss
        lost = min(sent, int(owed + random.random()))
        owed -= lost
        meter.report(sent, lost, now)
        now += 0.02
    return now


def test_a_clean_path_has_bursts() -> None:
    meter = LossMeter()
    feed(meter, 0.0, 0.0, 60.0)
    assert meter.shape == BURST and meter.loss == 0.0


@pytest.mark.parametrize(("loss", "step"), [(0.001, 1), (0.01, 2), (0.06, 3), (0.4, 4)])
def test_records_are_as_small_as_the_loss_asks_for(loss: float, step: int) -> None:
    meter = LossMeter()
    feed(meter, loss, 0.0, 20.0)
    assert meter.shape == LADDER[step][1]
    assert meter.loss == pytest.approx(loss, rel=0.3)


def test_records_grow_back_within_a_minute_when_nothing_is_lost_any_more() -> None:
    meter = LossMeter()
    now = feed(meter, 0.3, 0.0, 20.0)
    now = feed(meter, 0.0, now, 60.0)
    assert meter.shape == BURST


def test_records_grow_back_after_a_pause() -> None:
    meter = LossMeter()
    now = feed(meter, 0.3, 0.0, 20.0)
    meter.report(10, 0, now + 10.0)
    assert meter.shape == BURST


def test_one_lost_ping_is_no_bad_path() -> None:
    meter = LossMeter()
    meter.report(2, 1, 1.0)
    assert meter.loss < 0.003


def test_a_loss_at_the_border_of_two_shapes_does_not_go_to_and_fro() -> None:
    meter = LossMeter()
    feed(meter, 0.0035, 0.0, 10.0)
    assert meter.shape == LADDER[2][1]
    feed(meter, 0.0025, 10.0, 20.0)
    assert meter.shape == LADDER[2][1]


def test_late_datagrams_are_not_lost() -> None:
    meter = LossMeter()
    now = 0.0
    for _ in range(1000):
        meter.report(100, 10, now)
        meter.report(100, -10, now + 0.01)
        now += 0.02
    assert meter.loss == 0.0


def test_pieces_that_are_reported_before_their_record_is_whole_are_not_lost_afterwards() -> None:
    meter = LossMeter()
    now = 0.0
    for _ in range(1000):
        meter.report(100, -10, now)
        meter.report(100, 10, now + 0.01)
        now += 0.02
    assert meter.loss < 0.0001 and meter.shape == BURST


def test_repeated_datagrams_hide_no_more_than_a_record_of_losses() -> None:
    meter = LossMeter()
    for step in range(100):
        meter.report(1000, -1000, step * 0.02)
    meter.report(1000, EARLY_MAX + 100, 2.02)
    assert meter.loss > 0.0


@pytest.mark.parametrize(("sent", "lost"), [(0, 0), (0, -5), (-5, 5), (2**64, -(2**64)), (2**64, 2**64)])
def test_reports_that_make_no_sense_do_no_harm(sent: int, lost: int) -> None:
    meter = LossMeter()
    meter.report(sent, lost, 1.0)
    assert 0.0 <= meter.loss <= 1.0


def test_forged_records_put_a_header_on_every_datagram_for_a_while() -> None:
    """As long as they are remembered, and only where the path itself would have bursts."""
    meter = LossMeter()
    meter.disturbed(GUARD_FROM - 1, 10.0)
    meter.report(1000, 0, 10.0)
    assert meter.shape is BURST
    meter.disturbed(2, 10.0)
    meter.report(1000, 0, 10.1)
    assert meter.shape is GUARDED
    meter.report(1000, 0, 10.0 + GUARD_MEMORY_S)
    assert meter.shape is BURST
    meter.disturbed(1000, 30.0)
    meter.report(1000, 50, 30.0)
    assert meter.shape.parity > 0
