"""The router's mind: from a node's documents to paths, an MTU and a desired state that do not flap."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_interface, ip_network

import pytest

from dataplane.desired import SLEEVE, VXLAN, Port, RemoteEndpoint, RemotePeer
from dataplane.expansion import expand
from dataplane.objects import BRIDGE_FDB, VXLAN_FDB, Key
from dataplane.sleeve.control import Peer
from gossip.events import NameConflict, OwnerForgotten, PageChanged, PeerChanged, Settled
from gossip.names import PeerName, format_name
from gossip.pages import TablePager
from gossip.peers import AWAY, GONE, PEER_TABLE
from mesh.endpoints import ENDPOINTS_TABLE, Binding, Endpoint, bridge_mac, derive_mac, encode_row
from mesh.forwarding import HOLD_S, NONE, Path
from mesh.pathmtu import Way
from mesh.router import BRIDGE, GROW_S, HISTORY_MAX, VNI
from tests.mesh.hosts import ATTRIBUTES, OWN, Here, Host, X, attached


@pytest.fixture
def here() -> Here:
    return Here()


@pytest.fixture
def host() -> Host:
    host = Host(3)
    host.endpoints = [attached(host)]
    return host


# What it hears


def test_which_news_matters(here: Here, host: Host) -> None:
    """Pages of other tables come with an event of their own where they matter; all else may change the kernel."""
    assert here.hear(host)
    assert not here.router.take(PageChanged(host.name, "links", 0))
    assert not here.router.take(PageChanged(host.name, PEER_TABLE, 0))
    for event in (PeerChanged(host.name), Settled(), NameConflict("x"), OwnerForgotten(host.name)):
        assert here.router.take(event)


def test_a_page_that_is_gone_again_is_no_error(here: Here) -> None:
    """Events are taken one by one, the documents may be ahead of them."""
    assert here.router.take(PageChanged(PeerName(b"\x01" * 8), ENDPOINTS_TABLE, 0))
    assert len(here.router.table) == 0


def test_malformed_rows_are_counted(here: Here, host: Host) -> None:
    """For `report`: who looks for a missing container finds the reason."""
    here.node.replica.take_untrusted(host.page(ENDPOINTS_TABLE, 0, b"\x00\x01x"), 0, 0.0)
    here.router.take(PageChanged(host.name, ENDPOINTS_TABLE, 0))
    assert here.router.malformed_rows == 1


def test_a_forgotten_host_takes_its_endpoints_along(here: Here, host: Host) -> None:
    """It was out of reach for a day; nothing of it may stay."""
    here.hear(host)
    here.router.take(OwnerForgotten(host.name))
    assert len(here.router.table) == 0


# Paths


def test_a_peer_in_reach_has_a_path_and_its_containers_are_there(here: Here, host: Host) -> None:
    """The whole way from documents to kernel objects."""
    here.hear(host)
    here.reach(host)
    found = here.desired()
    to = ip_address("10.9.0.3")
    assert here.router.paths == {host.name: Path(VXLAN, "best", to)}
    assert found.endpoints == (RemoteEndpoint(host.endpoints[0].mac, (X,), to),)
    assert (found.segment.bridge, found.segment.vni, found.segment.vxlan_port) == (BRIDGE, VNI, 6784)
    assert found.segment.bridge_mac == bridge_mac(OWN.name)
    assert expand(found).objects[Key(VXLAN_FDB, "weft-vx", bridge_mac(host.name))] == to.packed
    assert here.router.peer_macs == {bridge_mac(host.name)}


def test_a_change_of_path_is_told_once_and_remembered(here: Here, host: Host) -> None:
    """With the time since when; a second look changes nothing."""
    here.hear(host)
    here.reach(host)
    for now in (1.0, 2.0):
        here.desired(now)
    here.node.replica.update_reach([], 3.0)
    here.desired(4.0)
    assert [(name, path.reason) for name, path in here.told] == [(host.name, "best"), (host.name, "unreachable")]
    assert [(change.at_unix_s, change.path.reason) for change in here.router.history] == [
        (1001.0, "best"),
        (1004.0, "unreachable"),
    ]
    assert here.router.since == {host.name: 1004.0}


def test_the_history_is_bounded(here: Here, host: Host) -> None:
    """A path that flaps for a week."""
    here.hear(host)
    for number in range(HISTORY_MAX + 5):
        here.reach(*[host] * (number % 2), now=float(number))
        here.desired(float(number))
    assert len(here.router.history) == HISTORY_MAX
    assert here.router.history[-1].at_unix_s == 1000.0 + HISTORY_MAX + 4


def test_a_peer_out_of_reach_is_held_for_ten_minutes_and_then_not(here: Here, host: Host) -> None:
    """Its containers most likely still run. Afterwards its endpoints go too."""
    here.hear(host)
    here.reach(host)
    here.desired(1.0)
    here.node.replica.update_reach([], 2.0)
    held = here.desired(2.0 + HOLD_S - 0.1)
    assert held.endpoints[0].destination == held.peers[0].destination == ip_address("10.9.0.3")
    after = here.desired(2.0 + HOLD_S)
    assert (after.endpoints, after.peers) == ((), ())
    assert here.router.paths[host.name] == Path(NONE, "unreachable")
    here.reach(host, now=700.0)
    assert len(here.desired(700.0).endpoints) == 1


def test_news_of_a_host_that_nobody_reaches_says_how_old_it_is(here: Here, host: Host) -> None:
    """A newcomer does not begin the ten minutes anew."""
    here.hear(host, now=5.0, age_s=int(HOLD_S) - 10)
    assert len(here.desired(14.9).endpoints) == 1
    assert here.desired(15.0).endpoints == ()


def test_a_host_that_left_for_good_vanishes_at_once(here: Here, host: Host) -> None:
    """With its endpoints, its path and its place in the list of peers."""
    here.hear(host)
    here.reach(host)
    here.desired(1.0)
    host.record = replace(host.record, state=GONE)
    here.hear(host, 2.0)
    found = here.desired(2.0)
    assert (found.endpoints, found.peers) == ((), ())
    assert (here.router.paths, here.router.since, here.router.others()) == ({}, {}, [])
    assert here.router.peer_macs == frozenset()


def test_a_host_that_was_stopped_is_away(here: Here, host: Host) -> None:
    """Its containers go on; so does what leads to them."""
    here.hear(host)
    here.reach(host)
    here.desired(1.0)
    host.record = replace(host.record, state=AWAY)
    here.hear(host, 2.0)
    here.node.replica.update_reach([], 2.0)
    assert len(here.desired(3.0).endpoints) == 1
    assert here.router.paths[host.name].reason == "away"


def test_with_a_secret_no_vxlan_device_is_wanted(host: Host) -> None:
    """Not even an idle one: it would listen on every address."""
    here = Here(secret=True)
    here.hear(host)
    here.reach(host)
    found = here.desired()
    assert found.segment.vxlan_port is None
    assert [(each.destination, each.via) for each in (*found.peers, *found.endpoints)] == [(None, SLEEVE)] * 2
    assert here.router.paths[host.name] == Path(SLEEVE, "no-wireguard")
    assert not any(here.router.probed.values())


def test_without_vxlan_no_device_is_wanted(here: Here, host: Host) -> None:
    """The flag, or a kernel that has none."""
    here.local = replace(here.local, vxlan=False)
    here.hear(host)
    here.reach(host)
    found = here.desired()
    assert found.segment.vxlan_port is None
    assert here.router.paths[host.name] == Path(SLEEVE, "no-vxlan")
    assert not any(here.router.probed.values())


def test_a_peer_that_vxlan_does_not_reach_moves_to_the_sleeve_and_back(here: Here, host: Host) -> None:
    """In the kernel's one row and for the worker; it goes on being probed."""
    here.hear(host)
    here.reach(host)
    bridge_fdb = Key(BRIDGE_FDB, "weft", host.endpoints[0].mac)
    for fault, kind, port in (("", VXLAN, "weft-vx"), ("vxlan-silent", SLEEVE, "weft-tap"), ("", VXLAN, "weft-vx")):
        here.vxlan_faults = {host.name: fault} if fault else {}
        objects = expand(here.desired()).objects
        assert here.router.paths[host.name] == Path(kind, fault or "best", ip_address("10.9.0.3"))
        assert objects[bridge_fdb] == port
        assert objects[Key(VXLAN_FDB, "weft-vx", host.endpoints[0].mac)] == ip_address("10.9.0.3").packed
        assert here.router.sleeve_peers[host.name].peer.flood == (kind == SLEEVE)
        assert here.router.probed[4] == {host.name}
    assert len(here.told) == 3


