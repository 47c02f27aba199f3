"""What the daemon answered, as text for a person at a terminal of 100 columns.

Plain text, aligned, no colours; scripts use `--json`. Knows the shapes of the answers and nothing of where they come
from. Nicknames, labels and error texts were written on other hosts, so whatever could steer a terminal is replaced
here. A key that is missing (an older daemon is answering) shows as `-`.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import Any

    Row = dict[str, Any]

_GAP = "  "
_MINUTE_S, _HOUR_S, _DAY_S = 60, 3600, 86400


def status(answer: Row) -> str:
    """The summary: who we are, how the mesh is, and what needs a person's attention."""
    name = f"{_text(answer.get('peer'))} ({_text(answer.get('nickname'))})"
    head = f"weft {_text(answer.get('version'))}  peer {name}  up {age(answer.get('uptime_s'))}"
    peers = f"{_text(answer.get('reachable'))} of {_text(answer.get('peers'))} reachable"
    links = f"{_count(answer.get('links'), 'link')} of ours, {_count(answer.get('targets'), 'target')}"
    encryption = "on" if answer.get("encryption") else "off (no password is set: traffic between hosts is readable)"
    facts = [
        ("peers", f"{peers}; {links}"),
        ("paths", _paths(answer.get("connections"))),
        ("encryption", encryption),
        ("mtu", _text(answer.get("mtu"))),
        ("endpoints", _endpoint_counts(answer)),
        *([("ipam", _ipam_line(answer["ipam"]))] if isinstance(answer.get("ipam"), dict) else []),
    ]
    lines = [head, "", *table([(f"  {key}", value) for key, value in facts])]
    lines += _refused(answer.get("refused") or {})
    lines += _warnings(answer.get("warnings") or [])
    return "\n".join(lines)


def _endpoint_counts(answer: Row) -> str:
    text = f"{_text(answer.get('endpoints'))}, {_text(answer.get('local_endpoints'))} of them on this host"
    away = answer.get("away_endpoints")
    return f"{text}, {_text(away)} of those away (weft ps)" if away else text


def _paths(connections: Any) -> str:
    parts = []
    for path, count in sorted((connections or {}).items()):
        if not count:
            continue
        to = "peer" if count == 1 else "peers"
        parts.append(f"no path to {count} {to}" if path == "none" else f"{_text(path)} to {count} {to}")
    return ", ".join(parts) or "none: no other peer is known"


def _refused(refused: Row) -> list[str]:
    if not refused:
        return []
    rows = []
    for reason, what in sorted(refused.items()):
        last = ", ".join(_text(address) for address in what.get("last") or [])
        rows.append((f"  {_text(reason)}", _count(what.get("count"), "time"), f"last from {last}" if last else ""))
    return ["", "refused links", *table(rows)]


def _warnings(warnings: list[Row]) -> list[str]:
    if not warnings:
        return []
    lines = ["", "warnings"]
    for warning in warnings:
        lines.append(f"  {_text(warning.get('code'))}: {_text(warning.get('text'))}")
        if warning.get("cure"):
            lines.append(f"      cure: {_text(warning['cure'])}")
    return lines


def peers(rows: list[Row]) -> str:
    cells = [
        (
            _text(row.get("name")),
            _text(row.get("nickname")),
            _peer_state(row),
            _text(row.get("version")),
            _listed(row.get("addresses")),
        )
        for row in rows
    ]
    return _listing(("PEER", "NICKNAME", "STATE", "VERSION", "ADDRESSES"), cells, "no peers are known")


def _peer_state(row: Row) -> str:
    if row.get("self"):
        return "this host"
    if row.get("reachable"):
        return "reachable"
    return "stopped" if row.get("state") == "away" else "unreachable"


def connections(rows: list[Row], now_unix_s: float) -> str:
    cells = [
        (
            _text(row.get("nickname") or row.get("peer")),
            _path(row),
            _text(row.get("reason")),
            _yes(row.get("encrypted")),
            _text(row.get("mtu")),
            milliseconds(row.get("rtt_ms")),
            _yes(row.get("link")),
            _since(row.get("since"), now_unix_s),
        )
        for row in rows
    ]
    header = ("PEER", "PATH", "REASON", "ENCRYPTED", "MTU", "RTT", "LINK", "SINCE")
    return _listing(header, cells, "no other peer is known")


def _path(row: Row) -> str:
    """With those who pass frames on, where somebody does."""
    via = row.get("via")
    path = _text(row.get("path"))
    return f"{path} via {', '.join(map(_text, via))}" if isinstance(via, list) and via else path


