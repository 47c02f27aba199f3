"""What the daemon says of itself: the keys that scripts rely on, and every warning with its cure."""

from __future__ import annotations

import json
from collections import deque
from dataclasses import replace
from ipaddress import ip_address
from typing import Any

import pytest

from dataplane import kernel
from dataplane.engine import Counters, Report
from dataplane.kernel import Warning
from dataplane.sleeve import control
from dataplane.sleeve.control import PeerStatus, Status
from gossip.linkstate import LinkStatus
from gossip.names import PeerName, format_name
from gossip.pages import TablePager
from gossip.peers import AWAY, GONE
from gossip.transport import Refusals
from mesh import status
from mesh.attach import Attachment
from mesh.endpoints import Binding, Endpoint, derive_mac, encode_row
from mesh.forwarding import HOLD_S
from mesh.offloadguard import OffloadView
from mesh.offloads import Fault
from mesh.status import SleeveView
from tests.mesh.hosts import OWN, Here, Host, attached

CONTRACT = {
    "peers": {"name", "nickname", "self", "reachable", "addresses", "version"},
    "connections": {"peer", "nickname", "link", "path", "reason", "encrypted", "mtu", "rtt_ms", "since"},
    "targets": {"target", "state", "error", "next_try"},
    "endpoints": {"mac", "addresses", "names", "labels", "peer", "network", "local"},
    "ps": {"id", "mac", "addresses"},
}
SUMMARY = {
    "version", "peer", "nickname", "uptime_s", "encryption", "peers", "reachable", "links", "targets", "connections",
    "mtu", "endpoints", "local_endpoints", "away_endpoints", "refused", "warnings",
}  # fmt: skip
MINE = Attachment(
    id="mine", ifname="vw1", namespace="/run/netns/mine", namespace_id=(4, 1),
    mac=derive_mac("weft", ip_address("10.32.0.9")), bindings=(Binding(ip_address("10.32.0.9"), 16, 1),),
    names=("web",), labels=(("app", "web"),), network="weft",
)  # fmt: skip


def publish_own(here: Here, *endpoints: Endpoint) -> None:
    pager = TablePager()
    for number, endpoint in enumerate(endpoints):
        pager.put(str(number), encode_row(endpoint))
    here.router.table.replace_page(OWN.name, 0, pager.body(0))


@pytest.fixture
def here() -> Here:
    """A host with a neighbour (h3), a host beyond (h4, away), one that left for good (h5), and a target."""
    made = Here()
    near, beyond, left = Host(3), Host(4), Host(5)
    near.endpoints = [attached(near)]
    beyond.record = replace(beyond.record, state=AWAY)
    left.record = replace(left.record, state=GONE)
    for host in (near, beyond, left):
        made.hear(host)
    made.reach(near)
    made.node.connect(["h3", "10.9.0.4:7000"], 0.0)
    publish_own(made, MINE.endpoint(OWN.name))
    made.desired()
    return made


def views(here: Here) -> dict[str, list[dict[str, Any]]]:
    return {
        "peers": status.peers(here.router),
        "connections": status.connections(here.router, False, SleeveView()),
        "targets": status.targets(here.router, 1.0),
        "endpoints": status.endpoints(here.router, 1.0),
        "ps": status.ps([MINE]),
    }


def summary(here: Here, **more: Any) -> dict[str, Any]:
    values: dict[str, Any] = {
        "encrypted": False, "refusals": {}, "warnings": [], "view": SleeveView(), "now": 1.0, **more,
    }  # fmt: skip
    return status.summary(here.router, "0.1", 12.345, attachments=[MINE], **values)


def name_of(here: Here, nickname: str) -> PeerName:
    return next(name for name, record in here.node.replica.peers.items() if record.nickname == nickname)


def sleeve(name: PeerName, state: str = control.UP, encrypted: bool = True) -> PeerStatus:
    return PeerStatus(
        name, state, "10.9.0.3:6783", encrypted, "aes-256-gcm", 5.0, 0.25, 0.0123456789, 40, 1, ("udp-gro",),
        datagram_bytes=1444,
    )  # fmt: skip


def view(*peers: PeerStatus, **more: Any) -> SleeveView:
    return SleeveView(
        {peer.name: peer for peer in peers}, Status(77, peers, {"replayed": 5}), started=2, **more
    )  # fmt: skip


# The contract


