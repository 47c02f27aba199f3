"""Where a partner is: what is asked when, and what an answer changes."""

from __future__ import annotations

from itertools import pairwise

from dataplane.sleeve.routes import Route
from dataplane.sleeve.whereabouts import (
    ASKED_MAX,
    CALLED_MAX,
    FOLLOW_AFTER_S,
    HUNT_AFTER_S,
    HUNT_SLOWLY_AFTER_S,
    RETURN_FIRST_S,
    RETURN_MAX_S,
    STEADY_S,
    Address,
    Whereabouts,
)
from gossip.names import PeerName

US, HOP, OTHER, THEM = (PeerName(bytes([number]) * 8) for number in (1, 2, 3, 4))
TOLD: Address = ("10.9.0.4", 6783)
SEEN: Address = ("198.51.100.4", 40_000)
ROUTE = Route((US, HOP, THEM))
ROUTES = [ROUTE, Route((US, OTHER, THEM))]


def make(address: Address | None = TOLD) -> Whereabouts:
    where = Whereabouts()
    where.told = (TOLD,)
    if address is not None:
        where.move(address, 0.0)
    return where


def test_nobody_is_asked_while_records_arrive() -> None:
    where = make()
    assert where.due(ROUTES, 0.0, 10.0) == where.due(ROUTES, HUNT_AFTER_S, 10.0) == []
    assert where.next_s(0.0) == float("inf")


def test_silence_asks_everywhere_and_goes_on_more_slowly() -> None:
    where = make()
    now, asked = 10.0, []
    while now < 30.0:
        found = where.due(ROUTES, HUNT_AFTER_S + now - 10.0 + 0.01, now)
        if found:
            assert found == [TOLD, *ROUTES]
            asked.append(now)
        now += 0.05
    early = [when for when in asked if when < 10.0 + HUNT_SLOWLY_AFTER_S - HUNT_AFTER_S]
    assert len(early) > 15 and len(asked) - len(early) < 12


def test_from_a_route_addresses_are_asked_less_and_less() -> None:
    where = make(ROUTE)
    asked = [now / 100 for now in range(6000) if where.due([], 0.0, now / 100)]
    gaps = [after - before for before, after in pairwise(asked)]
    assert asked[0] == 0.0 and abs(gaps[0] - RETURN_FIRST_S) < 0.02
    assert all(after > before - 0.02 for before, after in pairwise(gaps)) and abs(gaps[-1] - RETURN_MAX_S) < 0.02


def test_an_address_that_fails_soon_is_gone_back_to_with_hesitation() -> None:
    where = make(ROUTE)
    for step in range(4):
        where.move(TOLD, 10.0 + step)
        where.move(ROUTE, 10.5 + step)
    assert not where.due([], 0.0, 13.5 + RETURN_FIRST_S * 15) and where.due([], 0.0, 13.5 + RETURN_FIRST_S * 17)
    where.move(TOLD, 20.0)
    where.move(ROUTE, 20.0 + STEADY_S)
    assert where.due([], 0.0, 20.0 + STEADY_S) and where.due([], 0.0, 20.0 + STEADY_S + RETURN_FIRST_S)


def test_an_answer_counts_only_on_the_way_of_its_question() -> None:
    where = make()
    for number, address in enumerate((TOLD, ROUTE)):
        where.asked(bytes([number]), address, 1.0)
    assert where.proven(b"\0", ROUTE) is None, "went straight, came back by a route"
    question = where.proven(b"\1", ROUTES[1])
    assert question is not None and question.address == ROUTE
    assert where.proven(b"\1", ROUTE) is None, "answered already"
    where.asked(b"\2", TOLD, 1.0)
    assert where.proven(b"\2", SEEN) is not None, "a NAT may change the address"
    assert where.proven(b"\3", TOLD) is None, "never asked"


def test_questions_under_way_are_bounded() -> None:
    where = make()
    for number in range(3 * ASKED_MAX):
        where.asked(number.to_bytes(8, "big"), TOLD, 1.0)
    assert where.proven((0).to_bytes(8, "big"), TOLD) is None
    assert where.proven((3 * ASKED_MAX - 1).to_bytes(8, "big"), TOLD) is not None


def test_anything_is_better_than_silence_and_an_address_better_than_a_route() -> None:
    assert make().is_better(ROUTE, HUNT_AFTER_S + 0.1) and not make().is_better(ROUTE, 0.0)
    assert make(ROUTE).is_better(TOLD, 0.0) and not make(ROUTE).is_better(ROUTES[1], 0.0)
    assert make(None).is_better(ROUTE, 0.0)


def test_a_partner_that_goes_over_is_followed_unless_the_address_was_just_seen_to_work() -> None:
    where = make()
    assert where.is_followed(SEEN, 10.0) and where.is_followed(ROUTE, 10.0)
    where.proven_s = 10.0
    assert not where.is_followed(ROUTE, 10.5) and where.is_followed(SEEN, 10.5)
    assert where.is_followed(ROUTE, 10.1 + FOLLOW_AFTER_S)
    assert make(ROUTE).is_followed(TOLD, 10.0)


def test_a_call_is_answered_by_asking_once() -> None:
    where = make(ROUTE)
    assert where.due([], 0.0, 0.0) == [TOLD]
    where.take_call([SEEN])
    assert not where.is_returning(0.05), "a call is no reason to call"
    assert where.next_s(0.0) <= 0.05
    assert where.due([], 0.0, 0.05) == [TOLD, SEEN] and where.due([], 0.0, 0.06) == []
    asked = 0
    for step in range(1000):  # somebody calls and calls
        where.take_call([("198.51.100.9", step)])
        asked += bool(where.due([], 0.0, 1.0 + step / 1000))
    assert asked <= 1.0 / RETURN_FIRST_S + 1


def test_where_a_probe_came_from_is_asked_while_nothing_better_is_known() -> None:
    where = make(ROUTE)
    assert where.due([], 0.0, 0.0)
    where.take_probe(SEEN)
    assert SEEN in where.due([], 0.0, 0.05)
    where.take_probe(SEEN)
    assert where.due([], 0.0, 0.06) == [], "known already"
    straight = make()
    straight.take_probe(SEEN)
    assert straight.called == ()


def test_what_is_called_is_bounded_and_the_newest_first() -> None:
    where = make(ROUTE)
    for number in range(3 * CALLED_MAX):
        where.take_call([("198.51.100.1", number), TOLD])
    assert len(where.called) == CALLED_MAX and where.called[0] == ("198.51.100.1", 3 * CALLED_MAX - 1)
    assert TOLD not in where.called


def test_of_two_on_different_routes_one_gives_way() -> None:
    """Each hears the other by its own; if both followed, they would change places for ever."""
    mine, theirs = make(ROUTE), make(ROUTE.back())
    mine.proven_s = theirs.proven_s = 10.0
    other = ROUTES[1]
    assert [mine.is_followed(other, 10.1), theirs.is_followed(other.back(), 10.1)] == [False, True]
    assert mine.is_followed(other, 10.1 + FOLLOW_AFTER_S), "but not for ever"


def test_patience_is_longer_where_answers_take_long() -> None:
    where = make()
    where.took(0.01)
    assert where.due(ROUTES, HUNT_AFTER_S + 0.1, 10.0)
    where.took(1.0)
    assert not where.due(ROUTES, 1.9, 20.0) and where.due(ROUTES, 2.1, 20.0)
    where.took(100.0)
    assert where.due(ROUTES, 3.1, 30.0)
