"""The endpoint table: who holds an address, whatever order news comes in, and what malformed rows do (nothing)."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace
from ipaddress import ip_address
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gossip.errors import ProtocolError
from gossip.names import PeerName
from gossip.pages import ROW_MAX_BYTES, TablePager
from mesh.endpoints import (
    ADDRESSES_MAX,
    CLAIM_MAX,
    EXPOSED_ID,
    LABELS_MAX,
    NAMES_MAX,
    TEXT_MAX_BYTES,
    Address,
    Binding,
    Endpoint,
    EndpointTable,
    bridge_mac,
    decode_row_untrusted,
    derive_mac,
    encode_row,
)

A, B, C = (PeerName(bytes([number]) * 8) for number in (1, 2, 3))
MAC = derive_mac("weft", ip_address("10.32.0.1"))


def body(*endpoints: Endpoint | bytes) -> bytes:
    rows = [each if isinstance(each, bytes) else encode_row(each) for each in endpoints]
    return b"".join(struct.pack("!H", len(row)) + row for row in rows)


def endpoint(owner: PeerName, *addresses: tuple[str, int], name: str = "c1", mac: bytes | None = None) -> Endpoint:
    bindings = tuple(Binding(ip_address(text), 24 if "." in text else 64, claim) for text, claim in addresses)
    first = bindings[0].ip if bindings else ip_address("10.32.0.1")
    return Endpoint(owner, name, mac or derive_mac("weft", first), bindings)


# Against a slow, obvious oracle

PLACES = [(owner, index) for owner in (A, B, C) for index in (0, 1)]
ADDRESSES = [ip_address(text) for text in ("10.32.0.1", "10.32.0.2", "fd00:32::1")]
MACS = [derive_mac("weft", address) for address in ADDRESSES]

bindings = st.lists(
    st.builds(Binding, st.sampled_from(ADDRESSES), st.just(24), st.integers(0, 3)), max_size=3, unique_by=lambda b: b.ip
).map(tuple)
rows = st.builds(
    Endpoint, st.just(A), st.sampled_from(["web", "db"]), st.sampled_from(MACS), bindings, st.just(()), st.just(())
)
pages = st.lists(rows, max_size=3)
states = st.lists(pages, min_size=len(PLACES), max_size=len(PLACES))
steps = st.lists(st.tuples(st.sampled_from(PLACES), pages), max_size=12)


@dataclass(frozen=True)
class Row:
    """What the oracle knows: a row and where it lies."""

    owner: PeerName
    index: int
    raw: bytes
    mac: bytes
    bindings: tuple[Binding, ...]


class Oracle:
    """Looks at everything, every time."""

    def __init__(self, state: dict[tuple[PeerName, int], list[Endpoint]]) -> None:
        self.rows = [
            Row(owner, index, raw, each.mac, each.bindings)
            for (owner, index), page in sorted(state.items())
            for raw, each in {encode_row(each): each for each in page}.items()
        ]

    def holder(self, address: Address, without: frozenset[PeerName]) -> Row | None:
        best: tuple[int, PeerName, int, bytes, Row] | None = None
        for row in self.rows:
            for binding in row.bindings:
                if binding.ip == address and row.owner not in without:
                    rank = (-binding.claim, row.owner, row.index, row.raw, row)
                    if best is None or rank[:4] < best[:4]:
                        best = rank
        return best[4] if best else None

    def mac_holder(self, mac: bytes, without: frozenset[PeerName]) -> tuple[PeerName, bytes] | None:
        ranks = []
        for row in self.rows:
            if row.mac == mac and row.owner not in without:
                held = [b.claim for b in row.bindings if self.holder(b.ip, without) is row]
                ranks.append((len(held) < len(row.bindings), -max(held, default=-1), row.owner, row.raw))
        return min(ranks)[2:] if ranks else None

    def is_contested(self, row: Row) -> bool:
        others = [other for other in self.rows if other is not row]
        shared = {b.ip for b in row.bindings} & {b.ip for other in others for b in other.bindings}
        return bool(shared) or row.mac in {other.mac for other in others}


def agrees(table: EndpointTable, state: dict[tuple[PeerName, int], list[Endpoint]]) -> None:
    oracle = Oracle(state)
    found = [(each.owner, encode_row(each)) for each in table.endpoints()]
    assert found == [(row.owner, row.raw) for row in oracle.rows]
    assert len(table) == len(found)
    assert [table.is_contested(each) for each in table.endpoints()] == [oracle.is_contested(r) for r in oracle.rows]
    for without in (frozenset[PeerName](), frozenset({A}), frozenset({A, B})):
        for address in ADDRESSES:
            holder, expected = table.holder(address, without), oracle.holder(address, without)
            seen = None if holder is None else (holder.owner, encode_row(holder))
            assert seen == (None if expected is None else (expected.owner, expected.raw))
        for mac in MACS:
            user = table.mac_holder(mac, without)
            assert (None if user is None else (user.owner, encode_row(user))) == oracle.mac_holder(mac, without)
    for address in ADDRESSES:
        claims = [b.claim for row in oracle.rows for b in row.bindings if b.ip == address]
        assert table.next_claim(address) == 1 + max(claims, default=0)


def put(table: EndpointTable, place: tuple[PeerName, int], page: Sequence[Endpoint]) -> None:
    assert table.replace_page(*place, body(*page)) == 0


@given(steps, st.lists(st.sampled_from(PLACES), max_size=2))
def test_the_table_is_what_its_pages_say(steps: list[Any], forgotten: list[Any]) -> None:
    """Holders of addresses and MACs, what is contested and the next claim, after any pages in any order."""
    table = EndpointTable()
    state: dict[tuple[PeerName, int], list[Endpoint]] = {}
    for place, page in steps:
        put(table, place, page)
        state[place] = [replace(each, owner=place[0]) for each in page]
        agrees(table, state)
    for owner, _ in forgotten:
        table.forget(owner)
        state = {place: page for place, page in state.items() if place[0] != owner}
        agrees(table, state)


@given(states, st.permutations(range(len(PLACES))), steps)
def test_the_order_of_news_makes_no_difference(state: Any, order: list[int], detour: list[Any]) -> None:
    """Two hosts that hold the same pages agree on everything, whatever they heard before and in whatever order."""
    straight, winding = EndpointTable(), EndpointTable()
    for place, page in detour:
        put(winding, place, page)
    for place, page in zip(PLACES, state, strict=True):
        put(straight, place, page)
    for number in order:
        put(winding, PLACES[number], state[number])
    expected = {(o, i): [replace(each, owner=o) for each in page] for (o, i), page in zip(PLACES, state, strict=True)}
    agrees(straight, expected)
    agrees(winding, expected)


def test_a_row_that_stays_is_the_same_object() -> None:
    """So that a page of a hundred rows of which one changes costs one."""
    table = EndpointTable()
    stays, goes = endpoint(A, ("10.32.0.1", 1)), endpoint(A, ("10.32.0.2", 1), name="c2")
    table.replace_page(A, 0, body(stays, goes))
    before = list(table.of(A))
    table.replace_page(A, 0, body(endpoint(A, ("10.32.0.3", 1), name="c3"), stays))
    assert list(table.of(A))[1] is before[0]


# Claims

X = ip_address("10.32.0.1")


def holder_of(table: EndpointTable, address: Address = X) -> PeerName:
    found = table.holder(address)
    assert found is not None
    return found.owner


def test_whoever_attached_last_in_knowledge_of_the_other_wins() -> None:
    """Whichever of the two names is the lower one."""
    for first, second in ((A, B), (B, A)):
        table = EndpointTable()
        table.replace_page(first, 0, body(endpoint(first, (str(X), table.next_claim(X)))))
        table.replace_page(second, 0, body(endpoint(second, (str(X), table.next_claim(X)))))
        assert holder_of(table) == second


def test_two_claims_at_once_settle_equally_everywhere() -> None:
    """Neither had seen the other: the lower name has it, on both and on whoever heard them in either order."""
    pages = {owner: body(endpoint(owner, (str(X), 1))) for owner in (A, B)}
    for order in ((A, B), (B, A)):
        table = EndpointTable()
        for owner in order:
            table.replace_page(owner, 0, pages[owner])
        assert holder_of(table) == A
        assert [each.owner for each in table.claimants(X)] == [A, B]


def test_a_late_delete_of_an_old_binding_removes_only_that() -> None:
    """The address has moved to B; A's page without it comes long after, and again."""
    table = EndpointTable()
    table.replace_page(A, 0, body(endpoint(A, (str(X), 1))))
    table.replace_page(B, 0, body(endpoint(B, (str(X), 2))))
    for _ in range(2):
        table.replace_page(A, 0, b"")
        assert holder_of(table) == B
    table.forget(A)
    assert holder_of(table) == B