def targets(rows: list[Row]) -> str:
    cells = [
        (_text(row.get("target")), _text(row.get("state")), _next_try(row.get("next_try")), _text(row.get("error")))
        for row in rows
    ]
    return _listing(("TARGET", "STATE", "NEXT TRY", "ERROR"), cells, "no targets: give one with `weft connect PEER`")


def endpoints(rows: list[Row]) -> str:
    cells: list[tuple[str, ...]] = []
    for row in rows:
        notes = [_text(name) for name in row.get("names") or []]
        notes += [f"{_text(key)}={_text(value)}" for key, value in sorted((row.get("labels") or {}).items())]
        if row.get("away"):
            notes.append("away")
        if row.get("conflict"):
            notes.append(f"CONFLICT: {_text(row['conflict'])}")
        where = "this host" if row.get("local") else _text(row.get("nickname") or row.get("peer"))
        addresses = [_text(address) for address in row.get("addresses") or ["-"]]
        cells.append((addresses[0], _text(row.get("mac")), where, _text(row.get("network")), " ".join(notes)))
        # Further addresses on lines of their own: in one cell they would push everything else off the screen.
        cells += [(address, "", "", "", "") for address in addresses[1:]]
    return _listing(("ADDRESS", "MAC", "PEER", "NETWORK", "NAMES AND LABELS"), cells, "nothing is attached anywhere")


IPAM_STATES = {
    "off": "off: no addresses are given (--ipalloc-range none)",
    "idle": "nothing was asked for yet",
    "forming": "the hosts agree on a ring",
    "observing": "waits for another host to make the ring",
    "unconfirmed": "waits for other hosts to confirm what this one may give",
    "ready": "ready",
    "split": "ready, but two rings that formed apart have met",
    "conflict": "gives nothing: another host speaks with this one's key",
    "resigned": "gives nothing: it has left the mesh for good",
}


def _ipam_line(told: Row) -> str:
    """The part of `status` about given addresses."""
    text = IPAM_STATES.get(str(told.get("state")), _text(told.get("state")))
    if told.get("owned"):
        text += f"; {_number(told.get('free'))} of {_number(told.get('owned'))} addresses of this host free"
    if told.get("pending"):
        text += f", {_count(told['pending'], 'request')} waiting"
    return text


def ipam(answer: Row) -> str:
    """Who owns how much, what is given here, what is waited for, and what to do where something is wrong."""
    ranges = " and ".join(_text(answer[key]) for key in ("range", "range6") if answer.get(key))
    facts = [
        ("range", ranges or "none yet" if answer.get("state") != "off" else "none"),
        ("default", _text(answer.get("default_subnet") or "the whole range")),
        ("state", IPAM_STATES.get(str(answer.get("state")), _text(answer.get("state")))),
    ]
    if answer.get("ring"):
        facts.append(("ring", f"{_text(answer['ring'])}, decision {_text(answer.get('decision'))}"))
        facts.append(("voters", _voters(answer.get("voters") or [])))
        facts.append(("lease", _lease(answer)))
    lines = table([(f"{key}", value) for key, value in facts])
    if answer.get("advice"):
        lines += ["", f"what to do: {_text(answer['advice'])}"]
    for other in answer.get("other_rings") or []:
        conflicts = f", {_count(other['conflicts'], 'conflict')}" if other.get("conflicts") else ""
        lines += ["", f"another ring: {_text(other.get('ring'))} of {_listed(other.get('peers'))}{conflicts}"]
    lines += _owners(answer.get("peers") or [])
    lines += _pending(answer.get("pending") or [])
    lines += _entries(answer.get("entries") or [])
    return "\n".join(lines)


def _voters(voters: list[Row]) -> str:
    return ", ".join(
        _text(each.get("nickname") or each.get("peer"))
        + (" (this host)" if each.get("self") else "" if each.get("reachable") else " (out of reach)")
        for each in voters
    )


def _lease(answer: Row) -> str:
    left = answer.get("confirmed_for_s")
    confirmed = "not confirmed now" if left is None else f"confirmed for another {age(left)}"
    return f"{age(answer.get('lease_s'))}; {confirmed}"


def _owners(peers: list[Row]) -> list[str]:
    if not peers:
        return []
    cells = [
        (
            _text(row.get("nickname") or row.get("peer")),
            _peer_state(row),
            _number(row.get("addresses")),
            f"{100 * row['share']:.1f} %" if isinstance(row.get("share"), (int, float)) else "-",
            _number(row.get("used")),
            _number(row.get("free")),
        )
        for row in peers
    ]
    return ["", *table([("PEER", "STATE", "OWNS", "SHARE", "USED", "FREE"), *cells])]


