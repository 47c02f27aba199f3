"""Trials: which way of sending is asked about, when, and what an answer or its absence changes."""

from __future__ import annotations

from dataplane.sleeve.trial import AGAIN_S, DATAGRAM_BYTES, DATAGRAMS, DOUBT_S, TRIES, Trial, Way
from dataplane.sleeve.wire import SEND_MAX_BYTES


def run(trial: Trial, start: float, end: float, answers: set[Way]) -> list[Way]:
    """Time passes in steps; questions in those ways are answered at once."""
    asked = []
    now = start
    while now < end:
        if (question := trial.due(now)) is not None:
            way, body = question
            asked.append(way)
            if way in answers:
                trial.answered(body, now)
        now += 0.01
    return asked


def test_the_smallest_datagrams_one_by_one_are_used_until_something_is_proven() -> None:
    trial = Trial(1472, may_segment=True)
    assert trial.way == Way(548, False)


def test_the_best_way_is_asked_first_and_its_answer_ends_all_questions() -> None:
    trial = Trial(1472, may_segment=True)
    assert run(trial, 0.0, 3 * AGAIN_S, {Way(1472, True)}) == [Way(1472, True)]
    assert trial.way == Way(1472, True)


def test_each_way_is_tried_some_times_and_then_the_next() -> None:
    trial = Trial(1472, may_segment=True)
    works = Way(1252, False)
    asked = run(trial, 0.0, 20.0, {works})
    assert asked == [
        Way(size, segmented) for size in (1472, 1372) for segmented in (True, False) for _ in range(TRIES)
    ] + [Way(1252, True)] * TRIES + [works]
    assert trial.way == works


def test_better_ways_are_asked_about_again_every_minute() -> None:
    trial = Trial(1472, may_segment=True)
    run(trial, 0.0, 20.0, {Way(1472, False)})
    assert trial.way == Way(1472, False)
    assert run(trial, 20.0, 20.0 + 3 * AGAIN_S, {Way(1472, False)}) == [Way(1472, True)] * TRIES * 3
    run(trial, 300.0, 300.0 + 2 * AGAIN_S, {Way(1472, True)})
    assert trial.way == Way(1472, True)


def test_where_nothing_is_answered_it_begins_anew_after_a_minute() -> None:
    trial = Trial(1472, may_segment=False)
    ways = 1 + len(DATAGRAM_BYTES)
    assert len(run(trial, 0.0, AGAIN_S, set())) == ways * TRIES
    assert trial.way == Way(548, False)
    run(trial, AGAIN_S, 3 * AGAIN_S, {Way(1472, False)})
    assert trial.way == Way(1472, False)


def test_a_card_without_segmentation_is_never_asked_to_segment() -> None:
    assert all(not way.segmented for way in Trial(1472, may_segment=False).ways)


def test_a_narrow_underlay_leaves_out_what_does_not_fit() -> None:
    assert Trial(1300, may_segment=False).ways == [Way(1300, False), Way(1252, False), Way(548, False)]
    assert Trial(500, may_segment=False).ways == [Way(500, False)]


def test_a_question_fits_into_one_send_however_wide_the_underlay() -> None:
    assert DATAGRAMS * Trial(65_000, may_segment=True).ways[0].datagram_bytes <= SEND_MAX_BYTES


def test_answers_that_make_no_sense_change_nothing() -> None:
    trial = Trial(1472, may_segment=True)
    for body in (b"", b"\0", bytes(6), b"\xff" + bytes(4)):
        trial.answered(body, 0.0)
    assert trial.proven is None
    trial.answered(bytes((3,)) + bytes(4), 0.0)
    trial.answered(bytes((5,)) + bytes(4), 0.0)  # late, of a way that is no better
    assert trial.proven == 3


def test_a_refused_way_is_left_at_once_for_the_next() -> None:
    trial = Trial(1472, may_segment=True)
    run(trial, 0.0, 1.0, {Way(1472, True)})
    trial.refused(1.0)
    assert trial.way == Way(1472, False)
    for _ in range(20):
        trial.refused(1.0)
    assert trial.way == Way(548, False)


def test_a_way_in_doubt_is_kept_where_it_is_answered() -> None:
    trial = Trial(1472, may_segment=True)
    run(trial, 0.0, 1.0, {Way(1472, True)})
    trial.doubt(10.0)
    assert run(trial, 10.0, 20.0, {Way(1472, True)}) == [Way(1472, True)]
    assert trial.way == Way(1472, True)


def test_a_way_in_doubt_that_is_not_answered_is_given_up_for_what_works() -> None:
    trial = Trial(1472, may_segment=True)
    run(trial, 0.0, 1.0, {Way(1472, True)})
    trial.doubt(10.0)
    asked = run(trial, 10.0, 40.0, {Way(1252, True)})
    assert asked[: 2 * TRIES] == [Way(1472, True)] * 2 * TRIES
    assert trial.way == Way(1252, True)


def test_doubts_cost_one_question_in_some_seconds() -> None:
    trial = Trial(1472, may_segment=True)
    run(trial, 0.0, 1.0, {Way(1472, True)})
    asked = 0
    for step in range(1000):
        now = 10.0 + step * 0.02
        trial.doubt(now)
        if (question := trial.due(now)) is not None:
            asked += 1
            trial.answered(question[1], now)
    assert asked == 20 // DOUBT_S