def test_an_address_whose_holder_does_not_count_falls_to_the_next() -> None:
    """And back, as soon as it counts again."""
    table = EndpointTable()
    table.replace_page(A, 0, body(endpoint(A, (str(X), 1))))
    table.replace_page(B, 0, body(endpoint(B, (str(X), 2))))
    found = table.holder(X, frozenset({B}))
    assert found is not None and found.owner == A
    assert table.holder(X, frozenset({A, B})) is None
    assert holder_of(table) == B


def test_what_was_lost_names_the_winner() -> None:
    """Only the addresses that another one holds."""
    table = EndpointTable()
    table.replace_page(A, 0, body(endpoint(A, (str(X), 1), ("10.32.0.9", 1))))
    table.replace_page(B, 0, body(endpoint(B, (str(X), 2))))
    loser, winner = table.endpoints()
    assert table.lost(loser) == [(loser.bindings[0], winner)]
    assert table.lost(loser, frozenset({B})) == table.lost(winner) == []


def test_claims_end_at_their_limit() -> None:
    """Somebody who claims with the greatest number is not followed beyond what others would take."""
    table = EndpointTable()
    table.replace_page(A, 0, body(endpoint(A, (str(X), CLAIM_MAX))))
    assert table.next_claim(X) == CLAIM_MAX
    decode_row_untrusted(B, encode_row(endpoint(B, (str(X), table.next_claim(X)))))


