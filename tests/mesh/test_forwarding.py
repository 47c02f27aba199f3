"""Paths, the MTU of the network, the desired state: every reason and preference, and nothing in clear with a secret."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from dataclasses import replace
from ipaddress import ip_address, ip_interface, ip_network
from types import MappingProxyType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataplane.desired import NOWHERE, SLEEVE, VXLAN, Desired, Exposed, Port, RemoteEndpoint, RemotePeer, Segment
from dataplane.expansion import expand
from dataplane.objects import BRIDGE_FDB, FLOOD, LINK, NEIGHBOUR, VXLAN_FDB, Key, Vxlan
from dataplane.sleeve import control
from dataplane.sleeve.control import SILENT, UP, WRONG_SECRET, PeerStatus
from gossip.names import PeerName
from gossip.pages import TablePager
from gossip.peers import AWAY, GONE, LIVE, PeerRecord
from mesh import forwarding, vxlanhealth
from mesh.endpoints import EXPOSED_ID, Binding, Endpoint, EndpointTable, bridge_mac, derive_mac, encode_row
from mesh.forwarding import (
    BEST,
    HOLD_S,
    MTU_MIN,
    NONE,
    RELAY,
    SLEEVE_ADDRESSES_MAX,
    Forwarding,
    Local,
    Path,
    Remote,
    choose_path,
    held_exposed,
    network_mtu,
    own_mtu,
    path_ceiling,
    sleeve_addresses,
)

ME, P, Q = (PeerName(bytes([number]) * 8) for number in (5, 3, 7))
LOCAL = Local(
    ME, False, True, 6784, (ip_network("10.9.0.0/24"), ip_network("fd00:9::/64")), frozenset({ip_address("10.9.0.5")})
)
LOCAL6 = replace(LOCAL, vxlan6=True, zones=frozenset({"3"}))
"""With a VXLAN device for IPv6, and a link-local address on interface 3."""
ATTRIBUTES: Mapping[str, Any] = {
    "mtu": 1450, "vxlan": True, "vxlan_port": 6784, "advertise": False, "sleeve_key": b"\x07" * 32,
}  # fmt: skip


def remote(*addresses: str, state: str = LIVE, link: str | None = None, **attributes: Any) -> Remote:
    """A peer in reach that tells `addresses`."""
    told = tuple(f"[{each}]:6783" if ":" in each else f"{each}:6783" for each in addresses)
    record = PeerRecord("p", bytes(16), state, "0", told, MappingProxyType({**ATTRIBUTES, **attributes}))
    return Remote(record, True, 0.0, ip_address(link) if link else None)


def seen(peer: Remote, state: str, via: tuple[PeerName, ...] = ()) -> Remote:
    """A peer of which the worker knows that."""
    row = PeerStatus(P, state, None, True, "aes-256-gcm", 0.0, None, 0.0, 64, 0, (), via)
    return replace(peer, sleeve=row)


def out_of_reach(peer: Remote, for_s: float) -> Remote:
    return replace(peer, reachable=False, unreachable_s=for_s, link_address=None)


# Reasons

TO_3 = ip_address("10.9.0.3")
TO_3_V6 = ip_address("fd00:9::3")
SECRET = replace(LOCAL, has_secret=True)
REASONS: dict[str, tuple[Local, Remote, Path]] = {
    "best": (LOCAL, remote("10.9.0.3"), Path(VXLAN, "best", TO_3)),
    "no-vxlan here": (replace(LOCAL, vxlan=False), remote("10.9.0.3"), Path(SLEEVE, "no-vxlan")),
    "no-vxlan there": (LOCAL, remote("10.9.0.3", vxlan=False), Path(SLEEVE, "no-vxlan")),
    "other-port": (LOCAL, remote("10.9.0.3", vxlan_port=7000), Path(SLEEVE, "other-port")),
    "no-address": (LOCAL, remote(), Path(SLEEVE, "no-address")),
    "no-address over IPv4": (LOCAL, remote("fd00:9::3"), Path(SLEEVE, "no-address")),
    "best over IPv6": (LOCAL6, remote("fd00:9::3"), Path(VXLAN, "best", TO_3_V6)),
    "best over IPv6, silent over IPv4": (
        LOCAL6,
        replace(remote("10.9.0.3", "fd00:9::3"), vxlan_faults={4: "vxlan-silent"}),
        Path(VXLAN, "best", TO_3_V6),
    ),
    "vxlan-silent over both": (
        LOCAL6,
        replace(remote("10.9.0.3", "fd00:9::3"), vxlan_faults={4: "vxlan-silent", 6: "vxlan-mtu"}),
        Path(SLEEVE, "vxlan-silent", TO_3),
    ),
    "vxlan-mtu over IPv6": (
        LOCAL6,
        replace(remote("fd00:9::3"), vxlan_faults={6: "vxlan-mtu"}),
        Path(SLEEVE, "vxlan-mtu", TO_3_V6),
    ),
    "vxlan-silent": (
        LOCAL,
        replace(remote("10.9.0.3"), vxlan_faults={4: "vxlan-silent"}),
        Path(SLEEVE, "vxlan-silent", TO_3),
    ),
    "vxlan-mtu": (LOCAL, replace(remote("10.9.0.3"), vxlan_faults={4: "vxlan-mtu"}), Path(SLEEVE, "vxlan-mtu", TO_3)),
    "nat before it": (LOCAL, remote("10.8.0.3", link="192.0.2.7"), Path(SLEEVE, "nat", ip_address("192.0.2.7"))),
    "nat before us": (replace(LOCAL, nat=True), remote("10.8.0.3"), Path(SLEEVE, "nat", ip_address("10.8.0.3"))),
    "nat, it says": (LOCAL, remote("10.8.0.3", nat=True), Path(SLEEVE, "nat", ip_address("10.8.0.3"))),
    "behind the same nat": (replace(LOCAL, nat=True), remote("10.9.0.3", nat=True), Path(VXLAN, "best", TO_3)),
    "nat that VXLAN passes": (
        replace(LOCAL, nat=True),
        replace(remote("10.8.0.3"), vxlan_answers=frozenset({4})),
        Path(VXLAN, "best", ip_address("10.8.0.3")),
    ),
    "no-direct": (SECRET, seen(remote("10.9.0.3"), UP, via=(Q,)), Path(RELAY, "no-direct", None, (Q,))),
    "no-direct, clear": (
        LOCAL,
        replace(seen(remote("10.9.0.3"), UP, via=(Q,)), vxlan_faults={4: "vxlan-silent"}),
        Path(RELAY, "no-direct", TO_3, (Q,)),
    ),
    "relay not needed": (LOCAL, seen(remote("10.9.0.3"), UP, via=(Q,)), Path(VXLAN, "best", TO_3)),
    "silent": (SECRET, seen(remote("10.9.0.3"), SILENT), Path(NONE, "silent")),
    "silent, with a route once": (SECRET, seen(remote("10.9.0.3"), SILENT, via=(Q,)), Path(NONE, "silent")),
    "wrong-secret": (SECRET, seen(remote("10.9.0.3"), WRONG_SECRET), Path(NONE, "wrong-secret")),
    "no-wireguard": (SECRET, remote("10.9.0.3"), Path(SLEEVE, "no-wireguard")),
    "no-sleeve, secret": (SECRET, remote("10.9.0.3", sleeve_key=b""), Path(NONE, "no-sleeve")),
    "no-sleeve, clear": (LOCAL, remote("10.9.0.3", vxlan=False, sleeve_key="no key"), Path(NONE, "no-sleeve")),
    "no sleeve needed": (LOCAL, remote("10.9.0.3", sleeve_key=None), Path(VXLAN, "best", TO_3)),
    "unreachable, held": (
        LOCAL,
        out_of_reach(remote("10.9.0.3"), HOLD_S - 1),
        Path(VXLAN, "unreachable", TO_3),
    ),
    "unreachable by the sleeve, held": (
        LOCAL,
        out_of_reach(replace(remote("10.9.0.3"), vxlan_faults={4: "vxlan-silent"}), HOLD_S - 1),
        Path(SLEEVE, "unreachable", TO_3),
    ),
    "unreachable with a secret, held": (
        SECRET,
        out_of_reach(remote("10.9.0.3"), HOLD_S - 1),
        Path(SLEEVE, "unreachable"),
    ),
    "unreachable for long": (LOCAL, out_of_reach(remote("10.9.0.3"), HOLD_S), Path(NONE, "unreachable")),
    "away": (
        LOCAL,
        out_of_reach(remote("10.9.0.3", state=AWAY), 1),
        Path(VXLAN, "away", TO_3),
    ),
    "away for long": (LOCAL, out_of_reach(remote("10.9.0.3", state=AWAY), HOLD_S), Path(NONE, "unreachable")),
}


@pytest.mark.parametrize("case", REASONS)
def test_every_path_has_its_reason(case: str) -> None:
    """Why not a better one."""
    local, peer, expected = REASONS[case]
    assert choose_path(local, peer, None) == expected


def test_every_reason_code_is_reached() -> None:
    """A code that no test reaches is one that no user can look up in good faith."""
    names = (
        "BEST", "NO_WIREGUARD", "NO_VXLAN", "NO_ADDRESS", "OTHER_PORT", "NAT", "NO_DIRECT", "NO_SLEEVE", "UNREACHABLE",
        "AWAY_REASON",
    )  # fmt: skip
    codes = {getattr(forwarding, name) for name in names} | {vxlanhealth.SILENT, vxlanhealth.TOO_NARROW}
    codes |= {SILENT, WRONG_SECRET}
    assert {path.reason for _, _, path in REASONS.values()} == codes


def test_every_reason_code_is_explained() -> None:
    """In the table that users are pointed to, each with the path it stands beside; and no code that is not one."""
    lines = (pathlib.Path(__file__).parents[2] / "README.md").read_text().splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    table = {row[1].strip("`"): row[0] for row in rows if len(row) == 4 and row[1].startswith("`")}
    shown = {path.reason: path.kind for _, _, path in REASONS.values() if path.reason not in ("unreachable", "away")}
    shown |= {control.SILENT: NONE, control.WRONG_SECRET: NONE}
    assert table.keys() == shown.keys() | {"unreachable", "away"}
    assert {reason: table[reason].strip("`") for reason in shown} == shown


@pytest.mark.parametrize(
    "attributes",
    [{}, {"vxlan": "yes"}, {"vxlan": True}, {"vxlan": True, "vxlan_port": "6784"}, {"vxlan": 0, "vxlan_port": 6784}],
)
def test_attributes_of_other_kinds_or_none_at_all_give_no_path(attributes: dict[str, Any]) -> None:
    """What another version or nobody in their right mind says must not raise."""
    peer = remote("10.9.0.3")
    record = replace(peer.record, attributes=attributes)
    assert choose_path(LOCAL, replace(peer, record=record), None).kind == NONE


# Destinations


def destination(peer: Remote, previous: str | None = None, local: Local = LOCAL) -> str | None:
    before = Path(VXLAN, BEST, ip_address(previous)) if previous else None
    found = choose_path(local, peer, before).destination
    return str(found) if found is not None else None


def test_the_other_end_of_the_link_comes_first() -> None:
    """Packets are known to pass there."""
    assert destination(remote("10.9.0.3", "10.8.0.3", link="10.8.0.3"), previous="10.9.0.3") == "10.8.0.3"


def test_a_link_from_an_address_that_nobody_told_counts_too() -> None:
    """Behind a NAT, for one; but not where the peer's user said which address it is to be."""
    assert destination(remote("10.9.0.3", link="192.0.2.7")) == "192.0.2.7"
    assert destination(remote("10.9.0.3", link="192.0.2.7", advertise=True)) == "10.9.0.3"


