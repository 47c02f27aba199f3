"""Hellos by the thousand, from members and from anybody, and noise of every kind: each limit of the keyring holds."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataplane.sleeve import keys
from dataplane.sleeve.keys import Keyring
from gossip.errors import ProtocolError
from gossip.names import PeerName
from gossip.noise import public_key_of
from tests.dataplane.sleeve.rings import (
    OTHER_SECRET,
    SOURCE,
    connect,
    hello_of,
    make_ring,
    name_of,
    private_key,
    refused,
    two,
)

# Floods


def hellos_from(index: int, count: int) -> list[bytes]:
    """Of one member that means no good: all different and all true."""
    ring = make_ring(index, hosts=1)
    ring.set_peer(name_of(50), public_key_of(private_key(50)))
    found, now = [], 0.0
    while len(found) < count:
        now += 10.0
        ring.want(name_of(50), now)
        found += [hello for _, hello in ring.due(now)]
        ring.set_peer(name_of(50), bytes(32))
        ring.set_peer(name_of(50), public_key_of(private_key(50)))
    return found


def server(peers: int) -> Keyring:
    ring = make_ring(50, hosts=0)
    for index in range(peers):
        ring.set_peer(name_of(index), public_key_of(private_key(index)))
    return ring


def test_a_member_that_floods_uses_up_its_own_share_only() -> None:
    ring = server(3)
    answered = 0
    for number, hello in enumerate(hellos_from(0, 60)):
        try:
            ring.hello_untrusted(hello, SOURCE, number / 100)
            answered += 1
        except ProtocolError as error:
            assert error.reason == "hello-flood"
    assert answered == keys.HELLOS_PER_PEER_BURST
    assert ring.hello_untrusted(hellos_from(1, 1)[0], SOURCE, 0.6)[0] == name_of(1)
    assert len(ring.sessions) <= keys.SESSIONS_PER_PEER_MAX + 1


def test_all_peers_together_are_limited_and_the_limit_recovers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keys, "HELLOS_BURST", 3)
    ring = server(6)
    hellos = [hellos_from(index, 1)[0] for index in range(6)]
    for hello in hellos[:3]:
        ring.hello_untrusted(hello, SOURCE, 0.0)
    assert [refused(ring, hello, 0.0) for hello in hellos[3:]] == ["hellos-busy"] * 3
    assert ring.hello_untrusted(hellos[3], SOURCE, 1 / keys.HELLOS_PER_S)[0] == name_of(3)


def test_refusals_are_few_and_do_not_touch_the_share_of_true_hellos() -> None:
    anne, bert = two()
    wrong = make_ring(0, (OTHER_SECRET,))
    forged = hello_of(wrong, 1, 0.0)
    answers = 0
    for _ in range(1000):
        try:
            name, answer = bert.hello_untrusted(forged, SOURCE, 0.0)
            assert name is None
            assert len(answer) < len(forged)
            answers += 1
        except ProtocolError as error:
            assert error.reason == "wrong-secret"
    assert answers == keys.REFUSALS_PER_PEER_BURST
    assert bert.counters["wrong-secret"] == 1000
    assert bert.hello_untrusted(hello_of(anne, 1, 0.0), SOURCE, 0.0)[0] == name_of(0)
    assert len(bert.sessions) == 1


def test_many_peers_wanted_at_once_are_asked_a_few_at_a_time() -> None:
    ring = make_ring(0, hosts=120)
    for peer in range(1, 120):
        ring.want(name_of(peer), 0.0)
    at_once = 0
    while (due := ring.next_due()) is not None and due <= 0.0:
        hellos = ring.due(0.0)
        assert len(hellos) <= keys.OPENINGS_PER_CALL_MAX
        at_once += len(hellos)
    assert at_once == keys.OPENINGS_BURST
    asked: set[PeerName] = set()
    now = 0.0
    while (due := ring.next_due()) is not None and due <= 3.0:
        now = max(now, due)
        asked.update(name for name, _ in ring.due(now))
    assert len(asked) == 119


def test_looks_at_many_sessions_are_spread_over_calls() -> None:
    ring = make_ring(0, hosts=100)
    others = [make_ring(peer, hosts=1) for peer in range(100)]
    for peer in range(1, 100):
        connect(ring, others[peer], peer / 10, peer=peer)
    now = 100.0
    calls = 0
    while (due := ring.next_due()) is not None and due <= now:
        assert ring.due(now) == []
        assert ring.confirmations(now) == []
        calls += 1
    assert calls >= 99 // keys.LOOKS_PER_CALL_MAX


# Noise of the other kind


def answered(ring: Keyring, kind: int, datagram: bytes) -> bool:
    try:
        if kind == 0:
            ring.hello_untrusted(datagram, SOURCE, 1.0)
        elif kind == 1:
            ring.welcome_untrusted(datagram, 1.0)
        else:
            ring.refusal_untrusted(datagram, 1.0)
    except ProtocolError as error:
        assert ring.counters[error.reason] > 0
        return False
    return True


@given(st.integers(0, 2), st.binary(max_size=600), st.booleans(), st.binary(min_size=4, max_size=4))
def test_garbage_changes_nothing(kind: int, data: bytes, typed: bool, index: bytes) -> None:
    anne, bert = two()
    hello = hello_of(anne, 1, 0.0)
    garbage = bytes([kind + 1, 0, 0, 0]) + (hello[4:8] if typed else index) + data
    assert not answered(anne, kind, garbage)
    assert not answered(anne, kind, data)
    assert anne.sessions == {}
    _, welcome = bert.hello_untrusted(hello, SOURCE, 1.0)
    assert answered(anne, 1, welcome)


@given(st.sampled_from(["hello", "welcome", "refusal"]), st.integers(0, 144), st.integers(1, 255), st.booleans())
def test_a_damaged_handshake_datagram_brings_no_session(what: str, position: int, flip: int, cut: bool) -> None:
    anne, bert = two()
    hello = hello_of(anne, 1, 0.0)
    _, welcome = bert.hello_untrusted(hello, SOURCE, 0.0)
    _, refusal = make_ring(1, (OTHER_SECRET,)).hello_untrusted(hello, SOURCE, 0.0)
    kind, datagram = {"hello": (0, hello), "welcome": (1, welcome), "refusal": (2, refusal)}[what]
    position %= len(datagram)
    damaged = datagram[:position] + (b"" if cut else bytes([datagram[position] ^ flip]) + datagram[position + 1 :])
    ring = make_ring(1) if kind == 0 else anne
    if answered(ring, kind, damaged):
        assert kind == 0
        assert ring.counters == {"wrong-secret": 1}
    assert ring.sessions == {}
