"""The window towards another host, and the reports about it."""

from __future__ import annotations

from dataplane.sleeve import control
from dataplane.sleeve.loss import Shape
from dataplane.sleeve.partner import MARKS_MAX, STALL_S, WINDOW_MIN_BYTES, Partner
from dataplane.sleeve.trial import Trial
from dataplane.sleeve.wire import FRAME_MAX_BYTES, Report
from gossip.names import PeerName

INDEX = 7
RECORD = 64_000


def make() -> Partner:
    partner = Partner(control.Peer(PeerName(b"p" * 8), bytes(32), (), (), True))
    partner.begin_sending(INDEX)
    return partner


def send(partner: Partner, records: int, now: float, counter: int = 0) -> int:
    for _ in range(records):
        counter += 44
        partner.sent(counter, RECORD, now)
    return counter


def report(seen: int, received: int | None = None, backlog: int = 0, session: int = INDEX) -> Report:
    return Report(session, seen, seen if received is None else received, 0, backlog)


def test_the_window_closes_on_what_is_under_way_and_a_report_opens_it() -> None:
    partner = make()
    counter = send(partner, 1 + WINDOW_MIN_BYTES // RECORD, 1.0)
    assert partner.is_blocked(1.0)
    partner.take_report(report(counter), 1.001)
    assert not partner.is_blocked(1.001)
    assert partner.sent_bytes == partner.consumed_bytes


def test_a_window_without_reports_opens_again_after_a_while() -> None:
    partner = make()
    send(partner, 1 + WINDOW_MIN_BYTES // RECORD, 1.0)
    assert partner.is_blocked(1.0)
    assert partner.is_blocked(1.0 + STALL_S * 0.9)
    assert not partner.is_blocked(1.0 + STALL_S * 1.1)
    assert not partner.is_blocked(1.0 + STALL_S * 1.1)


def test_the_window_stays_open_for_a_path_that_holds_much() -> None:
    partner = make()
    counter = 0
    for step in range(200):  # every report is 40 records late, and the other side keeps up
        counter = send(partner, 1, step * 0.001, counter)
        partner.take_report(report(max(0, counter - 40 * 44)), step * 0.001)
    assert not partner.is_blocked(1.0)
    assert partner.window_bytes >= 40 * RECORD + WINDOW_MIN_BYTES


def test_what_waits_at_the_other_side_does_not_widen_the_window() -> None:
    partner = make()
    counter = 0
    for step in range(200):  # the same, but all of it waits in the other side's socket
        counter = send(partner, 1, step * 0.001, counter)
        partner.take_report(report(max(0, counter - 40 * 44), backlog=40 * RECORD), step * 0.001)
    assert partner.window_bytes <= 2 * WINDOW_MIN_BYTES
    assert partner.is_blocked(0.2)


def test_the_window_follows_a_path_that_became_shorter() -> None:
    partner = make()
    counter = 0
    for step in range(1000):
        counter = send(partner, 1, step * 0.001, counter)
        late = 40 if step < 100 else 0
        partner.take_report(report(max(0, counter - late * 44)), step * 0.001)
    assert partner.window_bytes < 1.01 * WINDOW_MIN_BYTES


def test_reports_of_another_session_and_older_ones_change_nothing() -> None:
    partner = make()
    send(partner, 10, 1.0)
    assert partner.take_report(report(440, session=INDEX + 1), 1.0) == 0
    assert partner.consumed_bytes == 0
    partner.take_report(report(440), 1.0)
    consumed = partner.consumed_bytes
    assert partner.take_report(report(44), 1.1) == 0
    assert partner.consumed_bytes == consumed == 10 * RECORD
    assert partner.reported is not None and partner.reported.seen == 440


def test_a_report_says_how_much_was_lost_since_the_last() -> None:
    partner = make()
    send(partner, 20, 1.0)
    assert partner.take_report(report(440, 430), 1.0) == 10
    assert partner.take_report(report(880, 869), 1.1) == 1
    assert partner.meter.loss > 0.0


def test_reports_that_make_no_sense_do_no_harm() -> None:
    partner = make()
    send(partner, 10, 1.0)
    partner.take_report(Report(INDEX, 2**64 - 1, 0, 0, 2**32 - 1), 1.0)
    partner.take_report(Report(INDEX, 2**64 - 1, 2**64 - 1, 0, 0), 1.1)
    assert partner.consumed_bytes == partner.sent_bytes
    assert 0.0 <= partner.meter.loss <= 1.0
    assert not partner.is_blocked(1.2)


def test_a_new_session_begins_with_an_open_window() -> None:
    partner = make()
    send(partner, 1 + WINDOW_MIN_BYTES // RECORD, 1.0)
    assert partner.is_blocked(1.0)
    partner.begin_sending(INDEX + 1)
    assert not partner.is_blocked(1.0)
    assert partner.take_report(report(440), 1.0) == 0


def test_what_is_remembered_of_records_under_way_is_bounded() -> None:
    partner = make()
    for counter in range(2 * MARKS_MAX):
        partner.sent(counter + 1, 100, 1.0)
    assert len(partner.marks) == MARKS_MAX
    partner.take_report(report(2 * MARKS_MAX), 1.0)
    assert partner.consumed_bytes == partner.sent_bytes


def test_a_record_holds_what_its_shape_and_way_allow() -> None:
    partner = make()
    partner.trial = Trial(1472, may_segment=True)
    partner.trial.proven = 0
    assert partner.capacity() > 60_000
    partner.meter.shape = Shape(4, 2)
    assert 3 * 1456 < partner.capacity() <= 4 * 1456 - 16
    partner.trial = Trial(20_000, may_segment=True)
    partner.trial.proven, partner.meter.shape = 0, Shape(64, 0)
    assert partner.capacity() <= FRAME_MAX_BYTES + 2