# MACs


@given(st.binary(min_size=8, max_size=8), st.ip_addresses(), st.integers(0, 255), st.text(max_size=10))
def test_macs_of_bridges_and_endpoints_never_meet(name: bytes, first: Address, salt: int, network: str) -> None:
    """Both are unicast and locally administered, and their first bytes differ."""
    of_bridge, of_endpoint = bridge_mac(PeerName(name)), derive_mac(network, first, salt)
    assert of_bridge[0] & 3 == of_endpoint[0] & 3 == 2
    assert of_bridge[0] != of_endpoint[0]
    assert len(of_bridge) == len(of_endpoint) == 6


def test_a_host_that_is_exposed_has_the_mac_of_its_own_bridge_and_nobody_elses() -> None:
    """It says by which command an address of it comes free; a container of it by another."""
    host = replace(endpoint(A, (str(X), 1)), mac=bridge_mac(A), id=EXPOSED_ID)
    container = endpoint(A, (str(X), 1))
    assert decode_row_untrusted(A, encode_row(host)) == host
    with pytest.raises(ProtocolError, match="MAC of another host"):
        decode_row_untrusted(B, encode_row(host))
    assert host.is_host and not container.is_host
    assert host.release(f"{X}/16") == f"weft hide {X}/16"
    assert container.release(f"{X}/16") == f"weft detach {X}/16 {container.id}"


def test_the_same_first_address_gives_the_same_mac() -> None:
    """Wherever it is attached, and in the one form it always had: neighbour tables out there rely on it."""
    assert derive_mac("weft", ip_address("10.32.0.1")).hex(":") == "02:25:3e:d3:a3:aa"
    assert derive_mac("weft", ip_address("10.32.0.1")) != derive_mac("weft", ip_address("10.32.0.2"))
    assert derive_mac("weft", X) != derive_mac("other", X) != derive_mac("weft", X, salt=1)


def test_a_mac_belongs_to_the_holder_of_its_address() -> None:
    """B took the address over while A was away: same MAC, and frames must go to B."""
    table = EndpointTable()
    table.replace_page(A, 0, body(endpoint(A, (str(X), 1), ("10.32.9.9", 7))))
    table.replace_page(B, 0, body(endpoint(B, (str(X), 2))))
    found = table.mac_holder(MAC)
    assert found is not None and found.owner == B
    found = table.mac_holder(MAC, frozenset({B}))
    assert found is not None and found.owner == A
    assert table.mac_holder(MAC, frozenset({A, B})) is None
    assert {user.owner for user in table.mac_users(MAC)} == {A, B}


# Rows from the network


@given(
    st.builds(
        Endpoint,
        st.just(A),
        st.text(st.characters(categories=["L", "N", "P", "S"]), min_size=1, max_size=64),
        st.binary(min_size=5, max_size=5).map(lambda tail: b"\x02" + tail),
        st.lists(
            st.one_of(
                st.builds(Binding, st.integers(1, 16), st.integers(0, 32), st.integers(0, CLAIM_MAX)),
            ),
            max_size=4,
            unique_by=lambda binding: binding.ip,
        ).map(lambda found: tuple(replace(each, ip=ip_address(f"10.0.0.{each.ip}")) for each in found)),
        st.lists(st.sampled_from(["web", "db.weft.local"]), max_size=3).map(tuple),
        st.just((("app", "wéb"), ("role", ""))),
    )
)
def test_a_row_comes_back_as_it_was(sent: Endpoint) -> None:
    """Ids of sixty-four characters of any script included."""
    assert decode_row_untrusted(A, encode_row(sent)) == sent


