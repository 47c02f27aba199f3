"""Whatever arrives on the UDP port: it never raises, is counted, and leaves nothing behind without bound."""

from __future__ import annotations

from functools import cache

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dataplane.sleeve.assembly import BYTES_MAX, PARTIALS_MAX
from dataplane.sleeve.loss import Shape
from dataplane.sleeve.sleeve import NOTES_MAX
from dataplane.sleeve.wire import BURST, NOTE_ASK, PIECE_HEADER, encode_note
from tests.dataplane.sleeve.network import SECRET, Network, pack
from tests.dataplane.sleeve.traffic import TCP, UDP

SEALED, CLEAR = (SECRET,), ()
LIMITS = settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])


@cache
def scene(psks: tuple[bytes, ...]) -> tuple[Network, list[bytes]]:
    """Two hosts in the middle of a conversation, and every kind of datagram from the first to the second that did not
    arrive."""
    network = Network(5, psks=psks)
    there, back = network.flow(0, 1, TCP), network.flow(1, 0, UDP)
    network.traffic(there, 0.01, 1.0, lambda: (100, 0))
    network.traffic(back, 0.01, 1.0, lambda: (100, 0))
    network.run(2.0)
    network.ledger.is_ordered = False
    caught: list[bytes] = []
    network._arrive_at = lambda when, target, data, source: caught.append(data)  # type: ignore[method-assign]
    for shape in (Shape(64, 0), Shape(16, 1), Shape(4, 2)):
        network.partner(0, 1).meter.shape = shape
        network.send(there, 100)
        network.run(0.01)
        network.send(there, 9000, 1396)
        network.run(0.01)
    network.hosts[0].sleeve.keyring.want(network.partner(0, 1).peer.name, network.now + 10, renew=True)
    caught += [hello for _, hello in network.hosts[0].sleeve.keyring.due(network.now + 10)]
    network.now += 10
    return network, [data for data in caught if data]


def take(network: Network, data: bytes, segment: int, address: tuple[object, ...]) -> None:
    """As a worker does; all that comes out is written, so it must be what was sent."""
    host = network.hosts[1]
    before = sum(host.sleeve.totals().values())
    room = memoryview(bytearray(data))
    network.now += 0.001
    found = host.sleeve.datagrams(room, segment, address, network.now)
    for frame in found:
        network.ledger.arrived(1, bytes(frame))
    held = host.sleeve.receiver.assembly
    assert 0 <= held.bytes <= BYTES_MAX
    assert len(held.bursts) <= PARTIALS_MAX and len(held.pieces) <= PARTIALS_MAX
    if not data or data[0] > 5:
        assert sum(host.sleeve.totals().values()) > before or held.bursts or held.bytes, "dropped without a word"
    assert len(list(host.sleeve.outgoing(network.now))) < 100


ADDRESSES = st.sampled_from([("10.0.0.0", 6783), ("10.6.6.6", 1)])


@LIMITS
@given(st.binary(max_size=3000), st.integers(1, 1500), ADDRESSES)
@pytest.mark.parametrize("psks", [SEALED, CLEAR], ids=["sealed", "clear"])
def test_arbitrary_bytes(psks: tuple[bytes, ...], data: bytes, segment: int, address: tuple[object, ...]) -> None:
    take(scene(psks)[0], data, segment, address)


@LIMITS
@given(st.integers(0, 5), st.integers(1, 20), st.integers(1, 40), ADDRESSES)
@pytest.mark.parametrize("psks", [SEALED, CLEAR], ids=["sealed", "clear"])
def test_tiny_datagrams_of_every_type_joined(
    psks: tuple[bytes, ...], kind: int, size: int, many: int, address: tuple[object, ...]
) -> None:
    take(scene(psks)[0], (bytes((kind,)) * size) * many, size, address)


@st.composite
def mutations(draw: st.DrawFn) -> tuple[list[int], list[tuple[int, int, int]], int, int]:
    """Which datagrams are joined, which bytes of them are changed, where the whole is cut, and the segment's size."""
    picks = draw(st.lists(st.integers(0, 100), min_size=1, max_size=12))
    changes = draw(st.lists(st.tuples(st.integers(0, 11), st.integers(0, 40), st.integers(1, 255)), max_size=4))
    return picks, changes, draw(st.integers(0, 20_000)), draw(st.sampled_from([0, 0, 0, 16, 100, 1472]))


@LIMITS
@given(mutations(), ADDRESSES)
@pytest.mark.parametrize("psks", [SEALED, CLEAR], ids=["sealed", "clear"])
def test_real_datagrams_changed_cut_and_joined(
    psks: tuple[bytes, ...], wanted: tuple[list[int], list[tuple[int, int, int]], int, int], address: tuple[object, ...]
) -> None:
    network, caught = scene(psks)
    picks, changes, cut, segment = wanted
    datagrams = [bytearray(caught[pick % len(caught)]) for pick in picks]
    for which, where, what in changes:
        if which < len(datagrams):
            changed = datagrams[which]
            changed[where % len(changed)] ^= what
    data = b"".join(datagrams)
    take(network, data[: cut or None], segment or len(datagrams[0]), address)


def test_a_flood_of_unfinished_records_is_bounded() -> None:
    """From somebody on the way, who knows the index and all that is not sealed."""
    network, caught = scene(SEALED)
    index = next(data for data in caught if data[0] == BURST)[4:8]
    host = network.hosts[1]
    for counter in range(3 * PARTIALS_MAX):
        header = PIECE_HEADER.pack(5, 0, 40, 4, int.from_bytes(index, "big"), 10_000 + 64 * counter)
        take(network, (header + bytes(1456)), 1472, ("10.0.0.0", 6783))
        take(network, bytes((4, 40, 0, 9)) + index + bytes(1464), 1472, ("10.6.6.6", counter))
        take(network, bytes((4, 40, 0, 9)) + index + (9000 + 64 * counter).to_bytes(8, "big"), 1472, ("10.0.0.0", 6783))
    assert len(host.sleeve._by_address) < 10
    network.now += 1.0
    list(host.sleeve.outgoing(network.now))
    assert host.sleeve.receiver.assembly.bytes == 0


def test_a_peer_that_asks_much_gets_few_answers() -> None:
    network = Network(6)
    network.send(network.flow(0, 1, TCP), 100)
    network.run(1.0)
    partner = network.partner(0, 1)
    partner.notes += [encode_note(NOTE_ASK, b"x" * 60)] * 500
    network.send(network.flow(0, 1, TCP), 100)
    host = network.hosts[1]
    seen = []
    taken = host.sleeve.datagrams
    host.sleeve.datagrams = lambda *given: [  # type: ignore[method-assign]
        taken(*given),
        seen.append(len(network.partner(1, 0).notes)),
    ][0]
    network.run(1.0)
    assert 0 < max(seen) <= NOTES_MAX
    assert len(pack(host.address)) == 18