def test_without_a_link_what_served_before_stays() -> None:
    """Links come and go in a sparse mesh; frames need not follow."""
    assert destination(remote("10.9.0.3", "10.8.0.3"), previous="10.8.0.3") == "10.8.0.3"
    assert destination(remote("10.9.0.3"), previous="10.8.0.3") == "10.9.0.3", "it is not told any more"


def test_then_the_nearest_then_the_first_told() -> None:
    """An address in a network that we are in needs no router."""
    assert destination(remote("172.16.0.3", "10.9.0.3", "10.9.0.4")) == "10.9.0.3"
    assert destination(remote("172.16.0.3", "172.17.0.3")) == "172.16.0.3"


def test_an_ipv6_link_does_not_hide_an_ipv4_address() -> None:
    """Without a device for IPv6 there is no sending to the one, but to the other."""
    assert destination(remote("fd00:9::3", "10.9.0.3", link="fd00:9::3")) == "10.9.0.3"


def test_our_own_address_is_not_the_way_to_somebody_else() -> None:
    """Every machine of some virtualisers has 10.0.2.15 on its first interface."""
    local = replace(
        LOCAL,
        networks=(ip_network("10.0.2.0/24"), ip_network("192.168.56.0/24")),
        addresses=frozenset({ip_address("10.0.2.15"), ip_address("192.168.56.10")}),
    )
    assert destination(remote("10.0.2.15", "192.168.56.11"), local=local) == "192.168.56.11"
    assert destination(remote("10.0.2.15"), local=local) is None