def test_a_row_says_that_its_container_is_away() -> None:
    """By one more field, which older versions pass over; whatever else stands there says nothing."""
    here = endpoint(A, ("10.32.0.1", 1))
    away = replace(here, away=True)
    assert decode_row_untrusted(A, encode_row(away)) == away
    fields = msgpack.unpackb(encode_row(away), use_list=True)
    assert fields[:6] == msgpack.unpackb(encode_row(here), use_list=True)
    for other in (False, None, 1, "true", [True]):
        assert decode_row_untrusted(A, msgpack.packb([*fields[:6], other])) == here


GOOD: list[Any] = ["c1", MAC, [[bytes([10, 32, 0, 1]), 24, 1]], ["web"], [["app", "web"]], "weft"]


def changed(position: int, value: Any) -> bytes:
    fields = list(GOOD)
    fields[position] = value
    return bytes(msgpack.packb(fields))


def address(packed: bytes, length: Any = 24, claim: Any = 1) -> bytes:
    return changed(2, [[packed, length, claim]])


MALFORMED = {
    "nothing": b"",
    "not msgpack": b"\xc1",
    "cut": encode_row(endpoint(A, ("10.32.0.1", 1)))[:-1],
    "more than one value": encode_row(endpoint(A, ("10.32.0.1", 1))) + b"\x00",
    "a map": bytes(msgpack.packb({"id": "c1"})),
    "five fields": bytes(msgpack.packb(GOOD[:5])),
    "an id of bytes": changed(0, b"c1"),
    "an id that moves the cursor": changed(0, "c1\x1b[2J"),
    "an id of half characters": changed(0, "c1").replace(b"c1", b"\xed\xa0"),
    "an id that is too long": changed(0, "c" * (TEXT_MAX_BYTES + 1)),
    "a short MAC": changed(1, MAC[:5]),
    "a MAC of text": changed(1, "02:00:00:00:00:01"),
    "a multicast MAC": changed(1, b"\x01\x00\x5e\x00\x00\x01"),
    "a broadcast MAC": changed(1, b"\xff" * 6),
    "a zero MAC": changed(1, bytes(6)),
    "the MAC of a bridge": changed(1, bridge_mac(B)),
    "no list of addresses": changed(2, 7),
    "too many addresses": changed(2, [[bytes([10, 0, 0, n]), 24, 1] for n in range(1, ADDRESSES_MAX + 2)]),
    "an address twice": changed(2, [[bytes([10, 0, 0, 1]), 24, 1], [bytes([10, 0, 0, 1]), 16, 2]]),
    "an address of text": address("10.0.0.1"),  # type: ignore[arg-type]
    "an address of five bytes": address(bytes(5)),
    "an address without claim": changed(2, [[bytes([10, 0, 0, 1]), 24]]),
    "an unspecified address": address(bytes(4)),
    "an unspecified IPv6 address": address(bytes(16), 64),
    "a loopback address": address(bytes([127, 0, 0, 1])),
    "a loopback IPv6 address": address(bytes(15) + b"\x01", 64),
    "a multicast address": address(bytes([224, 0, 0, 5])),
    "a multicast IPv6 address": address(b"\xff\x02" + bytes(13) + b"\x01", 64),
    "the broadcast address": address(b"\xff" * 4),
    "an IPv4 address mapped into IPv6": address(bytes(10) + b"\xff\xff\x0a\x00\x00\x01", 64),
    "a prefix of 33 bits": address(bytes([10, 0, 0, 1]), 33),
    "a prefix of 129 bits": address(b"\xfd" + bytes(15), 129),
    "a negative prefix": address(bytes([10, 0, 0, 1]), -1),
    "a prefix of text": address(bytes([10, 0, 0, 1]), "24"),
    "a prefix of truth": address(bytes([10, 0, 0, 1]), True),
    "a negative claim": address(bytes([10, 0, 0, 1]), 24, -1),
    "a claim beyond the limit": address(bytes([10, 0, 0, 1]), 24, CLAIM_MAX + 1),
    "a broken claim": address(bytes([10, 0, 0, 1]), 24, 1.5),
    "too many names": changed(3, ["n"] * (NAMES_MAX + 1)),
    "a name that is a number": changed(3, [7]),
    "too many labels": changed(4, [[str(n), ""] for n in range(LABELS_MAX + 1)]),
    "a label without value": changed(4, [["app"]]),
    "a label that is text": changed(4, ["ap"]),
    "a label value of two lines": changed(4, [["app", "a\nb"]]),
    "labels as a map": changed(4, {"app": "web"}),
    "a network that is none": changed(5, None),
    "a nest": bytes(msgpack.packb([[[[[[]]]]]] * 6)),
    "an extension": bytes(msgpack.packb(msgpack.ExtType(5, b"x"))),
}


