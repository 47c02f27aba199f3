"""The desired state: who holds an address, what is behind whom, and nothing in clear with a secret."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from ipaddress import ip_address, ip_interface
from types import MappingProxyType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataplane.desired import NOWHERE, SLEEVE, VXLAN, Desired, Exposed, Port, RemoteEndpoint, RemotePeer, Segment
from dataplane.expansion import expand
from dataplane.objects import BRIDGE_FDB, FLOOD, LINK, NEIGHBOUR, VXLAN_FDB, Key, Vxlan
from gossip.names import PeerName
from gossip.pages import TablePager
from mesh.endpoints import EXPOSED_ID, Binding, Endpoint, EndpointTable, bridge_mac, derive_mac, encode_row
from mesh.forwarding import BEST, NONE, Forwarding, Path, Remote, choose_path, held_exposed
from tests.mesh.remotes import LOCAL, ME, P, Q, remotes

SEGMENT = Segment("weft", bridge_mac(ME), 1450, 7, 6784)
X, Y, Z = (ip_address(text) for text in ("10.32.0.1", "10.32.0.2", "fd00:32::3"))
TO_P, TO_Q = ip_address("10.9.0.3"), ip_address("10.9.0.7")
PATHS = {P: Path(VXLAN, BEST, TO_P), Q: Path(VXLAN, BEST, TO_Q)}
NOBODY: frozenset[PeerName] = frozenset()


def attached(owner: PeerName, *claims: tuple[Any, int], name: str = "c1", salt: int = 0) -> Endpoint:
    bindings = tuple(Binding(ip, 16 if ip.version == 4 else 64, claim) for ip, claim in claims)
    first = bindings[0].ip if bindings else X
    return Endpoint(owner, name, derive_mac("weft", first, salt), bindings)


def table_of(*endpoints: Endpoint) -> EndpointTable:
    table = EndpointTable()
    pagers: dict[PeerName, TablePager] = {}
    for number, each in enumerate(endpoints):
        pager = pagers.setdefault(each.owner, TablePager())
        pager.put(str(number), encode_row(each))
        table.replace_page(each.owner, 0, pager.body(0))
    return table


def port_of(endpoint: Endpoint) -> Port:
    interfaces = tuple(ip_interface(str(binding)) for binding in endpoint.bindings)
    return Port(f"vw{endpoint.id}", "ethwe", "/run/netns/c1", (4, 1), endpoint.mac, interfaces)


def desired(
    table: EndpointTable,
    *,
    ports: tuple[Port, ...] = (),
    paths: Mapping[PeerName, Path] = MappingProxyType(PATHS),
    expired: frozenset[PeerName] = NOBODY,
    builder: Forwarding | None = None,
) -> Desired:
    return (builder or Forwarding()).desired(SEGMENT, ports, paths, table, ME, expired, True)


def test_remote_endpoints_are_behind_their_hosts() -> None:
    """Each with all its addresses, in order of owners; our own are not remote."""
    of_p, of_q, own = attached(P, (X, 1), (Z, 1)), attached(Q, (Y, 1)), attached(ME, (ip_address("10.32.0.9"), 1))
    found = desired(table_of(of_q, own, of_p))
    assert found.endpoints == (RemoteEndpoint(of_p.mac, (X, Z), TO_P), RemoteEndpoint(of_q.mac, (Y,), TO_Q))
    assert found.peers == (RemotePeer(P, bridge_mac(P), TO_P), RemotePeer(Q, bridge_mac(Q), TO_Q))


@pytest.mark.parametrize("secret", [False, True])
def test_what_is_behind_the_sleeve_is_behind_the_tap(secret: bool) -> None:
    """And VXLAN still knows where it would send, but with a secret."""
    of_p = attached(P, (X, 1), (Y, 1))
    to = None if secret else TO_P
    found = desired(table_of(of_p), paths={P: Path(SLEEVE, "vxlan-silent", to)})
    assert found.endpoints == (RemoteEndpoint(of_p.mac, (X, Y), to, SLEEVE),)
    assert found.peers == (RemotePeer(P, bridge_mac(P), to, SLEEVE),)
    objects = expand(found).objects
    assert {objects[Key(BRIDGE_FDB, "weft", mac)] for mac in (of_p.mac, bridge_mac(P))} == {"weft-tap"}
    assert not any(key.kind == FLOOD for key in objects)


def test_what_is_behind_each_host_is_known_beside_the_desired_state() -> None:
    """For the worker: only what leads to it, in the groups of the desired state."""
    builder, mine = Forwarding(), attached(ME, (ip_address("10.32.0.9"), 1))
    of_p, lost, of_q = attached(P, (Y, 1)), attached(P, (X, 1), name="c3"), attached(Q, (X, 2), name="c2")
    assert lost.mac == of_q.mac
    found = desired(table_of(of_p, lost, of_q, mine), builder=builder)
    assert builder.behind == {P: found.groups[:1], Q: found.groups[1:]}
    assert [each.mac for each in found.endpoints] == [of_p.mac, of_q.mac]
    found = desired(table_of(of_p, of_q), builder=builder, expired=frozenset({Q}))
    assert builder.behind == {P: found.groups}
    assert [each.mac for each in found.endpoints] == [of_p.mac]


def test_a_host_without_a_path_keeps_its_endpoints() -> None:
    """ARP is answered, frames are dropped: a container gets silence rather than a flood."""
    of_p = attached(P, (X, 1))
    found = desired(table_of(of_p), paths={P: Path(NONE, "no-vxlan")})
    assert found.endpoints == (RemoteEndpoint(of_p.mac, (X,), None, NOWHERE),)
    assert found.peers == ()
    assert desired(table_of(of_p), paths={}).endpoints == found.endpoints, "its peer document is still on its way"


def test_endpoints_of_expired_hosts_vanish_and_what_they_held_falls_to_the_next() -> None:
    """Gone peers at once, unreachable ones after ten minutes: who calls is told by `expired`."""
    of_p, of_q = attached(P, (X, 1)), attached(Q, (X, 2), name="c2", salt=1)
    table = table_of(of_p, of_q)
    assert desired(table).endpoints == (RemoteEndpoint(of_p.mac, (), TO_P), RemoteEndpoint(of_q.mac, (X,), TO_Q))
    assert desired(table, expired=frozenset({Q})).endpoints == (RemoteEndpoint(of_p.mac, (X,), TO_P),)


def test_a_mac_that_two_hosts_have_leads_to_the_holder_of_its_address() -> None:
    """Q took the address over while P was away, with its MAC. P has the lower name and must not get the frames."""
    of_p, of_q = attached(P, (X, 1), (Y, 1)), attached(Q, (X, 2), name="c2")
    assert of_p.mac == of_q.mac
    assert desired(table_of(of_p, of_q)).endpoints == (RemoteEndpoint(of_q.mac, (X,), TO_Q),)


def test_a_local_mac_is_never_behind_another_host() -> None:
    """Our container keeps sending with it; until it has a new one it keeps the entry."""
    own = attached(ME, (X, 1))
    found = desired(table_of(own, attached(Q, (X, 2), name="c2")), ports=(port_of(own),))
    assert found.endpoints == ()


def test_the_holder_elsewhere_wins_over_a_container_of_ours() -> None:
    """Its address was taken while we were away: our neighbours ask for the holder, and ours does not answer."""
    own, taken = attached(ME, (X, 1), (Y, 1)), attached(Q, (X, 2), name="c2", salt=1)
    found = desired(table_of(own, taken), ports=(port_of(own),))
    assert found.ports == (replace(port_of(own), addresses=(ip_interface("10.32.0.2/16"),)),)
    assert found.endpoints == (RemoteEndpoint(taken.mac, (X,), TO_Q),)
    objects = expand(found).objects
    assert objects[Key(NEIGHBOUR, "weft", X.packed)] == taken.mac
    assert objects[Key(NEIGHBOUR, "weft", Y.packed)] == own.mac


def test_it_gets_the_address_back_when_the_holder_lets_go() -> None:
    """Detached there, or its host expired."""
    own, taken = attached(ME, (X, 1)), attached(Q, (X, 2), name="c2", salt=1)
    table, builder = table_of(own, taken), Forwarding()
    assert desired(table, ports=(port_of(own),), builder=builder).ports[0].addresses == ()
    expired = desired(table, ports=(port_of(own),), builder=builder, expired=frozenset({Q}))
    assert expired.ports == (port_of(own),)
    table.replace_page(Q, 0, b"")
    assert desired(table, ports=(port_of(own),), builder=builder).ports == (port_of(own),)


def test_an_attach_under_way_is_not_taken_for_a_loser() -> None:
    """The kernel is asked before the mesh is told: the row is not there, and an old claim may be."""
    own, dead = attached(ME, (X, 2)), attached(Q, (X, 1), name="c2")
    found = desired(table_of(dead), ports=(port_of(own),))
    assert found.ports == (port_of(own),)
    assert found.endpoints == (), "the MAC is ours now"


def test_a_group_that_did_not_change_is_the_same_object() -> None:
    """Whoever compares two states then compares nothing."""
    table, builder = table_of(attached(P, (X, 1)), attached(Q, (Y, 1), name="c2")), Forwarding()
    first = desired(table, builder=builder)
    second = desired(table, builder=builder)
    assert all(a is b for a, b in zip(first.groups, second.groups, strict=True))
    third = desired(table, builder=builder, paths=PATHS | {Q: Path(NONE, "no-vxlan")})
    assert third.groups[0] is first.groups[0]
    assert (third.endpoints[1].destination, third.endpoints[1].via) == (None, NOWHERE)
    moved = desired(table, builder=builder, paths=PATHS | {Q: Path(SLEEVE, "vxlan-silent", TO_Q)})
    assert moved.groups[0] is first.groups[0]
    assert (moved.endpoints[1].destination, moved.endpoints[1].via) == (TO_Q, SLEEVE)


def test_an_exposed_host_elsewhere_is_behind_its_own_bridge() -> None:
    """Its addresses are answered for, and its MAC leads where its bridge is, once."""
    host = Endpoint(P, EXPOSED_ID, bridge_mac(P), (Binding(X, 16, 1),))
    found = desired(table_of(host))
    assert found.endpoints == (RemoteEndpoint(bridge_mac(P), (X,), TO_P),)
    objects = expand(found).objects
    assert objects[Key(NEIGHBOUR, "weft", X.packed)] == bridge_mac(P)
    assert objects[Key(VXLAN_FDB, "weft-vx", bridge_mac(P))] == TO_P.packed


def test_an_exposed_address_that_another_host_holds_is_not_set_here() -> None:
    """Until it lets go of it, or is forgotten."""
    mine = Endpoint(ME, EXPOSED_ID, bridge_mac(ME), (Binding(X, 16, 1), Binding(Y, 16, 1)))
    wanted = (Exposed(ip_interface(f"{X}/16")), Exposed(ip_interface(f"{Y}/16"), False))
    table = table_of(mine, attached(P, (X, 2)))
    assert held_exposed(wanted, table, ME, NOBODY) == wanted[1:]
    assert held_exposed(wanted, table, ME, frozenset({P})) == wanted
    assert held_exposed(wanted, table_of(mine), ME, NOBODY) is wanted


# Properties over random states

OWNERS = (ME, P, Q, PeerName(b"\x09" * 8))
claims = st.lists(st.tuples(st.sampled_from([X, Y, Z]), st.integers(0, 2)), max_size=2, unique_by=lambda c: c[0])
endpoints = st.builds(
    lambda owner, claims, name, salt: attached(owner, *claims, name=name, salt=salt),
    st.sampled_from(OWNERS), claims, st.sampled_from(["c1", "c2"]), st.integers(0, 1),
)  # fmt: skip
tables = st.lists(st.lists(endpoints, max_size=5), min_size=1, max_size=4)


@given(tables, st.lists(st.tuples(st.sampled_from(OWNERS[1:]), remotes)), st.sets(st.sampled_from(OWNERS[1:])))
def test_with_a_secret_nothing_can_leave_in_clear(
    states: list[list[Endpoint]], peers: list[tuple[PeerName, Remote]], expired: set[PeerName]
) -> None:
    """No destination, nothing by VXLAN and no VXLAN device, after any history without the secret."""
    secret, builder = replace(LOCAL, has_secret=True), Forwarding()
    before = {name: choose_path(LOCAL, peer, None) for name, peer in peers}
    paths = {name: choose_path(secret, peer, before[name]) for name, peer in peers}
    segment = replace(SEGMENT, vxlan_port=None)
    for state in states:
        table = table_of(*state)
        builder.desired(SEGMENT, (), before, table, ME, frozenset(expired), True)
        found = builder.desired(segment, (), paths, table, ME, frozenset(expired), True)
        assert found.segment.vxlan_port is None
        assert all(each.destination is None and each.via != VXLAN for each in (*found.peers, *found.endpoints))
        objects = expand(found).objects
        assert not any(key.kind in (VXLAN_FDB, FLOOD) for key in objects)
        assert not any(isinstance(value, Vxlan) for key, value in objects.items() if key.kind == LINK)


@given(tables, st.sets(st.sampled_from(OWNERS[1:])))
def test_every_address_and_mac_leads_to_its_holder_or_nowhere(
    states: list[list[Endpoint]], expired_set: set[PeerName]
) -> None:
    """One builder over several states gives what a fresh one gives; each address and MAC is there once."""
    builder, expired = Forwarding(), frozenset(expired_set)
    for state in states:
        table = table_of(*state)
        own = {each.mac: each for each in table.of(ME)}
        ports = tuple(port_of(each) for each in own.values())
        found = desired(table, ports=ports, expired=expired, builder=builder)
        assert found == desired(table, ports=ports, expired=expired)
        remote_macs = [each.mac for each in found.endpoints]
        assert len(remote_macs) == len(set(remote_macs))
        assert not set(remote_macs) & {port.mac for port in found.ports}
        told = [ip for each in found.endpoints for ip in each.addresses]
        kept = [(port.mac, each.ip) for port in found.ports for each in port.addresses]
        assert len(told) == len(set(told))
        assert not set(told) & {ip for _, ip in kept}
        for endpoint in found.endpoints:
            for ip in endpoint.addresses:
                holder = table.holder(ip, expired)
                assert holder is not None and holder.mac == endpoint.mac and holder.owner not in expired
        for mac, ip in kept:
            holder = table.holder(ip, expired)
            assert holder is None or holder.owner == ME or mac not in own
        keys = expand(found).objects
        assert {key.item for key in keys if key.kind == BRIDGE_FDB} >= set(remote_macs)
