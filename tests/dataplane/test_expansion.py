"""A desired state as kernel objects: what belongs to what, who wins, and what is left out."""

from __future__ import annotations

import sys
from dataclasses import replace
from ipaddress import ip_address, ip_interface, ip_network

from dataplane.desired import NOWHERE as VIA_NOWHERE
from dataplane.desired import (
    SLEEVE,
    VXLAN_CHECKSUM,
    VXLAN_OFFLOADS,
    Desired,
    Exposed,
    Port,
    RemoteEndpoint,
    RemotePeer,
    Route,
    Segment,
)
from dataplane.expansion import Expander, expand
from dataplane.objects import (
    ACCEPT,
    ACTIVE_RULE,
    BRIDGE_FDB,
    FLOOD,
    GUARD,
    GUARD_RULES,
    GUEST,
    GUEST_ADDRESS,
    GUEST_NETWORK,
    GUEST_ROUTE,
    HOST_ADDRESS,
    LINK,
    NEIGHBOUR,
    NOWHERE,
    OFFLOADS,
    PORT,
    UP,
    VXLAN_FDB,
    DefaultRoute,
    Guard,
    Guest,
    GuestAddress,
    HostAddress,
    Key,
    Offloads,
    PortFlags,
    Tap,
    Veth,
    Vxlan,
)
from gossip.names import PeerName

BRIDGE_MAC = bytes.fromhex("02aa00000001")
PEER_MAC = bytes.fromhex("02aa00000002")
MAC_A, MAC_B = bytes.fromhex("020000000001"), bytes.fromhex("020000000002")
SEGMENT = Segment("weft", BRIDGE_MAC, 1450, 7, 6784)
SEGMENT6 = replace(SEGMENT, vxlan6=True)
PORT_A = Port("vwa", "ethwe", "/run/netns/a", (4, 1000), MAC_A, (ip_interface("10.32.0.1/16"),))
PEER = RemotePeer(PeerName(bytes(8)), PEER_MAC, ip_address("10.9.0.2"))
ENDPOINT = RemoteEndpoint(MAC_B, (ip_address("10.32.0.2"), ip_address("fd00::2")), ip_address("10.9.0.2"))
ADDRESS_B = ip_address("10.32.0.2").packed
DESTINATION = ip_address("10.9.0.2").packed
OVER_IPV6 = ip_address("fd00:9::2")


def test_a_remote_endpoint_is_a_destination_a_port_and_a_neighbour_for_each_address() -> None:
    """And nothing else: no flooding for an endpoint."""
    empty = expand(Desired(SEGMENT)).objects
    extra = {key: value for key, value in expand(Desired(SEGMENT, groups=((ENDPOINT,),))).objects.items()
             if key not in empty}  # fmt: skip
    assert extra == {
        Key(VXLAN_FDB, "weft-vx", MAC_B): DESTINATION,
        Key(BRIDGE_FDB, "weft", MAC_B): "weft-vx",
        Key(NEIGHBOUR, "weft", ADDRESS_B): MAC_B,
        Key(NEIGHBOUR, "weft", ip_address("fd00::2").packed): MAC_B,
    }


def test_a_peer_is_a_path_to_its_bridge_and_one_flood_destination() -> None:
    """Two peers behind one address get one copy of each broadcast."""
    other = replace(PEER, name=PeerName(bytes(7) + b"\1"), bridge_mac=bytes.fromhex("02aa00000003"))
    objects = expand(Desired(SEGMENT, peers=(PEER, other))).objects
    assert objects[Key(BRIDGE_FDB, "weft", PEER_MAC)] == "weft-vx"
    assert [key for key in objects if key.kind == FLOOD] == [Key(FLOOD, "weft-vx", DESTINATION)]


