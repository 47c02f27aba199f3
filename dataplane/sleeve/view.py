"""What the daemon is told of one partner. Only reads."""

from __future__ import annotations

from dataplane.sleeve import control
from dataplane.sleeve.partner import Partner
from dataplane.sleeve.session import CLEAR, Session
from dataplane.sleeve.whereabouts import Address


def row(
    partner: Partner,
    session: Session | None,
    state: str,
    since_s: float,
    is_translated: bool,
    is_clear: bool,
    may_segment: bool,
) -> control.PeerStatus:
    """`state` since `since_s` is what the keyring says of it."""
    route, trial, shape = partner.where.route, partner.trial, partner.meter.shape
    is_known = trial is not None and route is None
    cuts_itself = is_known and trial is not None and trial.proven is not None and not trial.way.segmented
    return control.PeerStatus(
        name=partner.peer.name,
        state=state,
        address=_text(partner.address) if route is None else None,
        encrypted=not is_clear,
        cipher=session.cipher if session is not None else CLEAR,
        since_s=max(since_s, partner.where.turned_s),
        rtt_ms=None if partner.rtt_ms is None else round(partner.rtt_ms, 3),
        loss=round(partner.meter.loss, 6),
        datagrams=shape.datagrams,
        parity=shape.parity,
        offloads_off=(control.UDP_SEGMENT,) if cuts_itself or not may_segment else (),
        via=route.between if route is not None else (),
        is_translated=is_translated,
        datagram_bytes=partner.datagram_bytes if is_known else 0,
    )


def _text(address: Address | None) -> str | None:
    if address is None:
        return None
    host, port = address[0], address[1]
    return f"[{host}]:{port}" if ":" in str(host) else f"{host}:{port}"
