"""The keyring by hand: when it begins, whom it answers, what it keeps and for how long."""

from __future__ import annotations

from itertools import pairwise
from random import Random

import pytest

from dataplane.sleeve import keys, standing
from dataplane.sleeve.control import CONNECTING, IDLE, SILENT, UP
from dataplane.sleeve.keys import Keyring
from gossip.errors import ProtocolError
from gossip.names import PeerName
from gossip.noise import public_key_of
from tests.dataplane.sleeve.rings import (
    OTHER_SECRET,
    SECRET,
    SOURCE,
    connect,
    hello_of,
    make_ring,
    name_of,
    open_untrusted,
    private_key,
    refused,
    seal,
    two,
)


def run(ring: Keyring, now: float, until: float) -> list[float]:
    """Let time pass for one keyring alone; when it sent hellos."""
    sent = []
    while (due := ring.next_due()) is not None and due <= until:
        now = max(now, due)
        sent += [now] * len(ring.due(now))
        ring.confirmations(now)
    return sent


# Getting a session


def test_the_initiator_sends_at_once_and_the_responder_after_the_first_record() -> None:
    anne, bert = two()
    _, welcome = bert.hello_untrusted(hello_of(anne, 1, 0.0), SOURCE, 0.0)
    anne.welcome_untrusted(welcome, 0.1)
    ours = anne.current(name_of(1))
    assert ours is not None
    assert bert.current(name_of(0)) is None
    assert open_untrusted(bert, seal(ours, b"first"), 0.2) == b"first"
    theirs = bert.current(name_of(0))
    assert theirs is not None
    assert open_untrusted(anne, seal(theirs, b"back"), 0.3) == b"back"
    assert (ours.confirmed, theirs.confirmed) == (True, True)
    assert (ours.is_initiator, theirs.is_initiator) == (True, False)
    assert ours.rank == theirs.rank
    assert anne.state(name_of(1), 0.3)[0] == bert.state(name_of(0), 0.3)[0] == UP


@pytest.mark.parametrize(("anne_aes", "bert_aes"), [(True, True), (True, False), (False, True)])
def test_without_aes_on_either_side_chacha_seals(anne_aes: bool, bert_aes: bool) -> None:
    anne, bert = make_ring(0, has_aes=anne_aes), make_ring(1, has_aes=bert_aes)
    ours, theirs = connect(anne, bert, 0.0)
    assert ours.cipher == theirs.cipher == ("aes-256-gcm" if anne_aes and bert_aes else "chacha20-poly1305")


def test_the_initiator_learns_the_address_that_it_was_seen_from() -> None:
    anne, bert = two()
    source = bytes(range(18))
    _, welcome = bert.hello_untrusted(hello_of(anne, 1, 0.0), source, 0.0)
    anne.welcome_untrusted(welcome, 0.0)
    session = anne.current(name_of(1))
    assert session is not None
    assert session.observed == source


def test_an_unknown_peer_and_one_with_a_worthless_key_cost_nothing() -> None:
    anne, _ = two()
    stranger = PeerName(b"stranger")
    anne.want(stranger, 0.0)
    anne.set_peer(stranger, bytes(32))
    anne.want(stranger, 0.0)
    assert anne.next_due() is None
    assert anne.counters == {"bad-key": 1}
    assert anne.state(stranger, 0.0)[0] == anne.state(PeerName(b"nobody.."), 0.0)[0] == IDLE
    anne.remove_peer(stranger)
    anne.remove_peer(stranger)


def test_wanting_often_does_not_ask_more_often() -> None:
    anne, _ = two()
    sent = []
    for step in range(2000):
        anne.want(name_of(1), step / 100)
        sent += [step / 100] * len(anne.due(step / 100))
    gaps = [later - earlier for earlier, later in pairwise(sent)]
    for gap, expected in zip(gaps, (0.25, 0.5, 1.0, 2.0, 4.0, 5.0), strict=False):
        assert 0.79 * expected <= gap <= 1.21 * expected + 0.01
    assert len(gaps) >= 5


def test_hellos_end_when_nothing_wants_the_peer_any_more() -> None:
    anne, _ = two()
    anne.want(name_of(1), 0.0)
    assert max(run(anne, 0.0, 1000.0)) <= keys.INTEREST_S
    assert anne.next_due() is None
    assert anne._openings == {}


