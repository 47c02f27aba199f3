"""Which of a peer's addresses serves, where both have IPv4 and IPv6, one of them, or a link and nothing else."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_network

from dataplane.desired import VXLAN
from mesh.forwarding import BEST, Path, choose_path, spare_destination
from tests.mesh.test_forwarding import LOCAL, LOCAL6, TO_3, TO_3_V6, destination, listens, out_of_reach, remote


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


def test_the_sleeve_of_a_peer_with_link_local_addresses_is_sought_beside_its_vxlan_port() -> None:
    """It tells no address, and so no port; what it tells may make no sense."""
    assert listens(remote(link="fe80::3%3")) == [("fe80::3%3", 6783)]
    assert listens(remote("10.9.0.3", link="fe80::3%3")) == [("fe80::3%3", 6783), ("10.9.0.3", 6783)]
    for port in ("6784", 1, 70_000, None):
        assert listens(remote(link="fe80::3%3", vxlan_port=port)) == []