@pytest.mark.parametrize("view", CONTRACT)
def test_every_row_has_the_keys_that_scripts_rely_on(here: Here, view: str) -> None:
    """More may be added; none may go."""
    rows = views(here)[view]
    assert rows
    for row in rows:
        assert set(row) >= CONTRACT[view]


def test_the_summary_has_exactly_its_keys(here: Here) -> None:
    """What `weft status` shows."""
    assert set(summary(here)) == SUMMARY


def test_everything_is_json(here: Here) -> None:
    """Without a special encoder, and it comes back the same."""
    refusals = {"wrong-password": Refusals(2, deque(["10.9.0.7:1", "10.9.0.8:2"]))}
    report = Report(1, {}, (), (), Counters(applied=3))
    everything = [
        views(here),
        summary(here, refusals=refusals),
        status.history(here.router),
        status.counters(here.router, report, {"probe-stranger": 1}, view(sleeve(name_of(here, "h3")))),
        status.counters(here.router, None, {}, SleeveView()),
        status.connections(here.router, True, view(sleeve(name_of(here, "h3")))),
    ]
    assert json.loads(json.dumps(everything, allow_nan=False)) == everything


# Rows


def test_peers_are_everybody_but_those_who_left_for_good(here: Here) -> None:
    """Ourselves included."""
    rows = {row["nickname"]: row for row in status.peers(here.router)}
    assert set(rows) == {"me", "h3", "h4"}
    assert [rows[name]["self"] for name in ("me", "h3", "h4")] == [True, False, False]
    assert [rows[name]["reachable"] for name in ("me", "h3", "h4")] == [True, True, False]
    assert rows["h3"]["addresses"] == ["10.9.0.3:6783"]
    assert rows["h4"]["state"] == "away"
    assert len(rows["me"]["name"].split(":")) == 8


