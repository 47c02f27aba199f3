"""How large a packet the network takes, and what each member says that it does."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address
from typing import Any

import pytest

from gossip.peers import AWAY, GONE, LIVE, PeerRecord
from mesh.forwarding import HOLD_S, MTU_MIN, Remote, network_mtu, own_mtu, path_ceiling
from tests.mesh.remotes import remote


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