def _pending(rows: list[Row]) -> list[str]:
    if not rows:
        return []
    cells = [
        (_text(row.get("owner")), _text(row.get("wants")), age(row.get("since_s")), _text(row.get("waiting_for")))
        for row in rows
    ]
    return ["", *table([("WAITING", "WANTS", "SINCE", "FOR"), *cells])]


def _entries(rows: list[Row]) -> list[str]:
    if not rows:
        return ["", "nothing is given here"]
    cells = [
        (_text(row.get("owner")), _text(row.get("state")), _listed(row.get("addresses")))
        for row in sorted(rows, key=lambda row: (str(row.get("owner")), str(row.get("state"))))
    ]
    return ["", *table([("GIVEN TO", "STATE", "ADDRESSES"), *cells])]


def _number(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else _text(value)


def dns(answer: Row) -> str:
    from mesh.dns import words

    return words.status_text(answer, table, _text)


def ps(rows: list[Row], now_unix_s: float) -> str:
    cells = [
        (
            _text(row.get("id")),
            _text(row.get("mac")),
            _listed(row.get("addresses")),
            _attachment_state(row, now_unix_s),
        )
        for row in rows
    ]
    return _listing(("ID", "MAC", "ADDRESSES", "STATE"), cells, "nothing is attached on this host")


def _attachment_state(row: Row, now_unix_s: float) -> str:
    away = row.get("away")
    return "-" if away is None else f"away {_since(row.get('away_since'), now_unix_s)}" if away else "here"


def ping_row(row: Row) -> str:
    answer = "no answer" if row.get("rtt_ms") is None else f"time={milliseconds(row['rtt_ms'])}"
    return f"seq={_text(row.get('seq'))} path={_text(row.get('path'))} to={_text(row.get('address'))} {answer}"


def ping_summary(answer: Row) -> str:
    text = f"{_text(answer.get('sent'))} sent, {_text(answer.get('received'))} answered"
    text += f", path {_text(answer.get('path'))}"
    if answer.get("median_ms") is not None:
        text += f", min {milliseconds(answer.get('min_ms'))}, median {milliseconds(answer['median_ms'])}"
    return text


def table(rows: Iterable[tuple[str, ...]]) -> list[str]:
    """Rows of equally many cells as aligned lines. The last column is as wide as it likes."""
    rows = list(rows)
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    return [_GAP.join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _listing(header: tuple[str, ...], cells: Sequence[tuple[str, ...]], nothing: str) -> str:
    return "\n".join(table([header, *cells])) if cells else nothing


def age(seconds: float | None) -> str:
    """A duration in the two units that matter: `12 s`, `5 min`, `3 h 20 min`, `4 d 2 h`."""
    if not isinstance(seconds, (int, float)):
        return "-"
    whole = max(0, int(seconds))
    if whole < _MINUTE_S:
        return f"{whole} s"
    if whole < _HOUR_S:
        return f"{whole // _MINUTE_S} min"
    if whole < _DAY_S:
        return f"{whole // _HOUR_S} h {whole % _HOUR_S // _MINUTE_S} min"
    return f"{whole // _DAY_S} d {whole % _DAY_S // _HOUR_S} h"


def milliseconds(value: float | None) -> str:
    if not isinstance(value, (int, float)):
        return "-"
    return f"{value:.2f} ms" if value < 10 else f"{value:.0f} ms"


def _since(since_unix_s: Any, now_unix_s: float) -> str:
    return age(now_unix_s - since_unix_s) if isinstance(since_unix_s, (int, float)) else "-"


def _next_try(seconds: Any) -> str:
    if not isinstance(seconds, (int, float)):
        return "-"
    return "now" if seconds < 1 else f"in {age(seconds)}"


def _count(value: Any, noun: str) -> str:
    return f"{_text(value)} {noun}" if value == 1 else f"{_text(value)} {noun}s"


def _listed(values: Any) -> str:
    return ", ".join(_text(value) for value in values or []) or "-"


def _yes(value: Any) -> str:
    return "-" if value is None else "yes" if value else "no"


def _text(value: Any) -> str:
    """One cell: `-` for nothing, and never a character that a terminal would act on."""
    if value is None or value == "":
        return "-"
    text = str(value)
    return text if text.isprintable() else "".join(char if char.isprintable() else "?" for char in text)