def test_a_peer_out_of_reach_keeps_its_path_and_is_not_probed(here: Here, host: Host) -> None:
    """Its daemon does not answer, whatever its kernel does."""
    here.hear(host)
    here.reach(host)
    here.vxlan_faults = {host.name: "vxlan-silent"}
    here.desired(1.0)
    here.node.replica.update_reach([], 2.0)
    here.desired(3.0)
    assert here.router.paths[host.name] == Path(SLEEVE, "unreachable", ip_address("10.9.0.3"))
    assert (here.router.probed[4], set(here.router.sleeve_peers)) == (frozenset(), {host.name})
    here.desired(2.0 + HOLD_S)
    assert here.router.sleeve_peers == {}


def test_the_worker_is_told_of_every_peer_whatever_its_path(here: Here, host: Host) -> None:
    """What is behind it, where it may be; and the same object as long as nothing changes."""
    keyless = Host(4)
    keyless.record = replace(keyless.record, attributes={**ATTRIBUTES, "sleeve_key": b"short"})
    for each in (host, keyless):
        here.hear(each)
    here.reach(host, keyless)
    here.desired()
    macs = (bridge_mac(host.name), host.endpoints[0].mac)
    told = Peer(host.name, b"\x07" * 32, (("10.9.0.3", 6783),), macs, False)
    assert {name: entry.whole() for name, entry in here.router.sleeve_peers.items()} == {host.name: told}
    before = here.router.sleeve_peers[host.name]
    here.desired()
    assert here.router.sleeve_peers[host.name] is before
    host.endpoints.append(attached(host, address="10.32.0.7"))
    here.hear(host)
    here.desired()
    assert len(here.router.sleeve_peers[host.name].whole().macs) == 3
    assert here.router.probed[4] == {host.name}, "one without a sleeve could not answer, and has nowhere else to go"


