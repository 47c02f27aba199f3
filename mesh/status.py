"""What the daemon says of itself, as JSON values: the rows of every `status` verb, of `ps` and of `report`.

Views only: nothing here decides or changes anything. Scripts rely on the keys: they are added to, never changed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from dataplane.desired import SLEEVE, VXLAN, VXLAN_CHECKSUM
from dataplane.engine import Report
from dataplane.sleeve.control import SILENT, TAP, WRONG_SECRET, PeerStatus, Status
from gossip.names import PeerName, format_name
from gossip.peers import GONE
from gossip.transport import Refusals
from mesh.attachment import Attachment
from mesh.endpoints import Endpoint
from mesh.expose import Held
from mesh.forwarding import RELAY, Path
from mesh.offloadguard import OffloadView
from mesh.router import Router

Row = dict[str, Any]

_OPEN_UDP = "open the UDP port with the number of the links' TCP port (6783) between the hosts, in both directions"
NAMED_MAX = 3
"""So many peers are named in a warning about several."""


@dataclass(frozen=True, slots=True)
class SleeveView:
    """What is known of the sleeve and of probes right now."""

    peers: Mapping[PeerName, PeerStatus] = field(default_factory=dict)
    """By peer, from the worker; empty while none serves."""
    status: Status | None = None
    started: int = 0
    """Workers that this daemon started."""
    trouble: str | None = None
    """Why no worker serves, or none that stays."""
    vxlan_rtts_s: Mapping[PeerName, float] = field(default_factory=dict)
    vxlan_probes: Mapping[str, int] = field(default_factory=dict)
    """Counters of the probes on the VXLAN device."""
    path_mtus: Mapping[PeerName, int] = field(default_factory=dict)
    """The largest overlay packet that the path to a peer takes in one piece, as measured."""
    offloads: OffloadView = field(default_factory=OffloadView)


def peers(router: Router) -> list[Row]:
    node = router.node
    return [
        {
            "name": format_name(name),
            "nickname": record.nickname,
            "self": name == node.name,
            "reachable": name == node.name or name in node.replica.reachable,
            "addresses": list(record.addresses),
            "version": record.version,
            "state": record.state,
        }
        for name, record in sorted(node.replica.peers.items())
        if record.state != GONE or name == node.name
    ]


def connections(router: Router, encrypted: bool, view: SleeveView) -> list[Row]:
    links = {link.peer: link for link in router.node.links()}
    rows: list[Row] = []
    for name, path in sorted(router.paths.items()):
        link, sleeve = links.get(name), view.peers.get(name)
        rtts_s = (link.rtt_s if link is not None else None, view.vxlan_rtts_s.get(name))
        rtt_ms = next((round(rtt_s * 1000, 3) for rtt_s in rtts_s if rtt_s is not None), sleeve and sleeve.rtt_ms)
        if path.kind == RELAY and sleeve is not None and sleeve.rtt_ms is not None:
            rtt_ms = round(sleeve.rtt_ms, 3)  # frames go another way than the link
        rows.append(
            {
                "peer": format_name(name),
                "nickname": nickname(router, name),
                "link": link is not None,
                "path": path.kind,
                "reason": path.reason,
                "encrypted": encrypted and path.kind in (SLEEVE, RELAY),
                "mtu": router.mtu,
                "path_mtu": view.path_mtus.get(name),
                "rtt_ms": rtt_ms,
                "since": router.since[name],
                "address": frames_go_to(path, sleeve),
                "via": [nickname(router, each) for each in path.between],
                "sleeve": _sleeve(sleeve),
                "offloads_off": _offloads_off(path.kind, sleeve, view.offloads),
            }
        )
    return rows


def frames_go_to(path: Path, sleeve: PeerStatus | None) -> str | None:
    """The underlay address, as far as it is known."""
    if path.via == SLEEVE:
        return sleeve.address if sleeve is not None else None
    return str(path.destination) if path.destination is not None else None


def _offloads_off(kind: str, sleeve: PeerStatus | None, offloads: OffloadView) -> list[str]:
    """What the way that frames go there does without."""
    if kind == VXLAN:
        return list(offloads.vxlan_off)
    if kind == SLEEVE and sleeve is not None:
        return sorted({*offloads.sleeve_off, *sleeve.offloads_off})
    return []


def _sleeve(peer: PeerStatus | None) -> Row | None:
    if peer is None:
        return None
    return {
        "state": peer.state,
        "address": peer.address,
        "encrypted": peer.encrypted,
        "cipher": peer.cipher,
        "rtt_ms": None if peer.rtt_ms is None else round(peer.rtt_ms, 3),
        "loss": round(peer.loss, 6),
        "datagrams": peer.datagrams,
        "parity": peer.parity,
        "offloads_off": list(peer.offloads_off),
        "datagram_bytes": peer.datagram_bytes or None,
    }


def targets(router: Router, now: float) -> list[Row]:
    return [
        {
            "target": row.target,
            "state": row.state,
            "error": row.error,
            "next_try": None if row.next_try_s is None else round(row.next_try_s, 3),
            "peer": None if row.peer is None else format_name(row.peer),
        }
        for row in router.node.targets(now)
    ]


def endpoints(router: Router, now: float) -> list[Row]:
    expired = router.expired(now)
    return [_endpoint(router, each, expired) for each in router.table.endpoints() if each.owner not in expired]


def _endpoint(router: Router, endpoint: Endpoint, expired: frozenset[PeerName]) -> Row:
    return {
        "mac": endpoint.mac.hex(":"),
        "addresses": [str(binding) for binding in endpoint.bindings],
        "names": list(endpoint.names),
        "labels": dict(endpoint.labels),
        "peer": format_name(endpoint.owner),
        "network": endpoint.network,
        "local": endpoint.owner == router.node.name,
        "nickname": nickname(router, endpoint.owner),
        "id": endpoint.id,
        "away": endpoint.away,
        "conflict": _conflict(router, endpoint, expired),
    }


def _conflict(router: Router, endpoint: Endpoint, expired: frozenset[PeerName]) -> str | None:
    """Which of its addresses others hold, as text."""
    if not router.table.is_contested(endpoint):
        return None
    lost = router.table.lost(endpoint, expired)
    texts = [f"{binding.ip} is held by {holder.id} on {nickname(router, holder.owner)}" for binding, holder in lost]
    return ", ".join(texts) or None


def ps(attachments: list[Attachment]) -> list[Row]:
    return [
        {
            "id": attachment.id,
            "mac": attachment.mac.hex(":"),
            "addresses": [str(binding) for binding in attachment.bindings],
            "names": list(attachment.names),
            "labels": dict(attachment.labels),
            "network": attachment.network,
            "namespace": attachment.namespace,
            "container": attachment.container,
            "away": attachment.away_since is not None,
            "away_since": attachment.away_since,
            "comes_back": attachment.comes_back,
            "interface": attachment.inside.ifname,
            "cni": None if attachment.sandbox is None else asdict(attachment.sandbox),
        }
        for attachment in attachments
    ]


def ps_host(endpoint: Endpoint | None) -> list[Row]:
    """The host itself, where it is exposed, as one more row of `ps`."""
    if endpoint is None:
        return []
    return [
        {
            "id": endpoint.id,
            "mac": endpoint.mac.hex(":"),
            "addresses": [str(binding) for binding in endpoint.bindings],
            "names": [],
            "labels": {},
            "network": endpoint.network,
        }
    ]


def exposed(held: Held) -> Row:
    return {
        "addresses": [str(each.binding) for each in held],
        "without_masquerade": [str(each.binding) for each in held if not each.masquerade],
    }


def summary(
    router: Router,
    version: str,
    uptime_s: float,
    encrypted: bool,
    attachments: list[Attachment],
    refusals: Mapping[str, Refusals],
    warnings: list[Row],
    view: SleeveView,
    now: float,
) -> Row:
    node = router.node
    kinds: dict[str, int] = {VXLAN: 0}
    for path in router.paths.values():
        kinds[path.kind] = kinds.get(path.kind, 0) + 1
    expired = router.expired(now)
    return {
        "version": version,
        "peer": format_name(node.name),
        "nickname": node.replica.peers[node.name].nickname,
        "uptime_s": round(uptime_s, 1),
        "encryption": encrypted,
        "peers": 1 + len(router.paths),
        "reachable": 1 + len(node.replica.reachable & set(router.paths)),
        "links": len(node.links()),
        "targets": len(node.targets(now)),
        "connections": dict(sorted(kinds.items())),
        "mtu": router.mtu,
        "endpoints": sum(endpoint.owner not in expired for endpoint in router.table.endpoints()),
        "local_endpoints": sum(1 for _ in router.table.of(node.name)),
        "away_endpoints": sum(attachment.away_since is not None for attachment in attachments),
        "refused": {
            reason: {"count": refused.count, "last": list(refused.last)} for reason, refused in sorted(refusals.items())
        },
        "warnings": warnings,
    }


def warnings(
    router: Router,
    report: Report | None,
    attachments: list[Attachment],
    weak_password: str | None,
    view: SleeveView,
    now: float,
) -> list[Row]:
    """Everything that is wrong or deserves a look, each with its cure."""
    rows: list[Row] = []
    if router.node.conflict is not None:
        rows.append(_warning("name-in-use", router.node.conflict, "run `weft reset`, then `weft launch`"))
    if weak_password is not None:
        rows.append(_warning("weak-password", weak_password, "launch with a longer one on every host"))
    expired = router.expired(now)
    for endpoint in router.table.of(router.node.name):
        conflict = _conflict(router, endpoint, expired)
        if conflict is not None:
            text = f"{endpoint.id} has lost an address: {conflict}, who attached it later or at the same time"
            cure = f"let go of it there, or here ({endpoint.release('ADDR')}) and take another one"
            rows.append(_warning("address-conflict", text, cure))
    rows += _sleeve_warnings(router, view)
    rows += _offload_warnings(router, view.offloads)
    if report is not None:
        ids = {attachment.ifname: attachment.id for attachment in attachments}
        rows += [_warning(each.code, each.text, each.cure) for each in report.warnings]
        rows += [_warning(fault.code, fault.text, "") for fault in report.faults]
        rows += [
            _warning(fault.code, f"{ids.get(ifname, ifname)}: {fault.text}", "")
            for ifname, fault in sorted(report.port_faults.items())
        ]
    return rows


def _sleeve_warnings(router: Router, view: SleeveView) -> list[Row]:
    rows: list[Row] = []
    if view.trouble is not None:
        cure = "its log, sleeve.log beside the daemon's, says more; it is started again and again by itself"
        rows.append(_warning("sleeve-down", view.trouble, cure))
    states: dict[str, list[PeerName]] = {}
    for name, path in sorted(router.paths.items()):
        sleeve = view.peers.get(name)
        if path.via == SLEEVE and sleeve is not None and name in router.node.replica.reachable:
            states.setdefault(sleeve.state, []).append(name)
    if names := states.get(SILENT):
        text = f"no answer over UDP from {_named(router, names)}, so containers there cannot be reached"
        rows.append(_warning("sleeve-silent", text, _OPEN_UDP))
    if names := [name for name, path in sorted(router.paths.items()) if path.kind == RELAY]:
        text = f"no datagram passes to {_named(router, names)}, so other hosts pass packets on, which is slower"
        rows.append(_warning("relayed", text, _OPEN_UDP))
    if names := states.get(WRONG_SECRET):
        text = f"{_named(router, names)} answers under another password, so containers there cannot be reached"
        rows.append(_warning(WRONG_SECRET, text, "launch with the same passwords on every host"))
    return rows


def _offload_warnings(router: Router, offloads: OffloadView) -> list[Row]:
    rows: list[Row] = []
    for fault in offloads.faults:
        to = nickname(router, fault.peer)
        if fault.offload == TAP:
            text = f"packets to {to} by the sleeve arrive wrong or not at all where work is left to {fault.device}"
            cure = "another kernel, here or there, may do it right; after an update here it is tried again"
        else:
            work = "checksums are" if fault.offload == VXLAN_CHECKSUM else "cutting is"
            text = f"packets to {to} by VXLAN arrive wrong or not at all where their {work} left to {fault.device}"
            cure = "update its driver or firmware, or the kernel; it is then tried again"
        text += f"; this is no longer done ({fault.offload}), so traffic is right, and slower"
        rows.append(_warning("offload-lies", text, cure))
    if offloads.unhelped:
        text = f"packets to {_named(router, list(offloads.unhelped))} arrive wrong or not at all, offloads or not"
        cure = "there, have the network card leave alone what it receives: ethtool -K DEVICE rx off gro off lro off"
        rows.append(_warning("offload-unhelped", text, cure))
    return rows


def _named(router: Router, names: list[PeerName]) -> str:
    """`h2, h3 and 4 more`."""
    first = ", ".join(nickname(router, name) for name in names[:NAMED_MAX])
    return f"{first} and {len(names) - NAMED_MAX} more" if len(names) > NAMED_MAX else first


def _warning(code: str, text: str, cure: str) -> Row:
    return {"code": code, "text": text, "cure": cure}


def history(router: Router) -> list[Row]:
    return [
        {
            "at": change.at_unix_s,
            "peer": format_name(change.peer),
            "path": change.path.kind,
            "reason": change.path.reason,
            "via": [nickname(router, each) for each in change.path.between],
            "address": str(change.path.destination) if change.path.destination is not None else None,
        }
        for change in router.history
    ]


def counters(router: Router, report: Report | None, probes: Mapping[str, int], view: SleeveView) -> Row:
    kernel = asdict(report.counters) if report is not None else {}
    worker = view.status
    return {
        "gossip": dict(sorted(router.node.counters.items())),
        "endpoint_rows_malformed": router.malformed_rows,
        "kernel": kernel,
        "probes": dict(sorted(probes.items())),
        "vxlan_probes": dict(sorted(view.vxlan_probes.items())),
        "offload_probes": dict(view.offloads.counters),
        "sleeve": {
            "pid": worker.pid if worker is not None else None,
            "started": view.started,
            **(dict(sorted(worker.counters.items())) if worker is not None else {}),
        },
    }


def nickname(router: Router, peer: PeerName) -> str:
    record = router.node.replica.peers.get(peer)
    return record.nickname if record is not None else format_name(peer)