def test_states_tell_the_story_with_times() -> None:
    anne, bert = two()
    assert anne.state(name_of(1), 5.0)[0] == IDLE
    hello_of(anne, 1, 10.0)
    assert anne.state(name_of(1), 10.1) == (CONNECTING, 10.0)
    assert anne.state(name_of(1), 13.5) == (SILENT, 13.5)
    [(_, hello)] = anne.due(14.0)
    _, welcome = bert.hello_untrusted(hello, SOURCE, 14.0)
    anne.welcome_untrusted(welcome, 14.5)
    assert anne.state(name_of(1), 20.0) == (UP, 14.5)


def test_only_the_last_hello_can_be_answered() -> None:
    anne, bert = two()
    _, late = bert.hello_untrusted(hello_of(anne, 1, 0.0), SOURCE, 0.0)
    [(_, again)] = anne.due(0.4)
    with pytest.raises(ProtocolError) as caught:
        anne.welcome_untrusted(late, 0.5)
    assert caught.value.reason == "unasked"
    _, welcome = bert.hello_untrusted(again, SOURCE, 0.6)
    assert anne.welcome_untrusted(welcome, 0.7) == name_of(1)
    with pytest.raises(ProtocolError):
        anne.welcome_untrusted(welcome, 0.8)
    assert len(anne.sessions) == 1
    assert len(bert.sessions) == 2


def test_of_two_crossing_handshakes_that_of_the_lower_name_is_used() -> None:
    anne, bert = two()
    from_anne, from_bert = hello_of(anne, 1, 0.0), hello_of(bert, 0, 0.0)
    _, to_anne = bert.hello_untrusted(from_anne, SOURCE, 0.1)
    _, to_bert = anne.hello_untrusted(from_bert, SOURCE, 0.1)
    anne.welcome_untrusted(to_anne, 0.2)
    bert.welcome_untrusted(to_bert, 0.2)
    first, second = anne.current(name_of(1)), bert.current(name_of(0))
    assert first is not None
    assert second is not None
    assert first.remote_index != second.local_index
    assert open_untrusted(anne, seal(second, b"x"), 0.3) == b"x"
    assert anne.current(name_of(1)) is first
    assert open_untrusted(bert, seal(first, b"y"), 0.3) == b"y"
    agreed = bert.current(name_of(0))
    assert agreed is not None
    assert agreed.local_index == first.remote_index
    assert anne.due(1.0) == bert.due(1.0) == []


def test_whoever_was_just_answered_is_given_time_to_confirm() -> None:
    anne, bert = two()
    bert.hello_untrusted(hello_of(anne, 1, 0.0), SOURCE, 0.0)
    bert.want(name_of(0), 0.1)
    assert bert.due(0.1) == []
    assert len(bert.due(keys.CROSSING_WAIT_S + 0.1)) == 1


def test_a_hello_that_crosses_ours_puts_off_our_next_one() -> None:
    anne, bert = two()
    from_anne = hello_of(anne, 1, 0.0)
    hello_of(bert, 0, 0.0)
    bert.hello_untrusted(from_anne, SOURCE, 0.15)
    assert bert.due(0.15 + keys.CROSSING_WAIT_S - 0.01) == []
    assert len(bert.due(0.15 + keys.CROSSING_WAIT_S)) == 1


def test_a_refused_secret_is_followed_by_the_next_at_once() -> None:
    anne, bert = make_ring(0, (OTHER_SECRET, SECRET)), make_ring(1)
    name, refusal = bert.hello_untrusted(hello_of(anne, 1, 0.0), SOURCE, 0.0)
    assert name is None
    assert anne.refusal_untrusted(refusal, 0.1) == name_of(1)
    [(_, hello)] = anne.due(0.1)
    _, welcome = bert.hello_untrusted(hello, SOURCE, 0.1)
    assert anne.welcome_untrusted(welcome, 0.2) == name_of(1)