def test_peers_are_found_by_name_or_nickname(here: Here, host: Host) -> None:
    """A name is one peer's; a nickname may be several's, and is never our own."""
    other = Host(4)
    other.record = replace(other.record, nickname="h3")
    for each in (host, other):
        here.hear(each)
    assert here.router.find_peer(format_name(host.name)) == [host.name]
    assert here.router.find_peer(format_name(host.name).upper()) == [host.name]
    assert here.router.find_peer("h3") == sorted([host.name, other.name])
    assert here.router.find_peer("me") == here.router.find_peer("") == []


# Two IP versions


@pytest.fixture
def dual(here: Here, host: Host) -> Host:
    """A peer with an address of each, and so have we."""
    here.local = replace(here.local, vxlan6=True, networks=(*here.local.networks, ip_network("fd00:9::/64")))
    host.record = replace(host.record, addresses=("10.9.0.3:6783", "[fd00:9::3]:6783"))
    here.hear(host)
    here.reach(host)
    return host


def test_both_addresses_are_entered_and_probed_and_one_serves(here: Here, dual: Host) -> None:
    """Until probes say something against it."""
    mac, bridge = dual.endpoints[0].mac, bridge_mac(dual.name)
    for faults, serving, spare, device in (
        ({}, "10.9.0.3", "fd00:9::3", "weft-vx"), ({dual.name: "vxlan-silent"}, "fd00:9::3", "10.9.0.3", "weft-vx6"),
    ):  # fmt: skip
        here.vxlan_faults = faults
        found = here.desired()
        assert found.segment.vxlan6
        assert found.peers == (RemotePeer(dual.name, bridge, ip_address(serving), VXLAN, ip_address(spare)),)
        objects = expand(found).objects
        assert objects[Key(BRIDGE_FDB, "weft", mac)] == objects[Key(BRIDGE_FDB, "weft", bridge)] == device
        assert here.router.probed == {4: {dual.name}, 6: {dual.name}}
        assert here.router.macs_over_ipv6 == {bridge} and here.router.lost == frozenset()


def test_a_peer_out_of_reach_with_both_versions_may_be_asked_on(here: Here, dual: Host) -> None:
    """One with a single address may not: it has nothing else to be heard by."""
    single = Host(4)
    here.hear(single)
    here.reach(dual, single)
    here.desired()
    here.node.replica.update_reach([], 2.0)
    here.desired(3.0)
    assert (here.router.probed, here.router.lost) == ({4: frozenset(), 6: frozenset()}, {dual.name})