@pytest.mark.parametrize("row", MALFORMED)
def test_a_malformed_row_is_counted_and_left_out(row: str) -> None:
    """Its neighbours on the page are not its fault."""
    with pytest.raises(ProtocolError):
        decode_row_untrusted(A, MALFORMED[row])
    good = endpoint(A, ("10.32.0.1", 1))
    table = EndpointTable()
    assert table.replace_page(A, 0, body(good, MALFORMED[row], replace(good, id="c2", mac=b"\x02" * 6))) == 1
    assert [each.id for each in table.of(A)] == ["c1", "c2"]
    assert table.replace_page(A, 0, body(good)) == 0


def test_the_good_row_of_these_tests_is_good() -> None:
    """Otherwise the malformed ones would prove nothing."""
    assert decode_row_untrusted(A, changed(0, "c1")).bindings[0].ip == X


def test_a_later_version_may_add_fields() -> None:
    """They are passed over."""
    assert decode_row_untrusted(A, bytes(msgpack.packb([*GOOD, "more"]))).id == "c1"


@pytest.mark.parametrize("broken", [b"\x00", b"\x00\x05abc", b"\xff\xff" + bytes(ROW_MAX_BYTES + 1)])
def test_a_page_whose_lengths_do_not_add_up_is_one_malformed_row(broken: bytes) -> None:
    """What an earlier version of the page said does not stay."""
    table = EndpointTable()
    table.replace_page(A, 0, body(endpoint(A, ("10.32.0.1", 1))))
    assert table.replace_page(A, 0, broken) == 1
    assert len(table) == 0
    assert table.holder(X) is None


@given(st.one_of(st.binary(max_size=200), st.lists(st.binary(max_size=60), max_size=4).map(lambda rows: body(*rows))))
def test_garbage_never_raises(garbage: bytes) -> None:
    """Neither as a page nor as its rows."""
    table = EndpointTable()
    assert table.replace_page(A, 0, garbage) >= 0
    agrees(table, {(A, 0): list(table.of(A))})


fields = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-5, (1 << 64) - 1), st.binary(max_size=17), st.text(max_size=8)),
    lambda inner: st.lists(inner, max_size=7),
    max_leaves=30,
)


@given(st.lists(fields, min_size=6, max_size=7), st.sets(st.integers(0, 5)))
def test_well_formed_lists_of_anything_never_raise(random_fields: list[Any], kept_good: set[int]) -> None:
    """Fields of wrong kinds beside right ones. What is let through comes back as it was."""
    mixed = [GOOD[i] if i in kept_good else field for i, field in enumerate(random_fields)]
    row = bytes(msgpack.packb(mixed))
    try:
        found = decode_row_untrusted(A, row)
    except ProtocolError:
        return
    assert decode_row_untrusted(A, encode_row(found)) == found


def test_the_same_row_twice_is_one_endpoint() -> None:
    """On one page."""
    table = EndpointTable()
    assert table.replace_page(A, 0, body(*[endpoint(A, ("10.32.0.1", 1))] * 2)) == 0
    assert len(table) == 1
    assert not table.is_contested(next(table.of(A)))


def test_what_the_pager_publishes_is_what_the_table_takes() -> None:
    """The largest row that fits on a page, and a few hundred others, over several pages."""
    pager, table = TablePager(), EndpointTable()
    largest = replace(endpoint(A, ("10.40.0.1", 1)), id="å" * 64, labels=tuple((f"k{n}", "v" * 250) for n in range(14)))
    assert ROW_MAX_BYTES - 400 < len(encode_row(largest)) <= ROW_MAX_BYTES
    sent = [largest, *(endpoint(A, (f"10.32.1.{n}", n), name=f"c{n}") for n in range(1, 250))]
    for number, each in enumerate(sent):
        pager.put(str(number), encode_row(each))
    for index in range(len(pager)):
        assert table.replace_page(A, index, pager.body(index)) == 0
    assert len(pager) > 1
    assert sorted(table.of(A), key=lambda each: each.id) == sorted(sent, key=lambda each: each.id)