def test_a_port_is_a_locked_pair_an_inner_end_and_its_addresses() -> None:
    """Every object of it is known to serve that port."""
    expansion = expand(Desired(SEGMENT, ports=(PORT_A,)))
    objects = expansion.objects
    assert objects[Key(LINK, "vwa")] == Veth(1450, (4, 1000))
    flags = objects[Key(PORT, "vwa")]
    assert isinstance(flags, PortFlags)
    assert flags.locked and not (flags.neigh_suppress or flags.isolated or flags.learning or flags.flood)
    assert objects[Key(GUEST, "vwa")] == Guest("ethwe", MAC_A, 1450)
    assert objects[Key(GUEST_ADDRESS, "vwa", bytes((10, 32, 0, 1, 16)))] == GuestAddress()
    assert objects[Key(BRIDGE_FDB, "weft", MAC_A)] == "vwa" and objects[Key(UP, "vwa")] is True
    assert set(expansion.port_of.values()) == {"vwa"} and len(expansion.port_of) == 7


def test_ipv6_is_wanted_inside_only_with_an_ipv6_address() -> None:
    """Otherwise it is none of our business."""
    with_ipv6 = replace(PORT_A, addresses=(ip_interface("fd00::1/64"),))
    for port, ipv6 in ((PORT_A, None), (with_ipv6, True)):
        guest = expand(Desired(SEGMENT, ports=(port,))).objects[Key(GUEST, "vwa")]
        assert isinstance(guest, Guest) and guest.ipv6 is ipv6


def test_without_a_vxlan_port_nothing_may_leave_in_clear() -> None:
    """No device, no path, no flood; neighbours are still answered for."""
    segment = replace(SEGMENT, vxlan_port=None)
    objects = expand(Desired(segment, (PORT_A,), (PEER,), ((ENDPOINT,),))).objects
    assert not [key for key in objects if key.kind in (VXLAN_FDB, FLOOD) or key.device == "weft-vx"]
    assert not [key for key, value in objects.items() if value == "weft-vx" or isinstance(value, Vxlan)]
    assert objects[Key(NEIGHBOUR, "weft", ADDRESS_B)] == MAC_B


def test_an_endpoint_without_a_path_is_sent_nowhere_but_answered_for() -> None:
    """A bridge entry without a VXLAN entry would send its frames to every peer."""
    objects = expand(Desired(SEGMENT, groups=((replace(ENDPOINT, destination=None),),))).objects
    assert objects[Key(VXLAN_FDB, "weft-vx", MAC_B)] == NOWHERE
    assert objects[Key(BRIDGE_FDB, "weft", MAC_B)] == "weft-vx" and Key(NEIGHBOUR, "weft", ADDRESS_B) in objects


def test_the_tap_is_a_port_like_the_vxlan_device() -> None:
    """The same flags and the same guard, so that it does not matter behind which of the two a peer is; but who is
    talked to is noted where probes depend on it."""
    objects = expand(Desired(SEGMENT)).objects
    assert objects[Key(LINK, "weft-tap")] == Tap(mtu=1450)
    for kind in (PORT, UP):
        assert objects[Key(kind, "weft-tap")] == objects[Key(kind, "weft-vx")]
    assert objects[Key(GUARD, "weft-tap")] == Guard(GUARD_RULES)
    assert objects[Key(GUARD, "weft-vx")] == Guard((*GUARD_RULES, ACTIVE_RULE))
    assert not [key for key in expand(Desired(replace(SEGMENT, tap=False))).objects if key.device == "weft-tap"]


def test_what_the_vxlan_device_does_without_is_an_object_of_its_own() -> None:
    """One that is there also where it does without nothing: somebody else may have switched something off."""
    for off in ((), (VXLAN_CHECKSUM,), VXLAN_OFFLOADS):
        objects = expand(Desired(replace(SEGMENT, offloads_off=off))).objects
        assert {key: value for key, value in objects.items() if key.kind == OFFLOADS} == {
            Key(OFFLOADS, "weft-vx"): Offloads(off)
        }
    assert not [key for key in expand(Desired(replace(SEGMENT, vxlan_port=None))).objects if key.kind == OFFLOADS]


def test_what_is_via_the_sleeve_differs_in_its_port_and_in_who_floods() -> None:
    """Its VXLAN destinations stay where they are known, for probes and for the way back."""
    direct = expand(Desired(SEGMENT, (), (PEER,), ((ENDPOINT,),))).objects
    sleeve = expand(Desired(SEGMENT, (), (replace(PEER, via=SLEEVE),), ((replace(ENDPOINT, via=SLEEVE),),))).objects
    assert dict(direct.items() - sleeve.items()) == {
        Key(BRIDGE_FDB, "weft", PEER_MAC): "weft-vx",
        Key(BRIDGE_FDB, "weft", MAC_B): "weft-vx",
        Key(FLOOD, "weft-vx", DESTINATION): True,
    }
    assert dict(sleeve.items() - direct.items()) == {
        Key(BRIDGE_FDB, "weft", PEER_MAC): "weft-tap",
        Key(BRIDGE_FDB, "weft", MAC_B): "weft-tap",
    }