@pytest.mark.parametrize("nowhere", ["127.0.0.1", "0.0.0.0", "224.0.0.1", "255.255.255.255"])
def test_addresses_that_lead_nowhere_are_left_out(nowhere: str) -> None:
    """Told or seen on a link, through a tunnel on this host for one."""
    assert destination(remote(nowhere, "10.8.0.3", link=nowhere)) == "10.8.0.3"
    assert destination(remote(nowhere, link=nowhere)) is None


@pytest.mark.parametrize("told", ["host3", "10.9.0", "10.9.0.3.4", "fe80::1%eth0", "::ffff:10.9.0.3", "-"])
def test_what_is_told_need_not_be_an_address(told: str) -> None:
    """Any member may say anything; the rest of the table goes on."""
    assert destination(remote(told, "10.8.0.3")) == "10.8.0.3"
    assert destination(remote(told)) is None


def test_the_destination_of_a_peer_out_of_reach_stays() -> None:
    """Its daemon has been stopped; its kernel is where the link was, also where only the link knew that."""
    known = remote("10.8.0.3", link="192.0.2.7")
    before = choose_path(LOCAL, known, None)
    after = choose_path(LOCAL, out_of_reach(known, 5.0), before)
    assert after == Path(SLEEVE, "unreachable", ip_address("192.0.2.7"))