def test_an_index_in_use_is_not_given_again() -> None:
    draws = [b"\x00\x00\x00\x07", b"\x00\x00\x00\x07", b"\x00\x00\x00\x08"]
    random = Random(1)
    ring = Keyring(
        name_of(0), private_key(0), (SECRET,), 1, True, lambda n: draws.pop(0) if n == 4 else random.randbytes(n)
    )
    for peer in (1, 2):
        ring.set_peer(name_of(peer), public_key_of(private_key(peer)))
        ring.want(name_of(peer), 0.0)
    assert {hello[4:8] for _, hello in ring.due(0.0)} == {b"\x00\x00\x00\x07", b"\x00\x00\x00\x08"}


def test_confirmations_are_repeated_until_answered_and_then_given_up() -> None:
    anne, bert = two()
    _, welcome = bert.hello_untrusted(hello_of(anne, 1, 0.0), SOURCE, 0.0)
    anne.welcome_untrusted(welcome, 0.0)
    times = []
    for step in range(400):
        times += [step / 10] * len(anne.confirmations(step / 10))
    assert len(times) == keys.CONFIRM_TRIES_MAX
    assert times[0] == 0.0
    assert 15.0 < times[-1] < 25.0


def test_a_confirmed_session_needs_no_more_confirmation() -> None:
    anne, bert = two()
    connect(anne, bert, 0.0)
    assert anne.confirmations(100.0) == bert.confirmations(100.0) == []


def test_a_session_that_goes_unconfirmed_is_confirmed_again_while_it_is_used() -> None:
    anne, bert = two()
    _, welcome = bert.hello_untrusted(hello_of(anne, 1, 0.0), SOURCE, 0.0)
    anne.welcome_untrusted(welcome, 0.0)
    for step in range(60):
        anne.confirmations(float(step))
    run(anne, 60.0, 70.0)
    assert anne.confirmations(70.0) == []
    session = anne.current(name_of(1))
    assert session is not None
    session.counter += 1
    now = 70.0
    while not anne.confirmations(now):
        now += 1.0
        anne.due(now)
        assert now < 70.0 + 2 * keys.LOOK_INTERVAL_S


def test_nothing_more_is_said_under_a_session_once_there_is_a_better_one() -> None:
    anne, bert = two()
    for now in (0.0, 10.0):
        _, welcome = bert.hello_untrusted(hello_of(anne, 1, now, renew=True), SOURCE, now)
        anne.welcome_untrusted(welcome, now)
    assert anne.confirmations(10.0) == [anne.current(name_of(1))]


# Peers


def test_the_same_key_again_changes_nothing_and_another_ends_everything() -> None:
    anne, bert = two()
    connect(anne, bert, 0.0)
    anne.set_peer(name_of(1), public_key_of(private_key(1)))
    assert anne.current(name_of(1)) is not None
    anne.set_peer(name_of(1), public_key_of(private_key(5)))
    assert anne.current(name_of(1)) is None
    assert anne.sessions == {}
    assert refused(anne, hello_of(bert, 0, 10.0, renew=True), 10.0) == "unknown-peer"


def test_a_removed_peer_leaves_nothing() -> None:
    anne, bert = two()
    ours, _ = connect(anne, bert, 0.0)
    anne.want(name_of(1), 10.0, renew=True)
    anne.due(10.0)
    anne.remove_peer(name_of(1))
    anne.authenticated(ours, 11.0)
    assert (anne.sessions, anne._openings, anne._hints, anne._peers, anne._confirming) == ({}, {}, {}, {}, {})
    assert anne.current(name_of(1)) is None
    assert anne.next_due() is None
    assert anne.due(1000.0) == []


def test_another_peer_with_a_copied_key_takes_nothing_from_its_owner() -> None:
    anne, bert = two()
    bert.set_peer(name_of(2), public_key_of(private_key(0)))
    name, _ = bert.hello_untrusted(hello_of(anne, 1, 0.0), SOURCE, 0.0)
    assert name == name_of(0)


# Hellos again


def test_a_hello_is_taken_once_and_an_older_one_never() -> None:
    anne, bert = two()
    first = hello_of(anne, 1, 0.0)
    [(_, second)] = anne.due(1.0)
    bert.hello_untrusted(second, SOURCE, 1.0)
    assert refused(bert, second, 1.0) == "repeated-hello"
    assert refused(bert, first, 1.0) == "replayed-hello"
    assert len(bert.sessions) == 1