def test_the_sleeve_needs_neither_a_vxlan_device_nor_a_destination() -> None:
    """An IPv6 one is not worth a warning either: the sleeve takes it."""
    peer, endpoint = replace(PEER, via=SLEEVE), replace(ENDPOINT, via=SLEEVE)
    for vxlan_port in (None, 6784):
        for destination in (None, ip_address("2001:db8::2")):
            both = replace(peer, destination=destination), replace(endpoint, destination=destination)
            expansion = expand(Desired(replace(SEGMENT, vxlan_port=vxlan_port), (), both[:1], (both[1:],)))
            assert expansion.objects[Key(BRIDGE_FDB, "weft", PEER_MAC)] == "weft-tap"
            assert expansion.objects[Key(BRIDGE_FDB, "weft", MAC_B)] == "weft-tap"
            assert not [key for key in expansion.objects if key.kind in (VXLAN_FDB, FLOOD)]
            assert expansion.skipped == ()


def test_without_a_tap_what_is_via_the_sleeve_goes_nowhere() -> None:
    """And not by VXLAN, where somebody decided that it must not go."""
    both = replace(PEER, via=SLEEVE), replace(ENDPOINT, via=SLEEVE)
    for desired in (
        Desired(replace(SEGMENT, tap=False), (), both[:1], (both[1:],)),
        Desired(SEGMENT, (), (replace(PEER, via=VIA_NOWHERE),), ((replace(ENDPOINT, via=VIA_NOWHERE),),)),
    ):
        objects = expand(desired).objects
        assert objects[Key(VXLAN_FDB, "weft-vx", MAC_B)] == objects[Key(VXLAN_FDB, "weft-vx", PEER_MAC)] == NOWHERE
        assert objects[Key(BRIDGE_FDB, "weft", MAC_B)] == "weft-vx"
        assert not [key for key in objects if key.kind == FLOOD]


def test_an_endpoint_that_leaves_no_trace_is_not_taken_for_an_unusable_one() -> None:
    """Without a path and without an address there is nothing to enter, and nothing wrong with its MAC."""
    bare = replace(ENDPOINT, addresses=(), destination=None)
    assert expand(Desired(replace(SEGMENT, vxlan_port=None), groups=((bare,),))).skipped == ()


def test_an_ipv6_destination_is_on_the_device_for_ipv6_with_all_that_belongs_to_it() -> None:
    """Entry, bridge port and flood list; the IPv4 device knows nothing of it."""
    both = replace(PEER, destination=OVER_IPV6), replace(ENDPOINT, destination=OVER_IPV6)
    objects = expand(Desired(SEGMENT6, (), both[:1], (both[1:],))).objects
    for mac in (PEER_MAC, MAC_B):
        assert objects[Key(VXLAN_FDB, "weft-vx6", mac)] == OVER_IPV6.packed
        assert objects[Key(BRIDGE_FDB, "weft", mac)] == "weft-vx6"
    assert [key for key in objects if key.kind == FLOOD] == [Key(FLOOD, "weft-vx6", OVER_IPV6.packed)]
    assert not [key for key in objects if key.kind == VXLAN_FDB and key.device == "weft-vx"]


def test_the_second_device_is_as_the_first_but_for_its_ip_version() -> None:
    """Same VNI, same port, same flags and guard; without VXLAN or without IPv6 there is none."""
    objects = expand(Desired(SEGMENT6)).objects
    first, second = objects[Key(LINK, "weft-vx")], objects[Key(LINK, "weft-vx6")]
    assert isinstance(second, Vxlan) and second.ipv6 and second._replace(ipv6=False) == first
    for kind in (PORT, GUARD, UP):
        assert objects[Key(kind, "weft-vx6")] == objects[Key(kind, "weft-vx")]
    for without in (SEGMENT, replace(SEGMENT6, vxlan_port=None)):
        objects = expand(Desired(without, (), (replace(PEER, destination=OVER_IPV6, spare=OVER_IPV6),))).objects
        assert not [key for key in objects if key.device == "weft-vx6"]