def test_one_connection_for_every_other_peer(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a link or without; the round trip is the link's."""
    near = next(name for name, record in here.node.replica.peers.items() if record.nickname == "h3")
    link = LinkStatus(near, "10.9.0.3:6783", True, 0.0012345, 0.0, "10.9.0.1:5")
    monkeypatch.setattr(here.node, "links", lambda: [link])
    rows = {row["nickname"]: row for row in status.connections(here.router, False, SleeveView())}
    assert set(rows) == {"h3", "h4"}
    assert (rows["h3"]["link"], rows["h3"]["rtt_ms"], rows["h3"]["path"], rows["h3"]["reason"]) == (
        True, 1.234, "vxlan", "best",
    )  # fmt: skip
    assert (rows["h4"]["link"], rows["h4"]["rtt_ms"], rows["h4"]["reason"]) == (False, None, "away")
    assert rows["h3"]["address"] == "10.9.0.3"
    assert all(row["encrypted"] is False and row["mtu"] == 1450 and row["since"] == 1001.0 for row in rows.values())


def test_a_connection_says_how_large_a_packet_its_path_takes(here: Here) -> None:
    """As measured, which may be more than the network's MTU; null where nothing was."""
    found = SleeveView(path_mtus={name_of(here, "h3"): 1480})
    rows = {row["nickname"]: row for row in status.connections(here.router, False, found)}
    assert [(rows[name]["path_mtu"], rows[name]["mtu"]) for name in ("h3", "h4")] == [(1480, 1450), (None, 1450)]


def test_a_connection_by_the_sleeve_says_how_it_does(here: Here) -> None:
    """Encrypted with a secret, and only by the sleeve; what the worker measured; its round trip is second best."""
    here.local = replace(here.local, has_secret=True)
    here.desired()
    near = name_of(here, "h3")
    rows = {row["nickname"]: row for row in status.connections(here.router, True, view(sleeve(near)))}
    assert (rows["h3"]["path"], rows["h3"]["reason"], rows["h3"]["encrypted"]) == ("sleeve", "no-wireguard", True)
    assert (rows["h3"]["rtt_ms"], rows["h3"]["address"]) == (0.25, "10.9.0.3:6783")
    assert rows["h3"]["sleeve"] == {
        "state": "up", "address": "10.9.0.3:6783", "encrypted": True, "cipher": "aes-256-gcm", "rtt_ms": 0.25,
        "loss": 0.012346, "datagrams": 40, "parity": 1, "offloads_off": ["udp-gro"],
        "datagram_bytes": 1444,
    }  # fmt: skip
    assert (rows["h4"]["path"], rows["h4"]["sleeve"], rows["h4"]["address"]) == ("sleeve", None, None)


@pytest.mark.parametrize("state", [control.SILENT, control.WRONG_SECRET])
def test_a_sleeve_that_does_not_get_through_is_no_path(here: Here, state: str) -> None:
    """In the row and in the summary; frames go on trying. Where VXLAN carries them it does not matter."""
    near = name_of(here, "h3")
    known = view(sleeve(near, state))
    here.sleeve = dict(known.peers)
    here.desired()
    assert {row["path"] for row in status.connections(here.router, False, known)} == {"vxlan"}
    here.local = replace(here.local, has_secret=True)
    here.desired()
    rows = {row["nickname"]: row for row in status.connections(here.router, True, known)}
    assert (rows["h3"]["path"], rows["h3"]["reason"], rows["h3"]["encrypted"]) == ("none", state, False)
    assert rows["h4"]["path"] == "sleeve"
    assert summary(here, view=known)["connections"] == {"none": 1, "sleeve": 1, "vxlan": 0}


@pytest.mark.parametrize("state", [control.IDLE, control.CONNECTING, control.UP])
def test_a_sleeve_that_may_get_through_is_a_path(here: Here, state: str) -> None:
    """An idle one has had nothing to do yet."""
    here.local = replace(here.local, has_secret=True)
    here.desired()
    known = view(sleeve(name_of(here, "h3"), state, encrypted=False))
    assert {(row["path"], row["encrypted"]) for row in status.connections(here.router, True, known)} == {
        ("sleeve", True)
    }


def test_a_relayed_connection_names_who_passes_it_on(here: Here) -> None:
    """Its round trip is that of the way that frames take, and it is sealed end to end."""
    near, other = name_of(here, "h3"), name_of(here, "h4")
    known = view(replace(sleeve(near), via=(other,), rtt_ms=7.5))
    here.sleeve = dict(known.peers)
    here.local = replace(here.local, has_secret=True)
    here.desired()
    rows = {row["nickname"]: row for row in status.connections(here.router, True, known)}
    row = rows["h3"]
    assert (row["path"], row["reason"], row["via"], row["encrypted"]) == ("relay", "no-direct", ["h4"], True)
    assert row["rtt_ms"] == 7.5
    assert ["h4"] in [change["via"] for change in status.history(here.router)]
    assert summary(here, view=known)["connections"]["relay"] == 1
    (warning,) = status.warnings(here.router, None, [], None, known, 1.0)
    assert warning["code"] == "relayed" and "h3" in warning["text"] and "UDP" in warning["cure"]


def test_without_a_link_the_round_trip_is_that_of_probes(here: Here) -> None:
    """Most pairs of a large mesh have none."""
    near = name_of(here, "h3")
    known = view(sleeve(near), vxlan_rtts_s={near: 0.0005})
    rows = {row["nickname"]: row["rtt_ms"] for row in status.connections(here.router, False, known)}
    assert rows == {"h3": 0.5, "h4": None}


def test_targets_are_as_the_user_wrote_them(here: Here) -> None:
    """With what became of them."""
    assert [row["target"] for row in status.targets(here.router, 1.0)] == ["h3", "10.9.0.4:7000"]


def test_endpoints_are_those_that_count(here: Here) -> None:
    """Ours are marked; those of expired hosts are gone."""
    rows = {row["id"]: row for row in status.endpoints(here.router, 1.0)}
    assert (rows["mine"]["local"], rows["c1"]["local"]) == (True, False)
    assert rows["c1"]["nickname"] == "h3"
    assert rows["mine"]["addresses"] == ["10.32.0.9/16"]
    assert (rows["mine"]["names"], rows["mine"]["labels"]) == (["web"], {"app": "web"})
    assert rows["mine"]["mac"] == MINE.mac.hex(":")
    assert rows["mine"]["conflict"] is None
    here.reach(now=2.0)
    assert [row["id"] for row in status.endpoints(here.router, 2.0 + HOLD_S)] == ["mine"]


def test_an_owner_that_is_not_known_yet_is_shown_by_its_name(here: Here) -> None:
    """Its endpoints may arrive before its peer document."""
    stranger = Host(8)
    pager = TablePager()
    pager.put("x", encode_row(attached(stranger, address="10.32.0.8")))
    here.router.table.replace_page(stranger.name, 0, pager.body(0))
    rows = {row["peer"]: row for row in status.endpoints(here.router, 1.0)}
    assert rows[format_name(stranger.name)]["nickname"] == format_name(stranger.name)


def test_the_summary_counts(here: Here) -> None:
    """Ourselves among the peers."""
    refusals = {"wrong-password": Refusals(2, deque(["10.9.0.7:1", "10.9.0.8:2"]))}
    row = summary(here, refusals=refusals, encrypted=True)
    assert (row["peers"], row["reachable"], row["links"], row["targets"]) == (3, 2, 0, 2)
    assert row["connections"] == {"vxlan": 2}
    assert (row["endpoints"], row["local_endpoints"], row["mtu"], row["uptime_s"]) == (2, 1, 1450, 12.3)
    assert row["encryption"] is True
    assert row["refused"] == {"wrong-password": {"count": 2, "last": ["10.9.0.7:1", "10.9.0.8:2"]}}


def test_counters_come_from_all_sides(here: Here) -> None:
    """Also before the first report of the kernel."""
    here.router.malformed_rows = 4
    report = Report(1, counters=Counters(applied=3, repaired=1))
    known = view(sleeve(name_of(here, "h3")), vxlan_probes={"probe-send-failed": 1})
    counters = status.counters(here.router, report, {"probe-cut": 2}, known)
    assert (counters["kernel"]["applied"], counters["kernel"]["repaired"]) == (3, 1)
    assert (counters["endpoint_rows_malformed"], counters["probes"]) == (4, {"probe-cut": 2})
    assert counters["vxlan_probes"] == {"probe-send-failed": 1}
    assert counters["sleeve"] == {"pid": 77, "started": 2, "replayed": 5}
    nothing = status.counters(here.router, None, {}, SleeveView())
    assert (nothing["kernel"], nothing["sleeve"]) == ({}, {"pid": None, "started": 0})


def test_the_history_tells_who_took_which_path_when(here: Here) -> None:
    """The oldest first."""
    assert {(row["peer"], row["path"], row["reason"], row["at"]) for row in status.history(here.router)} == {
        (format_name(name), "vxlan", path.reason, 1001.0) for name, path in here.router.paths.items()
    }


# Warnings


def warnings(
    here: Here, report: Report | None = None, weak: str | None = None, known: SleeveView | None = None
) -> list[dict[str, str]]:
    return status.warnings(here.router, report, [MINE], weak, known or SleeveView(), 1.0)


def test_where_all_is_well_nothing_is_warned_of(here: Here) -> None:
    """A warning that is always there is none."""
    assert warnings(here) == warnings(here, Report(1)) == []


def test_an_address_held_elsewhere_is_said_aloud(here: Here) -> None:
    """In the endpoint's row and as a warning, with the holder; the holder's own row says nothing."""
    rival = Host(6)
    rival.endpoints = [attached(rival, claim=2, address="10.32.0.9")]
    here.hear(rival)
    here.reach(rival)
    rows = {row["nickname"]: row for row in status.endpoints(here.router, 1.0)}
    assert rows["me"]["conflict"] == "10.32.0.9 is held by c1 on h6"
    assert rows["h6"]["conflict"] is None
    (warning,) = warnings(here)
    assert warning["code"] == "address-conflict"
    assert "mine" in warning["text"] and "10.32.0.9 is held by c1 on h6" in warning["text"]
    assert "weft detach ADDR mine" in warning["cure"]


def test_other_hosts_conflicts_are_rows_but_not_warnings(here: Here) -> None:
    """Who can do something about it is warned."""
    for number, claim in ((6, 1), (7, 2)):
        host = Host(number)
        host.endpoints = [attached(host, claim=claim, address="10.32.0.50")]
        here.hear(host)
    rows = {row["nickname"]: row["conflict"] for row in status.endpoints(here.router, 1.0)}
    assert (rows["h6"], rows["h7"]) == ("10.32.0.50 is held by c1 on h7", None)
    assert warnings(here) == []


@pytest.mark.parametrize(
    ("state", "code"), [(control.SILENT, "sleeve-silent"), (control.WRONG_SECRET, "wrong-secret")]
)
def test_a_sleeve_that_does_not_get_through_is_warned_of(here: Here, state: str, code: str) -> None:
    """Once, however many peers; of those that go by VXLAN, or are out of reach anyway, nothing is said."""
    known = view(sleeve(name_of(here, "h3"), state), sleeve(name_of(here, "h4"), state))
    assert warnings(here, known=known) == []
    here.local = replace(here.local, has_secret=True)
    here.desired()
    (warning,) = warnings(here, known=known)
    assert warning["code"] == code and "h3" in warning["text"] and "h4" not in warning["text"] and warning["cure"]


def test_offloads_that_are_off_are_told_of_the_path_that_does_without_them(here: Here) -> None:
    """By VXLAN those of its device; by the sleeve what the worker was told, and what it found out itself."""
    offloads = OffloadView(vxlan_off=("vxlan-checksum",), sleeve_off=("tap",))
    known = view(sleeve(name_of(here, "h3")), offloads=offloads)
    rows = {row["nickname"]: row for row in status.connections(here.router, False, known)}
    assert (rows["h3"]["path"], rows["h3"]["offloads_off"]) == ("vxlan", ["vxlan-checksum"])
    here.local = replace(here.local, has_secret=True)
    here.desired()
    rows = {row["nickname"]: row for row in status.connections(here.router, True, known)}
    assert (rows["h3"]["path"], rows["h3"]["offloads_off"]) == ("sleeve", ["tap", "udp-gro"])
    assert status.connections(here.router, True, SleeveView())[0]["offloads_off"] == []
    assert warnings(here, known=known) == [], "nothing is wrong with what the user switched off"


@pytest.mark.parametrize(
    ("offload", "words"), [("vxlan-checksum", "checksums"), ("vxlan-segment", "cutting"), ("tap", "by the sleeve")]
)
def test_an_offload_that_lies_is_warned_of(here: Here, offload: str, words: str) -> None:
    """With what lies, to whom it was found, and what would help."""
    fault = Fault("eth0 (virtio_net 1.0.0)", offload, name_of(here, "h3"))
    (warning,) = warnings(here, known=SleeveView(offloads=OffloadView(faults=(fault,))))
    assert warning["code"] == "offload-lies" and warning["cure"]
    assert all(word in warning["text"] for word in (words, "eth0 (virtio_net 1.0.0)", "h3", f"({offload})"))


def test_where_doing_without_does_not_help_the_other_side_is_named(here: Here) -> None:
    """It is what that one does with what it receives."""
    known = SleeveView(offloads=OffloadView(unhelped=(name_of(here, "h3"),)))
    (warning,) = warnings(here, known=known)
    assert warning["code"] == "offload-unhelped" and "h3" in warning["text"] and "ethtool -K" in warning["cure"]


def test_a_warning_about_many_peers_names_a_few(here: Here) -> None:
    """A screenful of names helps nobody."""
    here.local = replace(here.local, has_secret=True)
    hosts = [Host(number) for number in range(20, 30)]
    for host in hosts:
        here.hear(host)
    here.reach(*hosts)
    here.desired()
    (warning,) = warnings(here, known=view(*(sleeve(host.name, control.SILENT) for host in hosts)))
    assert "and 7 more" in warning["text"]


def test_a_worker_that_does_not_stay_is_warned_of(here: Here) -> None:
    """With where to look."""
    (warning,) = warnings(here, known=SleeveView(trouble="the sleeve worker died 4 times in a row"))
    assert (warning["code"], warning["text"]) == ("sleeve-down", "the sleeve worker died 4 times in a row")
    assert "sleeve.log" in warning["cure"]


def test_what_the_kernel_side_reports_is_passed_on(here: Here) -> None:
    """Firewalls with their cure; faults of ports under the name that the user knows."""
    report = Report(
        7,
        {
            "vw1": kernel.Fault("kernel", "cannot make address 10.32.0.9/16"),
            "vw2": kernel.Fault("namespace-gone", "it is gone"),
        },
        (kernel.Fault("kernel", "cannot make VXLAN device weft-vx"),),
        (Warning("firewall", "ufw drops UDP 6784", "ufw allow 6784/udp"),),
    )
    rows = warnings(here, report)
    assert [row["text"] for row in rows] == [
        "ufw drops UDP 6784",
        "cannot make VXLAN device weft-vx",
        "mine: cannot make address 10.32.0.9/16",
        "vw2: it is gone",
    ]
    assert rows[0]["cure"] == "ufw allow 6784/udp"


def test_a_name_in_use_and_a_weak_password_are_warned_of(here: Here) -> None:
    """Each with what to do."""
    here.node.conflict = "another live host uses this peer's identity"
    rows = warnings(here, weak="the password is short")
    assert [row["code"] for row in rows] == ["name-in-use", "weak-password"]
    assert all(row["cure"] for row in rows)