# Where the sleeve may be


def listens(peer: Remote, local: Local = LOCAL) -> list[tuple[str, int]]:
    return list(sleeve_addresses(local, peer))


def test_the_sleeve_is_sought_where_the_link_ends_and_then_where_the_peer_tells() -> None:
    """Both families; the port is the one it tells, whatever the link's is."""
    assert listens(remote("10.9.0.3", "fd00:9::3")) == [("10.9.0.3", 6783), ("fd00:9::3", 6783)]
    assert listens(remote("10.9.0.3", "fd00:9::3", link="fd00:9::3")) == [("fd00:9::3", 6783), ("10.9.0.3", 6783)]
    assert listens(remote("10.9.0.3", link="192.0.2.7")) == [("192.0.2.7", 6783), ("10.9.0.3", 6783)]
    assert listens(remote("10.9.0.3", link="192.0.2.7", advertise=True)) == [("10.9.0.3", 6783)]
    peer = remote("10.9.0.3", link="10.9.0.3")
    other_port = replace(peer, record=replace(peer.record, addresses=("192.0.2.7:7000", "10.9.0.3:7001")))
    assert listens(other_port) == [("10.9.0.3", 7001), ("192.0.2.7", 7000)]


@pytest.mark.parametrize(
    "nowhere", ["127.0.0.1", "::1", "fe80::1", "fe80::1%eth0", "::ffff:10.9.0.3", "host3", "10.9.0.5"]
)
def test_the_sleeve_is_not_sought_where_nothing_can_be(nowhere: str) -> None:
    """Names, our own addresses, and those that mean nothing on another host."""
    assert listens(remote(nowhere, "10.9.0.3")) == [("10.9.0.3", 6783)]
    assert listens(remote(nowhere)) == []


def test_the_sleeve_is_sought_at_a_bounded_number_of_addresses() -> None:
    """However many a peer tells."""
    assert len(listens(remote(*(f"10.9.1.{number}" for number in range(1, 17))))) == SLEEVE_ADDRESSES_MAX


# The MTU of the network


def member(mtu: object, state: str = LIVE, unreachable_s: float = 0.0) -> Remote:
    return replace(remote(state=state, mtu=mtu), unreachable_s=unreachable_s, reachable=not unreachable_s)


def test_the_smallest_member_decides_at_once() -> None:
    """A packet that one member cannot take must not leave any container."""
    assert network_mtu(8950, [member(1450), member(8950)], 8950) == 1450
    assert network_mtu(8950, [], None) == 8950


def test_the_mtu_never_grows_while_a_daemon_runs() -> None:
    """Neither when the narrow member leaves nor when our own underlay widens."""
    assert network_mtu(8950, [member(8950)], 1450) == 1450


def test_it_may_grow_when_there_is_no_current_one() -> None:
    """That is a launch."""
    assert network_mtu(8950, [member(8950)], None) == 8950


def test_members_that_are_held_count_and_those_that_went_do_not() -> None:
    """As long as frames are sent to a host, its MTU matters."""
    assert network_mtu(8950, [member(1450, unreachable_s=HOLD_S - 1)], None) == 1450
    assert network_mtu(8950, [member(1450, unreachable_s=HOLD_S)], None) == 8950
    assert network_mtu(8950, [member(1450, GONE)], None) == 8950
    assert network_mtu(8950, [member(1450, AWAY, 5.0)], None) == 1450


@pytest.mark.parametrize("told", [MTU_MIN - 1, 0, -1450, True, "1450", b"\x05\xaa", None])
def test_an_impossible_mtu_is_not_believed(told: object) -> None:
    """It would cut the whole network off."""
    assert network_mtu(1450, [member(told)], None) == 1450