def test_an_ipv6_destination_without_the_device_for_it_goes_nowhere() -> None:
    """The IPv4 device would refuse it."""
    both = replace(PEER, destination=OVER_IPV6), replace(ENDPOINT, destination=OVER_IPV6)
    objects = expand(Desired(SEGMENT, (), both[:1], (both[1:],))).objects
    assert objects[Key(VXLAN_FDB, "weft-vx", MAC_B)] == objects[Key(VXLAN_FDB, "weft-vx", PEER_MAC)] == NOWHERE
    assert not [key for key in objects if key.kind == FLOOD]


def test_a_spare_address_is_entered_for_probes_and_gets_no_broadcast() -> None:
    """A peer is in one flood list, whichever of its addresses serves."""
    for serving, spare in ((DESTINATION, OVER_IPV6.packed), (OVER_IPV6.packed, DESTINATION)):
        peer = replace(PEER, destination=ip_address(serving), spare=ip_address(spare))
        objects = expand(Desired(SEGMENT6, (), (peer,))).objects
        assert {value for key, value in objects.items() if key.kind == VXLAN_FDB} == {serving, spare}
        assert [key.item for key in objects if key.kind == FLOOD] == [serving]
        away = expand(Desired(SEGMENT6, (), (replace(peer, via=SLEEVE),))).objects
        assert {value for key, value in away.items() if key.kind == VXLAN_FDB} == {serving, spare}


def test_a_link_local_destination_goes_with_the_number_of_its_interface() -> None:
    """Without, the kernel would not know where to send it."""
    peer = replace(PEER, destination=ip_address("fe80::2%3"))
    wanted = ip_address("fe80::2").packed + (3).to_bytes(4, sys.byteorder)
    objects = expand(Desired(SEGMENT6, (), (peer,))).objects
    assert objects[Key(VXLAN_FDB, "weft-vx6", PEER_MAC)] == wanted
    assert [key.item for key in objects if key.kind == FLOOD] == [wanted]


def test_an_mtu_too_small_for_ipv6_leaves_ipv6_addresses_out_and_says_so() -> None:
    """The kernel would take them away from every device concerned."""
    port = replace(PORT_A, addresses=(*PORT_A.addresses, ip_interface("fd00::1/64")))
    small = expand(Desired(replace(SEGMENT, mtu=1279), (port,), (), ((ENDPOINT,),)))
    assert {len(key.item) for key in small.objects if key.kind in (NEIGHBOUR, GUEST_ADDRESS)} == {4, 5}
    guest = small.objects[Key(GUEST, "vwa")]
    assert isinstance(guest, Guest) and guest.ipv6 is None
    assert [skipped.code for skipped in small.skipped] == ["mtu-below-ipv6"]
    assert expand(Desired(replace(SEGMENT, mtu=1280), (port,), (), ((ENDPOINT,),))).skipped == ()
    assert expand(Desired(replace(SEGMENT, mtu=1279), (PORT_A,))).skipped == ()


def test_a_local_port_wins_over_a_peer_and_a_peer_over_an_endpoint() -> None:
    """And of two endpoints the first, whatever the order in which they are expanded."""
    thief = RemoteEndpoint(MAC_A, (ip_address("10.32.0.1"),), ip_address("10.9.0.9"))
    second = replace(ENDPOINT, destination=ip_address("10.9.0.9"))
    pretender = RemoteEndpoint(PEER_MAC, (ip_address("10.32.0.7"),), ip_address("10.9.0.9"))
    objects = expand(Desired(SEGMENT, (PORT_A,), (PEER,), ((ENDPOINT, second, thief, pretender),))).objects
    assert objects[Key(BRIDGE_FDB, "weft", MAC_A)] == "vwa"
    assert objects[Key(VXLAN_FDB, "weft-vx", MAC_B)] == DESTINATION
    assert objects[Key(VXLAN_FDB, "weft-vx", PEER_MAC)] == DESTINATION


