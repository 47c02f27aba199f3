"""Which of a peer's addresses serves: for VXLAN, for probes, and for the sleeve."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest

from dataplane.desired import SLEEVE, VXLAN
from mesh.forwarding import (
    BEST,
    SLEEVE_ADDRESSES_MAX,
    Local,
    Path,
    Remote,
    choose_path,
    sleeve_addresses,
    spare_destination,
)
from tests.mesh.remotes import LOCAL, LOCAL6, TO_3, TO_3_V6, out_of_reach, remote


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


# Where both IP versions may be


def test_the_ip_version_is_that_of_the_link_then_of_before_then_the_nearer_then_ipv4() -> None:
    """In this order; each rule decides where those before it do not."""
    both = ("fd00:9::3", "10.9.0.3")
    assert destination(remote(*both), local=LOCAL6) == "10.9.0.3"
    assert destination(remote("fd00:9::3", "10.8.0.3"), local=LOCAL6) == "fd00:9::3"
    assert destination(remote("2001:db8::3", "10.8.0.3"), local=LOCAL6) == "10.8.0.3"
    assert destination(remote(*both), previous="fd00:9::3", local=LOCAL6) == "fd00:9::3"
    assert destination(remote(*both, link="10.9.0.3"), previous="fd00:9::3", local=LOCAL6) == "10.9.0.3"


def test_a_host_uses_the_versions_that_it_has() -> None:
    """Whatever else the peer has. With none known yet, before its network is up, it may have any."""
    only_6 = replace(LOCAL6, networks=(ip_network("fd00:9::/64"),))
    only_4 = replace(LOCAL6, networks=(ip_network("10.9.0.0/24"),))
    peer = remote("10.9.0.3", "fd00:9::3")
    assert (destination(peer, local=only_6), destination(peer, local=only_4)) == ("fd00:9::3", "10.9.0.3")
    assert destination(remote("10.9.0.3"), local=only_6) is None
    assert destination(peer, local=replace(LOCAL6, networks=())) == "10.9.0.3"


def test_silence_over_one_version_moves_the_peer_to_the_other_and_its_end_not_back() -> None:
    """But where the link is: packets pass there again."""
    peer = remote("10.9.0.3", "fd00:9::3")
    silent = replace(peer, vxlan_faults={4: "vxlan-silent"})
    assert destination(silent, previous="10.9.0.3", local=LOCAL6) == "fd00:9::3"
    assert destination(replace(silent, link_address=TO_3), previous="10.9.0.3", local=LOCAL6) == "fd00:9::3"
    assert destination(peer, previous="fd00:9::3", local=LOCAL6) == "fd00:9::3"
    assert destination(replace(peer, link_address=TO_3), previous="fd00:9::3", local=LOCAL6) == "10.9.0.3"


def test_a_peer_out_of_reach_moves_to_the_version_that_answers_and_else_stays() -> None:
    """It is out of reach because its links went over the other one."""
    peer = out_of_reach(remote("10.9.0.3", "fd00:9::3"), 1.0)
    assert destination(peer, previous="10.9.0.3", local=LOCAL6) == "10.9.0.3"
    silent = replace(peer, vxlan_faults={4: "vxlan-silent"})
    assert choose_path(LOCAL6, silent, Path(VXLAN, BEST, TO_3)) == Path(VXLAN, "unreachable", TO_3_V6)
    lost_ours = replace(LOCAL6, networks=(ip_network("fd00:9::/64"),))
    assert destination(peer, previous="10.9.0.3", local=lost_ours) == "fd00:9::3"


def test_the_address_of_the_other_version_is_kept_for_probes() -> None:
    """Whichever serves, also while the sleeve carries; and none where VXLAN is not used at all."""
    peer = remote("10.9.0.3", "fd00:9::3")
    for faults, spare in (({}, TO_3_V6), ({4: "vxlan-silent"}, TO_3), ({4: "vxlan-silent", 6: "vxlan-mtu"}, TO_3_V6)):
        other = replace(peer, vxlan_faults=faults)
        assert spare_destination(LOCAL6, other, choose_path(LOCAL6, other, None)) == spare
    assert spare_destination(LOCAL, peer, choose_path(LOCAL, peer, None)) is None
    sealed = replace(LOCAL6, has_secret=True)
    assert spare_destination(sealed, peer, choose_path(sealed, peer, None)) is None


def test_a_link_local_address_serves_with_its_interface_and_as_long_as_that_is_there() -> None:
    """Nobody tells those. A link that is closed, because there are others enough, takes nothing away."""
    peer = remote(link="fe80::3%3")
    assert destination(peer, local=LOCAL6) == "fe80::3%3"
    without_link = replace(peer, link_address=None)
    assert destination(without_link, previous="fe80::3%3", local=LOCAL6) == "fe80::3%3"
    assert destination(without_link, previous="fe80::3%3", local=replace(LOCAL6, zones=frozenset())) is None
    assert destination(remote(link="fe80::3"), local=LOCAL6) is None
    assert destination(remote("fe80::3%3"), local=LOCAL6) is None
    assert destination(remote("10.9.0.3", link="fe80::3%3", advertise=True), local=LOCAL6) == "10.9.0.3"


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


def test_the_sleeve_of_a_peer_with_link_local_addresses_is_sought_beside_its_vxlan_port() -> None:
    """It tells no address, and so no port; what it tells may make no sense."""
    assert listens(remote(link="fe80::3%3")) == [("fe80::3%3", 6783)]
    assert listens(remote("10.9.0.3", link="fe80::3%3")) == [("fe80::3%3", 6783), ("10.9.0.3", 6783)]
    for port in ("6784", 1, 70_000, None):
        assert listens(remote(link="fe80::3%3", vxlan_port=port)) == []