def test_the_mtu_fits_ipv6_from_the_first_path_over_it(here: Here, dual: Host) -> None:
    """At once, and told to others; before that, probes are of the size that it would have."""
    here.router.own_mtu, here.router.own_mtu_over_ipv6 = 1450, 1430
    assert here.desired().segment.mtu == 1450
    assert (here.router.told_mtu, here.router.probe_bytes(4), here.router.probe_bytes(6)) == (1450, 1450, 1430)
    here.vxlan_faults = {dual.name: "vxlan-silent"}
    assert here.desired().segment.mtu == 1430
    assert (here.router.told_mtu, here.router.probe_bytes(4), here.router.probe_bytes(6)) == (1430, 1430, 1430)
    here.vxlan_faults = {}
    here.desired()
    assert here.router.told_mtu == 1430, "it might go there again at any moment"


def test_the_sleeve_over_ipv6_costs_no_mtu(here: Here, dual: Host) -> None:
    """It cuts to what fits by itself."""
    here.router.own_mtu, here.router.own_mtu_over_ipv6 = 1450, 1430
    dual.record = replace(dual.record, addresses=("[fd00:9::3]:6783",))
    here.hear(dual)
    here.vxlan6_faults = {dual.name: "vxlan-silent"}
    assert here.desired().segment.mtu == 1450 and not here.router.is_over_ipv6


# The MTU


def joins(here: Here, number: int, mtu: int) -> Host:
    host = Host(number)
    host.record = replace(host.record, attributes={**ATTRIBUTES, "mtu": mtu})
    here.hear(host)
    here.reach(host)
    return host


def test_the_mtu_shrinks_at_once_and_stays_until_launch(here: Here) -> None:
    """A narrow host comes and goes; what was told to containers is not taken back under their feet."""
    assert here.desired().segment.mtu == 8950
    host = joins(here, 3, 1450)
    assert here.desired().segment.mtu == 1450
    host.record = replace(host.record, state=GONE)
    here.hear(host)
    assert here.desired(now=1.0 + GROW_S).segment.mtu == 1450
    here.router.own_mtu = 1400
    assert here.desired(now=1.0 + GROW_S).segment.mtu == 1400
    here.router.own_mtu = 8950
    assert here.desired(now=1.0 + GROW_S).segment.mtu == 1400


def test_an_adopted_mtu_is_not_exceeded_until_the_mesh_is_known() -> None:
    """The narrow member may just not have been heard yet; once all are, this launch may grow it. Once."""
    here = Here(8950, adopted_mtu=1450)
    assert here.router.mtu == 1450
    assert here.desired(settled=False).segment.mtu == 1450
    joins(here, 3, 4000)
    assert here.desired(settled=False).segment.mtu == 1450
    assert here.desired(settled=True).segment.mtu == 4000
    joins(here, 3, 8950)
    assert here.desired(now=1.0 + GROW_S, settled=True).segment.mtu == 4000


def test_the_mtu_may_grow_after_any_hosts_launch(here: Here) -> None:
    """All hear of it and all grow alike; what a path is found to take in its first seconds counts still."""
    host = joins(here, 3, 1450)
    assert here.desired().segment.mtu == 1450
    host.record = replace(host.record, attributes={**ATTRIBUTES, "mtu": 4000})
    here.hear(host)
    assert here.desired(now=100.0).segment.mtu == 1450
    host.record = replace(host.record, instance=b"\x01" * 16)
    here.hear(host)
    assert here.desired(now=100.0).segment.mtu == 4000
    host.record = replace(host.record, attributes={**ATTRIBUTES, "mtu": 8000})
    here.hear(host)
    assert here.desired(now=99.0 + GROW_S).segment.mtu == 8000
    host.record = replace(host.record, attributes={**ATTRIBUTES, "mtu": 8500})
    here.hear(host)
    assert here.desired(now=100.0 + GROW_S).segment.mtu == 8000


def test_an_adopted_mtu_beyond_the_underlay_is_not_kept() -> None:
    """The underlay has become narrower while the daemon was away."""
    assert Here(1450, adopted_mtu=8950).desired(settled=False).segment.mtu == 1450


def test_the_users_mtu_overrides(here: Here) -> None:
    """Smaller or larger than what is found out."""
    here.fixed_mtu = 1280
    joins(here, 3, 1450)
    assert here.desired().segment.mtu == 1280
    here.fixed_mtu = 9000
    assert here.desired().segment.mtu == here.router.mtu == 9000


# Whom probes ask


