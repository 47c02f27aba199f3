"""The ring as people and scripts see it: status, warnings, what to do; what `export` writes and `check` compares. Pure:
everything is read from the member, nothing is changed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from ipaddress import ip_interface
from typing import Any

from gossip.names import PeerName, format_name
from mesh.endpoints import EndpointTable, Interface
from mesh.ipam import spans
from mesh.ipam.desk import RESIGNED, Desk
from mesh.ipam.member import Member
from mesh.ipam.ranges import OBSERVER
from mesh.requests import ApiError

ENTRIES_MAX = 10_000
FORMAT = 1
OWNER_MAX = 512
WANT_MAX = 4096
NOT_ATTACHED = "given to what is not attached"
NOT_GIVEN = "attached and not given"

Nickname = Callable[[PeerName], str]


def state_of(member: Member, now: float) -> str:
    if not member.space.ranges:
        return "off"
    if member.conflict:
        return "conflict"
    if member.resigned:
        return "resigned"
    if member.charter is None:
        asked = member.wants_ring or any(
            known.statement is not None and known.statement.wants_ring for known in member.known.values()
        )
        if not asked:
            return "idle"
        return "observing" if member.settings.init == OBSERVER else "forming"
    if member.splits:
        return "split"
    return "ready" if now < member.lease.until else "unconfirmed"


def waiting_for(member: Member, desk: Desk, now: float) -> str:
    """Why this host may not give addresses now; empty where it may."""
    if member.conflict:
        return member.conflict
    if member.resigned:
        return RESIGNED
    if member.charter is None:
        return desk.why_no_ring()
    return "" if now < member.lease.until else desk.why_not_confirmed()


def why_no_majority(member: Member) -> str:
    assert member.charter is not None
    peers = [(seat, member.peer_at(seat)) for seat in member.charter.voters]
    missing = [peer for _, peer in peers if peer is not None and peer != member.own and peer not in member.reachable]
    if not missing:
        slow = f"nothing was decided in time, although all {len(peers)} voters are in reach"
        return f"{slow}; try again, and see `weft status ipam` for votes that are open"
    names = " ".join(map(format_name, missing))
    return (
        f"no majority of the {len(peers)} voters could be had in time (out of reach: {names}); bring them back, "
        "or, where they are gone for good too, name them in the same `weft rmpeer`"
    )


def why_not_anew(missed: str) -> str:
    return (
        f"no voter is left beside these, so the ring has to be made anew, and {missed} would not hear of it and may go "
        "on giving the same addresses: bring them back into reach first, or name them too where they are gone for good"
    )


def why_not_yet_anew(wait_s: float) -> str:
    return (
        "no voter is left beside these, so the ring has to be made anew, and this host was started a moment ago: it "
        f"does not know yet who else may be giving addresses of the old one: try again in {wait_s:.0f} s"
    )


def _advice(member: Member, desk: Desk, now: float, disk_trouble: str) -> str | None:
    if disk_trouble:
        return disk_trouble
    if member.conflict:
        return f"{member.conflict}; then run `weft ipam check --repair` on the one that stays"
    state = state_of(member, now)
    if state == "resigned":
        return RESIGNED
    if state == "split":
        other = next(iter(member.splits)).hex()[:8]
        return (
            f"two rings that formed apart have met: `weft ipam join --ring {other}` here, or its like there, joins them"
        )
    if state in ("forming", "observing"):
        return f"waiting for {desk.why_no_ring()}"
    if state == "unconfirmed":
        return f"waiting for {desk.why_not_confirmed()}"
    if member.charter is not None:
        gone = [peer for peer, said in member.standing() if said.owned and peer not in member.reachable]
        if gone:
            names = " ".join(map(format_name, gone[:4]))
            auto = len(member.charter.voters) > 2
            later = f"taken over by itself {member.charter.lease_s} s after it was last heard of, or " if auto else ""
            return f"addresses of hosts out of reach: {later}at once by `weft rmpeer {names}` if they are gone for good"
    return None


def status(member: Member, desk: Desk, nickname: Nickname, now: float, disk_trouble: str) -> dict[str, Any]:
    """What `weft status ipam --json` prints."""
    space, charter = member.space, member.charter
    advice = _advice(member, desk, now, disk_trouble)
    for peer in (*member.known, member.own):
        advice = advice.replace(format_name(peer), nickname(peer)) if advice else None
    voters = [member.peer_at(seat) for seat in charter.voters] if charter is not None else []
    return {
        "range": str(space.range4) if space.range4 is not None else None,
        "range6": _range6(member),
        "default_subnet": str(member.settings.default[0]) if member.settings.default else None,
        "state": state_of(member, now),
        "advice": advice,
        "ring": charter.ring.hex() if charter is not None else None,
        "decision": charter.number if charter is not None else None,
        "voters": [
            {"peer": format_name(peer), "nickname": nickname(peer), "self": peer == member.own,
             "reachable": peer == member.own or peer in member.reachable}
            for peer in voters if peer is not None
        ],
        "lease_s": charter.lease_s if charter is not None else member.settings.lease_s,
        "confirmed_for_s": round(member.lease.until - now, 1) if now < member.lease.until else None,
        "peers": _peers(member, nickname),
        "entries": list(_entries(member, nickname)),
        "pending": [
            {"owner": request.owner, "wants": " ".join(map(str, request.wants)),
             "since_s": round(now - request.since, 1),
             "waiting_for": request.waiting_for}
            for request in desk.waiting.values()
        ],
        "other_rings": [
            {"ring": ring.hex(), "peers": [nickname(peer) for peer in peers]}
            for ring, peers in member.splits.items()
        ],
    }  # fmt: skip


def _range6(member: Member) -> str | None:
    range6 = member.space.range6
    if range6 is None or (member.charter is None and range6.prefixlen < 64):
        return None
    return str(range6)


def _peers(member: Member, nickname: Nickname) -> list[dict[str, Any]]:
    """Who owns how much. Of others only what they announce is known: what is not free may still be in their pool. Of
    who was retired since it spoke nothing is left: somebody else has it."""
    holdings, size = member.holdings, max(1, member.space.size)
    here = len(holdings.given) - len(holdings.guests) + spans.size(holdings.kept_slots) + len(holdings.resting)
    rows = [(member.own, holdings.owned, here)]
    rows += [(peer, said.owned, spans.size(said.used)) for peer, said in member.standing()]
    found = []
    for peer, owned, used in rows:
        count = spans.size(owned)
        if count or peer == member.own:
            found.append(
                {"peer": format_name(peer), "nickname": nickname(peer), "self": peer == member.own,
                 "reachable": peer == member.own or peer in member.reachable, "addresses": count,
                 "share": round(count / size, 4), "used": used, "free": max(0, count - used)}
            )  # fmt: skip
    return found


def _entries(member: Member, nickname: Nickname) -> Iterable[dict[str, Any]]:
    holdings, own = member.holdings, nickname(member.own)
    for slot, given in sorted(holdings.given.items())[:ENTRIES_MAX]:
        state = "guest" if slot in holdings.guests and member.charter is not None else "given"
        yield {"owner": given.owner, "addresses": list(given.addresses), "state": state, "peer": own}
    for slot, (_, owner) in sorted(holdings.resting.items())[:ENTRIES_MAX]:
        yield {"owner": owner, "addresses": [member.space.text(slot)], "state": "resting", "peer": own}
    for peer, (_, kept) in sorted(holdings.kept.items()):
        texts = [
            member.space.text(start) if end == start + 1 else f"{member.space.text(start)} and {end - start - 1} more"
            for start, end in kept
        ]
        yield {"owner": nickname(peer), "addresses": texts, "state": "reserved", "peer": nickname(peer)}


def warnings(member: Member, now: float, disk_trouble: str) -> list[dict[str, str]]:
    """For `weft status`: only what somebody should act on, each with its cure."""
    found = []

    def warn(code: str, text: str, cure: str) -> None:
        found.append({"code": code, "text": text, "cure": cure})

    if disk_trouble:
        warn("ipam-not-saved", f"addresses cannot be given: {disk_trouble}", "free some space, or check the disk")
    if member.conflict:
        cure = "`weft reset` on all but one of them, then `weft ipam check --repair` on that one"
        warn("ipam-conflict", f"no addresses are given: {member.conflict}", cure)
    for ring, peers in member.splits.items():
        text = f"{len(peers)} other hosts in reach give addresses independently of this one (ring {ring.hex()[:8]})"
        warn("ipam-split", text, f"`weft ipam join --ring {ring.hex()[:8]}` here, or its like there, joins them")
    if member.lost:
        text = f"{spans.size(member.lost)} addresses of this host were taken over while it was away"
        warn("ipam-lost", text, "nothing is to be done: what runs keeps its own; `weft launch` anew ends this notice")
    if member.charter is not None and member.holdings.owned and now >= member.lease.until and not member.conflict:
        cure = "bring the voters back that `weft status ipam` lists as unreachable, or `weft rmpeer` them"
        warn("ipam-unconfirmed", "this host may not give addresses now: too few voters confirm it", cure)
    return found


def conflicts(member: Member, table: EndpointTable, theirs: list[PeerName], nickname: Nickname) -> list[dict[str, str]]:
    """Addresses that hosts of our ring and of another one use both."""
    ours = {member.own, *(peer for peer, _ in member.members())}
    found = []
    for peer in theirs:
        for endpoint in table.of(peer):
            for binding in endpoint.bindings:
                for other in table.claimants(binding.ip):
                    if other.owner in ours:
                        here = f"{other.id} on {nickname(other.owner)}"
                        there = f"{endpoint.id} on {nickname(peer)}"
                        found.append({"address": str(binding.ip), "here": here, "there": there})
    return found


def export(member: Member) -> dict[str, Any]:
    """What is given here, for `ipam import`; and the ring, for people."""
    entries = []
    for given in member.holdings.given.values():
        addresses, wants = [*dict.fromkeys(given.addresses)], [text for text, _ in given.wants]
        entries.append({"owner": given.owner, "addresses": addresses, "wants": wants})
    ranges = [[member.space.text(start), end - start] for start, end in member.holdings.owned]
    return {
        "format": FORMAT,
        "peer": format_name(member.own),
        "ring": member.ring.hex() or None,
        "decision": member.tip if member.charter is not None else None,
        "owned": ranges,
        "entries": entries,
    }


def imported(document: Any) -> list[tuple[str, list[str], list[str]]]:
    """Owners, addresses and what these were the answer to, of an exported document. Raises `ApiError` where it is
    none."""
    try:
        if document["format"] != FORMAT:
            raise ApiError("bad-request", f"the file has format {document['format']}, and {FORMAT} is what this reads")
        found = []
        for entry in document["entries"]:
            owner, addresses, wants = entry["owner"], entry["addresses"], entry.get("wants", [])
            if (
                not isinstance(wants, list)
                or not isinstance(owner, str)
                or len(owner) > OWNER_MAX
                or not all(isinstance(each, str) for each in (*addresses, *wants))
                or not all(len(each) <= WANT_MAX for each in wants)
            ):
                raise ValueError
            for each in (owner, *wants):
                each.encode()  # JSON may hold what no journal does
            found.append((owner, [str(ip_interface(each)) for each in addresses], list(wants)))
        return found
    except (KeyError, TypeError, ValueError):
        raise ApiError("bad-request", "the file is not what `weft ipam export` writes; give it one that is") from None


def differences(member: Member, attached: Mapping[Interface, str]) -> list[dict[str, Any]]:
    """What is given and not attached, and what is attached and not given."""
    there = {str(interface.ip): owner for interface, owner in attached.items()}
    found: list[dict[str, Any]] = []
    for given in member.holdings.given.values():
        for text in given.addresses:
            if there.get(text.partition("/")[0]) != given.owner:
                found.append({"address": text, "owner": given.owner, "problem": NOT_ATTACHED, "repaired": False})
    for interface, owner in attached.items():
        slot = member.space.slot(interface.ip)
        known = member.holdings.given.get(slot) if slot is not None else None
        if slot is not None and (known is None or known.owner != owner):
            found.append({"address": str(interface), "owner": owner, "problem": NOT_GIVEN, "repaired": False})
    return found