def test_macs_that_would_break_the_bridge_are_left_out_and_told() -> None:
    """Our own, a group address, zeros, and what is no MAC at all."""
    macs = (BRIDGE_MAC, bytes.fromhex("010000000001"), bytes(6), b"\2")
    endpoints = tuple(replace(ENDPOINT, mac=mac) for mac in macs)
    expansion = expand(Desired(SEGMENT, (), (replace(PEER, bridge_mac=BRIDGE_MAC),), (endpoints,)))
    assert expansion.objects == expand(Desired(SEGMENT)).objects
    assert [skipped.code for skipped in expansion.skipped] == ["unusable-mac"]
    assert "and 1 more" in expansion.skipped[0].text


def test_the_accept_rules_are_wanted_in_both_families() -> None:
    """Whether there is a chain to put them in is for the kernel to say."""
    assert [key.item for key in expand(Desired(SEGMENT)).objects if key.kind == ACCEPT] == [b"ip", b"ip6"]


def test_routes_inside_are_wanted_in_families_that_a_port_has_addresses_of() -> None:
    """And an isolated port is marked as one on the bridge."""
    networks = (ip_network("169.254.6.53/32"), ip_network("fd99::/64"))
    port = replace(PORT_A, isolated=True, routes=tuple(map(Route, networks)))
    objects = expand(Desired(SEGMENT, (port,))).objects
    wanted = [key.item for key in objects if key.kind == GUEST_NETWORK]
    assert wanted == [ip_address("169.254.6.53").packed + b"\x20"]
    flags = objects[Key(PORT, "vwa")]
    assert isinstance(flags, PortFlags) and flags.isolated and flags.locked


def test_a_port_may_have_gateways_routes_and_an_mtu_of_its_own() -> None:
    route = Route(ip_network("10.9.0.0/16"), ip_address("10.2.0.254"))
    port = replace(
        PORT_A, routes=(route,), gateways=(ip_address("10.2.0.1"), ip_address("fd00::1")), mtu=1200, hairpin=True
    )
    objects = expand(Desired(replace(SEGMENT, mtu=1400), (port,))).objects
    assert objects[Key(GUEST_NETWORK, "vwa", ip_address("10.9.0.0").packed + b"\x10")] == route.gateway.packed
    assert objects[Key(GUEST_ROUTE, "vwa", b"ip")] == DefaultRoute(ip_address("10.2.0.1").packed)
    assert (Key(GUEST_ROUTE, "vwa", b"ip6") in objects) == any(each.version == 6 for each in port.addresses)
    guest, veth, flags = (objects[Key(kind, "vwa")] for kind in (GUEST, LINK, PORT))
    assert isinstance(guest, Guest) and isinstance(veth, Veth) and isinstance(flags, PortFlags)
    assert guest.mtu == veth.mtu == 1200 and flags.hairpin
    larger = expand(Desired(replace(SEGMENT, mtu=1100), (port,))).objects[Key(LINK, "vwa")]
    assert isinstance(larger, Veth) and larger.mtu == 1100


def test_a_port_that_is_not_led_out_has_no_default_route() -> None:
    exposed = (Exposed(ip_interface(f"{PORT_A.addresses[0].network[9]}/{PORT_A.addresses[0].network.prefixlen}")),)
    for leads_out in (True, False):
        objects = expand(Desired(SEGMENT, (replace(PORT_A, leads_out=leads_out),), exposed=exposed)).objects
        assert (Key(GUEST_ROUTE, "vwa", b"ip") in objects) == leads_out


def test_addresses_of_the_host_beside_exposed_ones_lead_nobody_out() -> None:
    """They are on the bridge, and that is all that follows from them."""
    expander = Expander()
    before = expander.expand(Desired(SEGMENT, (PORT_A,)))
    after = expander.expand(Desired(SEGMENT, (PORT_A,), beside=(ip_interface("169.254.6.52/31"),)))
    key = Key(HOST_ADDRESS, "weft", ip_address("169.254.6.52").packed + b"\x1f")
    assert after.objects.keys() - before.objects.keys() == {key} and after.objects[key] == HostAddress()
    assert expander.expand(Desired(SEGMENT, (PORT_A,))).gone == [key]