# The desired state

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


# Properties over random states

OWNERS = (ME, P, Q, PeerName(b"\x09" * 8))
claims = st.lists(st.tuples(st.sampled_from([X, Y, Z]), st.integers(0, 2)), max_size=2, unique_by=lambda c: c[0])
endpoints = st.builds(
    lambda owner, claims, name, salt: attached(owner, *claims, name=name, salt=salt),
    st.sampled_from(OWNERS), claims, st.sampled_from(["c1", "c2"]), st.integers(0, 1),
)  # fmt: skip
tables = st.lists(st.lists(endpoints, max_size=5), min_size=1, max_size=4)
addresses = st.lists(st.sampled_from(["10.9.0.3", "10.8.0.3", "fd00:9::3", "127.0.0.1", "host"]), max_size=3)
remotes = st.builds(
    lambda told, link, state, reach, attributes, faults: replace(
        remote(*told, state=state, link=link, **attributes),
        reachable=reach < 0,
        unreachable_s=max(0.0, reach),
        vxlan_faults={version: each for version, each in faults.items() if each},
    ),
    addresses,
    st.sampled_from([None, "10.9.0.3", "fd00:9::3", "fe80::3%3"]),
    st.sampled_from([LIVE, AWAY]),
    st.sampled_from([-1.0, 0.0, HOLD_S - 1, HOLD_S, 1e9]),
    st.fixed_dictionaries(
        {},
        optional={
            "vxlan": st.booleans(),
            "vxlan_port": st.sampled_from([6784, 1]),
            "sleeve_key": st.sampled_from([b"\x01" * 32, b"", 7]),
        },
    ),
    st.fixed_dictionaries(dict.fromkeys((4, 6), st.sampled_from(["", vxlanhealth.SILENT, vxlanhealth.TOO_NARROW]))),
)
locals_ = st.builds(
    Local, st.just(ME), st.booleans(), st.booleans(), st.just(6784), st.just(LOCAL.networks), st.just(frozenset()),
    st.booleans(), st.just(frozenset({"3"})),
)  # fmt: skip


@given(locals_, remotes, st.one_of(st.none(), remotes))
def test_a_path_is_one_of_three_and_vxlan_leads_somewhere(local: Local, peer: Remote, before: Remote | None) -> None:
    """And never anywhere with a secret, or without VXLAN, or after the hold, whatever came before."""
    previous = choose_path(replace(local, has_secret=False, vxlan=True), before, None) if before else None
    path = choose_path(local, peer, previous)
    assert path.kind in (VXLAN, SLEEVE, NONE)
    if path.kind == VXLAN:
        assert path.destination is not None and path.destination.version not in peer.vxlan_faults
    if local.has_secret or not local.vxlan or peer.unreachable_s >= HOLD_S:
        assert path.kind != VXLAN and path.destination is None
    if path.kind == SLEEVE:
        assert len(peer.record.attributes["sleeve_key"]) == 32
    if path.destination is not None:
        assert local.vxlan6 or path.destination.version == 4
        assert not path.destination.is_loopback
    assert choose_path(local, peer, path) == path, "a second look changes nothing"


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
# What a host says that it takes


def test_a_narrow_path_lessens_what_a_host_says_it_takes() -> None:
    """But for one that is below what IPv6 needs: one bad pair does not make all slow."""
    assert own_mtu(1450, []) == 1450
    assert own_mtu(1450, [8950, 1350, 1400]) == 1350
    assert own_mtu(1450, [1280, 1279, 600]) == 1280
    assert own_mtu(1000, [1350]) == 1000


@pytest.mark.parametrize(
    ("attributes", "destination", "ceiling"),
    [
        ({"mtu": 1350, "underlay_mtu": 1450}, "10.9.0.2", 1450),
        ({"mtu": 1350, "underlay_mtu": 8950}, "10.9.0.2", 8900),
        ({"mtu": 1350}, "10.9.0.2", 1350),
        ({"mtu": "x", "underlay_mtu": -5}, "10.9.0.2", 8900),
        ({"underlay_mtu": 1450}, "fd00::2", 1430),
    ],
)
def test_a_path_is_measured_up_to_what_both_underlays_take(
    attributes: dict[str, Any], destination: str, ceiling: int
) -> None:
    """Not up to what their network has, which may be less because of another path."""
    record = PeerRecord("h2", bytes(16), LIVE, "0", (), attributes)
    assert path_ceiling(8900, record, ip_address(destination)) == ceiling
