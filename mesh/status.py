"""What the daemon says of itself, as JSON values: the rows of every `status` verb, of `ps` and of `report`.

Views only: nothing here decides or changes anything. Scripts rely on the keys: they are added to, never changed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from dataplane.engine import Report
from gossip.names import PeerName, format_name
from gossip.peers import GONE
from gossip.transport import Refusals
from mesh.attach import Attachment
from mesh.endpoints import Endpoint
from mesh.forwarding import ENCRYPTION_UNAVAILABLE, VXLAN
from mesh.router import Router

Row = dict[str, Any]


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


def connections(router: Router) -> list[Row]:
    links = {link.peer: link for link in router.node.links()}
    rows: list[Row] = []
    for name, path in sorted(router.paths.items()):
        link = links.get(name)
        rows.append(
            {
                "peer": format_name(name),
                "nickname": nickname(router, name),
                "link": link is not None,
                "path": path.kind,
                "reason": path.reason,
                "encrypted": False,
                "mtu": router.mtu,
                "rtt_ms": round(link.rtt_s * 1000, 3) if link is not None and link.rtt_s is not None else None,
                "since": router.since[name],
                "address": str(path.destination) if path.destination is not None else None,
            }
        )
    return rows


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
        }
        for attachment in attachments
    ]


def summary(
    router: Router,
    version: str,
    uptime_s: float,
    encrypted: bool,
    attachments: list[Attachment],
    refusals: Mapping[str, Refusals],
    warnings: list[Row],
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
        "local_endpoints": len(attachments),
        "refused": {
            reason: {"count": refused.count, "last": list(refused.last)} for reason, refused in sorted(refusals.items())
        },
        "warnings": warnings,
    }


def warnings(
    router: Router, report: Report | None, attachments: list[Attachment], weak_password: str | None, now: float
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
            cure = f"detach it there, or here (weft detach ADDR {endpoint.id}) and attach another one"
            rows.append(_warning("address-conflict", text, cure))
    if any(path.reason == ENCRYPTION_UNAVAILABLE for path in router.paths.values()):
        text = "a password is set, so nothing is sent in clear, and this version has no encrypted path yet"
        cure = "containers on different hosts can talk only without a password, on an underlay that you trust"
        rows.append(_warning(ENCRYPTION_UNAVAILABLE, text, cure))
    if report is not None:
        ids = {attachment.ifname: attachment.id for attachment in attachments}
        rows += [_warning(each.code, each.text, each.cure) for each in report.warnings]
        rows += [_warning(fault.code, fault.text, "") for fault in report.faults]
        rows += [
            _warning(fault.code, f"{ids.get(ifname, ifname)}: {fault.text}", "")
            for ifname, fault in sorted(report.port_faults.items())
        ]
    return rows


def _warning(code: str, text: str, cure: str) -> Row:
    return {"code": code, "text": text, "cure": cure}


def history(router: Router) -> list[Row]:
    return [
        {
            "at": change.at_unix_s,
            "peer": format_name(change.peer),
            "path": change.path.kind,
            "reason": change.path.reason,
            "address": str(change.path.destination) if change.path.destination is not None else None,
        }
        for change in router.history
    ]


def counters(router: Router, report: Report | None, probes: Mapping[str, int]) -> Row:
    kernel = asdict(report.counters) if report is not None else {}
    return {
        "gossip": dict(sorted(router.node.counters.items())),
        "endpoint_rows_malformed": router.malformed_rows,
        "kernel": kernel,
        "probes": dict(sorted(probes.items())),
    }


def nickname(router: Router, peer: PeerName) -> str:
    record = router.node.replica.peers.get(peer)
    return record.nickname if record is not None else format_name(peer)
