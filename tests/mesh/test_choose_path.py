"""By which path a peer is reached: every reason, and no path where none may be."""

from __future__ import annotations

import pathlib
from dataclasses import replace
from ipaddress import ip_address
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataplane.desired import SLEEVE, VXLAN
from dataplane.sleeve import control
from dataplane.sleeve.control import SILENT, UP, WRONG_SECRET
from gossip.peers import AWAY
from mesh import forwarding, vxlanhealth
from mesh.forwarding import HOLD_S, NONE, RELAY, Local, Path, Remote, choose_path
from tests.mesh.remotes import LOCAL, LOCAL6, SECRET, TO_3, TO_3_V6, Q, locals_, out_of_reach, remote, remotes, seen

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


# Over whatever a peer tells


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