def test_a_later_life_counts_from_one_again() -> None:
    anne, bert = two()
    for step in range(3):
        connect(anne, bert, 10.0 * step, renew=True)
    old = hello_of(anne, 1, 30.0, renew=True)
    connect(make_ring(0, epoch=2), bert, 31.0)
    assert refused(bert, old, 32.0) == "replayed-hello"


def test_a_replayed_hello_to_a_restarted_host_moves_no_traffic() -> None:
    """It cannot be known for old there, but whoever sends it again has not the keys."""
    anne, bert = two()
    old = hello_of(anne, 1, 0.0)
    bert.hello_untrusted(old, SOURCE, 0.0)
    restarted = make_ring(1, epoch=2)
    restarted.hello_untrusted(old, SOURCE, 1.0)
    assert restarted.current(name_of(0)) is None
    ours, theirs = connect(make_ring(0, epoch=2), restarted, 2.0)
    assert restarted.current(name_of(0)) is theirs
    assert ours.remote_index == theirs.local_index


# Rolling and ending


def use(one: Keyring, other: Keyring, now: float) -> None:
    session = one.current(name_of(1 if one is not other and session_peer(one, 1) else 0))
    assert session is not None
    open_untrusted(other, seal(session, b"data"), now)


def session_peer(ring: Keyring, index: int) -> bool:
    return ring.current(name_of(index)) is not None


def first_roll(ring: Keyring, peer: Keyring, until: float, *, send: bool, size: int = 0) -> float | None:
    """When the keyring first asks for a new session, used every second by its own or its peer's records."""
    now = 0.0
    while now < until:
        now += 1.0
        if send:
            use(ring, peer, now)
            for session in ring.sessions.values():
                session.sent_bytes += size
        else:
            use(peer, ring, now)
        if ring.due(now):
            return now
        ring.confirmations(now)
    return None


def test_the_initiator_rolls_after_two_minutes_of_use() -> None:
    for send in (True, False):
        anne, bert = two()
        connect(anne, bert, 0.0)
        when = first_roll(anne, bert, 200.0, send=send)
        assert when is not None
        assert keys.ROLL_AFTER_S <= when <= keys.ROLL_AFTER_S + keys.ROLL_SPREAD_S + 2 * keys.LOOK_INTERVAL_S


def test_the_responder_rolls_only_if_the_initiator_has_not() -> None:
    anne, bert = two()
    connect(anne, bert, 0.0)
    when = first_roll(bert, anne, 200.0, send=True)
    assert when is not None
    assert when >= keys.ROLL_AFTER_S + keys.ROLL_PATIENCE_S


