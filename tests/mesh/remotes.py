"""Peers as `mesh.forwarding` sees them, and this host beside them: values, made in one line each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from ipaddress import ip_address, ip_network
from types import MappingProxyType
from typing import Any

from hypothesis import strategies as st

from dataplane.sleeve.control import PeerStatus
from gossip.names import PeerName
from gossip.peers import AWAY, LIVE, PeerRecord
from mesh import vxlanhealth
from mesh.forwarding import HOLD_S, Local, Remote

ME, P, Q = (PeerName(bytes([number]) * 8) for number in (5, 3, 7))
LOCAL = Local(
    ME, False, True, 6784, (ip_network("10.9.0.0/24"), ip_network("fd00:9::/64")), frozenset({ip_address("10.9.0.5")})
)
LOCAL6 = replace(LOCAL, vxlan6=True, zones=frozenset({"3"}))
"""With a VXLAN device for IPv6, and a link-local address on interface 3."""
SECRET = replace(LOCAL, has_secret=True)
TO_3 = ip_address("10.9.0.3")
TO_3_V6 = ip_address("fd00:9::3")
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


# Whatever a peer tells, and whatever this host is like

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
