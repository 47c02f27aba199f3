"""Trials: which way of sending is asked about, when, and what an answer or its absence changes."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from dataplane.sleeve.trial import (
    AGAIN_S,
    DATAGRAM_BYTES,
    DATAGRAMS,
    DOUBT_S,
    FINE_BYTES,
    FINE_NUMBER,
    FINE_TRIES,
    TRIES,
    Trial,
    Way,
)
from dataplane.sleeve.wire import SEND_MAX_BYTES


def carry(trial: Trial, start: float, end: float, path_bytes: int) -> list[Way]:
    """The same; questions are answered whose datagrams are not larger than the path takes."""
    asked = []
    now = start
    while now < end:
        if (question := trial.due(now)) is not None:
            asked.append(question[0])
            if question[0].datagram_bytes <= path_bytes:
                trial.answered(question[1], now)
        now += 0.01
    return asked


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
    asked = [way for way in run(trial, 0.0, 20.0, {works}) if way in trial.ways]
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


# Between two steps of the ladder


@given(st.integers(548, 8972), st.sampled_from([1472, 1300, 8972]), st.booleans())
def test_what_lies_between_two_steps_is_found(path_bytes: int, underlay_bytes: int, may_segment: bool) -> None:
    """Whatever the path takes, to a few bytes, with few questions."""
    trial = Trial(underlay_bytes, may_segment)
    asked = carry(trial, 0.0, AGAIN_S, path_bytes)
    best = min(path_bytes, trial.ways[0].datagram_bytes)
    assert best - FINE_BYTES <= trial.way.datagram_bytes <= best
    assert trial.way.segmented is may_segment
    finer = [way for way in asked if way not in trial.ways]
    assert len(finer) <= 9 * FINE_TRIES


def test_a_path_of_700_bytes_is_used_to_the_full_soon() -> None:
    """Large datagrams are swallowed without a word."""
    trial = Trial(1472, may_segment=True)
    carry(trial, 0.0, 15.0, 692)
    assert 692 - FINE_BYTES <= trial.way.datagram_bytes <= 692


def test_a_found_size_is_asked_about_again_with_few_questions() -> None:
    """One step up; a path that takes more is found out within a minute or two."""
    trial = Trial(1472, may_segment=True)
    carry(trial, 0.0, 20.0, 700)
    found = trial.way
    asked = [way for way in carry(trial, 20.0, 20.0 + 3 * AGAIN_S, 700) if way not in trial.ways]
    assert trial.way == found and len(asked) <= 3 * FINE_TRIES
    carry(trial, 300.0, 300.0 + 2 * AGAIN_S, 1000)
    assert 1000 - FINE_BYTES <= trial.way.datagram_bytes <= 1000
    carry(trial, 500.0, 500.0 + 2 * AGAIN_S, 1472)
    assert trial.way == Way(1472, True)


def test_a_found_size_that_no_longer_passes_is_given_up_and_found_anew() -> None:
    """Lost datagrams raise the doubt."""
    trial = Trial(1472, may_segment=True)
    carry(trial, 0.0, 20.0, 1000)
    trial.doubt(20.0)
    carry(trial, 20.0, 50.0, 700)
    assert 700 - FINE_BYTES <= trial.way.datagram_bytes <= 700


def test_doubts_that_questions_themselves_raise_do_not_go_round() -> None:
    """A question that is too large is lost, and lost datagrams are what doubts come from."""
    trial = Trial(1472, may_segment=True)
    now, finer = 0.0, 0
    while now < AGAIN_S:
        if (question := trial.due(now)) is not None:
            way, body = question
            finer += way not in trial.ways
            if way.datagram_bytes <= 1000:
                trial.answered(body, now)
            else:
                trial.doubt(now)
        now += 0.01
    assert 1000 - FINE_BYTES <= trial.way.datagram_bytes <= 1000
    assert finer <= 9 * FINE_TRIES + AGAIN_S / DOUBT_S


def test_a_refused_size_is_left_for_the_step_below() -> None:
    trial = Trial(1472, may_segment=True)
    carry(trial, 0.0, 20.0, 1000)
    trial.refused(20.0)
    assert trial.way == Way(548, True)


def test_late_answers_about_a_size_of_before_change_nothing() -> None:
    """Only the size in question can be answered."""
    trial = Trial(1472, may_segment=False)
    bodies = []
    now = 0.0
    while len(bodies) < 20:
        if (question := trial.due(now)) is not None:
            bodies.append(question)
            if question[0].datagram_bytes <= 600:
                trial.answered(question[1], now)
        now += 0.01
    found = trial.way
    for way, body in bodies:
        if way.datagram_bytes > 700 and body[0] == FINE_NUMBER:
            trial.answered(body, now)
    assert trial.way == found