def test_many_bytes_roll_early() -> None:
    anne, bert = two()
    connect(anne, bert, 0.0)
    when = first_roll(anne, bert, 200.0, send=True, size=standing.ROLL_AFTER_BYTES // 20)
    assert when is not None
    assert 20.0 <= when <= 20.0 + 2 * keys.LOOK_INTERVAL_S


def test_an_unused_session_is_not_rolled_and_ends() -> None:
    anne, bert = two()
    connect(anne, bert, 0.0)
    assert run(anne, 0.0, 1000.0) == []
    assert (anne.sessions, anne.current(name_of(1)), anne.next_due()) == ({}, None, None)


def test_use_is_noticed_even_if_a_status_was_asked_for_between() -> None:
    anne, bert = two()
    connect(anne, bert, 0.0)
    for second in range(1, 140):
        use(anne, bert, float(second))
        anne.state(name_of(1), second + 0.1)
        if anne.due(second + 0.5):
            return
    pytest.fail("a session in use was not rolled")


def test_nothing_is_sent_under_an_old_session_and_what_comes_late_still_opens() -> None:
    anne, bert = two()
    _, theirs = connect(anne, bert, 0.0)
    run(anne, 0.0, standing.SEND_MAX_S + 10.0)
    assert anne.current(name_of(1)) is None
    assert open_untrusted(anne, seal(theirs, b"late"), standing.SEND_MAX_S + 10.0) == b"late"
    assert anne.current(name_of(1)) is None
    run(anne, standing.SEND_MAX_S + 10.0, standing.RECEIVE_MAX_S + 10.0)
    assert anne.sessions == {}


def test_nothing_is_sent_under_a_session_that_sealed_too_much() -> None:
    anne, bert = two()
    ours, _ = connect(anne, bert, 0.0)
    ours.sent_bytes = standing.SEND_MAX_BYTES
    run(anne, 0.0, 10.0)
    assert anne.current(name_of(1)) is None
    assert ours.local_index in anne.sessions


def test_the_old_session_stays_for_half_a_minute_after_a_roll_and_longer_while_used() -> None:
    anne, bert = two()
    old, old_theirs = connect(anne, bert, 0.0)
    new, _ = connect(anne, bert, 10.0, renew=True)
    assert anne.current(name_of(1)) is new
    run(anne, 10.0, 38.0)
    assert old.local_index in anne.sessions
    assert open_untrusted(anne, seal(old_theirs, b"late"), 38.0) == b"late"
    run(anne, 38.0, 65.0)
    assert old.local_index in anne.sessions
    run(anne, 65.0, 90.0)
    assert set(anne.sessions) == {new.local_index}


def test_the_old_session_stays_until_the_peer_has_shown_that_it_has_the_new_one() -> None:
    anne, bert = two()
    old, _ = connect(anne, bert, 0.0)
    _, welcome = bert.hello_untrusted(hello_of(anne, 1, 10.0, renew=True), SOURCE, 10.0)
    anne.welcome_untrusted(welcome, 10.0)
    run(anne, 10.0, 300.0)
    assert old.local_index in anne.sessions


def test_a_session_in_doubt_stays_in_use_and_is_doubted_no_more_than_every_few_seconds() -> None:
    anne, bert = two()
    ours, _ = connect(anne, bert, 0.0)
    anne.want(name_of(1), 1.0, renew=True)
    assert anne.due(1.0) == []
    sent = 0
    for step in range(100, 1000):
        anne.want(name_of(1), step / 10, renew=True)
        for _, hello in anne.due(step / 10):
            sent += 1
            _, welcome = bert.hello_untrusted(hello, SOURCE, step / 10)
            if step < 500:
                anne.welcome_untrusted(welcome, step / 10)
            else:
                assert anne.current(name_of(1)) not in (None, ours)
    assert 20 <= sent <= 30


def test_the_sessions_of_a_peer_are_few_and_the_newest() -> None:
    anne, bert = two()
    now = 0.0
    for _ in range(20):
        now += 10.0
        bert.hello_untrusted(hello_of(anne, 1, now), SOURCE, now)
        anne = make_ring(0, epoch=int(now) + 1)
    assert len(bert.sessions) == keys.SESSIONS_PER_PEER_MAX
    assert sorted(session.generation for session in bert.sessions.values()) == [16, 17, 18, 19, 20]


def test_welcomes_that_were_lost_do_not_push_out_the_session_that_is_still_in_use() -> None:
    anne, bert = two()
    old, _ = connect(anne, bert, 0.0)
    connect(anne, bert, 10.0, renew=True)
    anne.want(name_of(1), 20.0, renew=True)
    now, hellos = 20.0, 0
    while now < 30.0:
        anne.want(name_of(1), now)
        for _, hello in anne.due(now):
            bert.hello_untrusted(hello, SOURCE, now)
            hellos += 1
        now += 0.125
    assert hellos > keys.SESSIONS_PER_PEER_MAX
    assert len(bert.sessions) == keys.SESSIONS_PER_PEER_MAX
    assert open_untrusted(bert, seal(old, b"late"), now) == b"late"


def test_our_last_welcome_is_not_given_up_for_a_session_of_our_own() -> None:
    anne, bert = two()
    for number in range(keys.SESSIONS_PER_PEER_MAX - 1):
        connect(anne, bert, 10.0 * number, renew=True)
    now = 10.0 * keys.SESSIONS_PER_PEER_MAX
    from_anne, from_bert = hello_of(anne, 1, now, renew=True), hello_of(bert, 0, now, renew=True)
    _, to_anne = bert.hello_untrusted(from_anne, SOURCE, now)
    _, to_bert = anne.hello_untrusted(from_bert, SOURCE, now)
    bert.welcome_untrusted(to_bert, now)
    anne.welcome_untrusted(to_anne, now)
    session = anne.current(name_of(1))
    assert session is not None
    assert open_untrusted(bert, seal(session, b"new"), now) == b"new"