def test_a_mac_leads_to_the_other_host_that_has_it(here: Here) -> None:
    """Ours and unknown ones to nobody."""
    host = Host(3)
    host.endpoints = [attached(host)]
    here.hear(host)
    mine = Endpoint(OWN.name, "c2", b"\x02" * 6, ())
    pager = TablePager()
    pager.put("c2", encode_row(mine))
    here.router.table.replace_page(OWN.name, 0, pager.body(0))
    assert here.router.owner_of(host.endpoints[0].mac) == host.name
    assert here.router.owner_of(mine.mac) is None and here.router.owner_of(b"\x04" * 6) is None


def test_the_way_to_who_is_probed_is_known(here: Here) -> None:
    """Where VXLAN leads, what both underlays take, and which start of the daemon it is."""
    host = joins(here, 3, 1350)
    here.desired()
    assert here.router.ways(8950) == {4: {host.name: Way(ip_address("10.9.0.3"), 1350, bytes(16), 1350)}, 6: {}}
    here.reach()
    here.desired()
    assert here.router.ways(8950) == {4: {}, 6: {}}


def test_the_path_in_use_is_what_narrows_what_we_say_we_take(here: Here) -> None:
    """Not one over the other IP version, nor one that VXLAN does not use any more; before anything is known of a peer,
    what an earlier life found."""
    host = joins(here, 3, 8950)
    here.router.path_mtus = {4: {host.name: 4000}, 6: {host.name: 3000}}
    assert here.router.told_mtu == 4000
    here.desired()
    assert (here.router.told_mtu, here.router.path_mtu(host.name)) == (4000, 4000)
    here.router.path_mtus = {4: {}, 6: {host.name: 3000}}
    assert (here.router.told_mtu, here.router.path_mtu(host.name)) == (8950, None)
    here.router.path_mtus = {4: {host.name: 1000}, 6: {}}
    assert (here.router.told_mtu, here.router.path_mtu(host.name)) == (8950, 1000)
    here.router.path_mtus = {4: {host.name: 4000}, 6: {}}
    here.local = replace(here.local, vxlan=False)
    here.desired()
    assert here.router.told_mtu == 8950


def test_it_is_settled_when_the_node_says_so_or_after_the_limit(here: Here) -> None:
    """A host alone must not wait for ever."""
    assert not here.router.is_settled(59.9, 60.0)
    assert here.router.is_settled(60.0, 60.0)
    here.node.settled = True
    assert here.router.is_settled(0.0, 60.0)


# Two hosts, one address


def own(here: Here, claim: int, address: str = "10.32.0.1") -> Endpoint:
    """A container of ours, attached and told."""
    ip = ip_address(address)
    endpoint = Endpoint(OWN.name, "mine", derive_mac("weft", ip), (Binding(ip, 16, claim),))
    pager = TablePager()
    pager.put("vw1", encode_row(endpoint))
    here.router.table.replace_page(OWN.name, 0, pager.body(0))
    here.ports = (Port("vw1", "ethwe", "/run/netns/c1", (4, 1), endpoint.mac, (ip_interface(f"{address}/16"),)),)
    return endpoint


@pytest.mark.parametrize(("ours", "wins"), [(1, False), (3, True)])
def test_the_stronger_claim_has_address_and_mac(here: Here, host: Host, ours: int, wins: bool) -> None:
    """Against somebody who has the same MAC, as it is made from the address."""
    endpoint = own(here, ours)
    host.endpoints = [attached(host, 2)]
    here.hear(host)
    here.reach(host)
    found = here.desired()
    assert [port.addresses for port in found.ports] == [(ip_interface("10.32.0.1/16"),) if wins else ()]
    assert [each.mac for each in here.router.lost_macs(1.0)] == ([] if wins else [endpoint.mac])


def test_an_expired_rival_takes_no_mac(here: Here, host: Host) -> None:
    """Nothing is changed in a container for a host that does not count any more."""
    own(here, 1)
    host.endpoints = [attached(host, 2)]
    here.hear(host)
    here.reach(host)
    here.node.replica.update_reach([], 2.0)
    assert len(here.router.lost_macs(2.0 + HOLD_S - 1)) == 1
    assert here.router.lost_macs(2.0 + HOLD_S) == []
    assert here.desired(2.0 + HOLD_S).ports == here.ports


def test_a_desired_state_that_did_not_change_is_equal(here: Here, host: Host) -> None:
    """So that looking again every few seconds costs the kernel side nothing."""
    here.hear(host)
    here.reach(host)
    assert here.desired(1.0) == here.desired(6.0)
