"""The tables of a comparison: who, how fast, how long it waits, what it costs, what losses do to it.

Knows the shape of the JSON and writes Markdown cells; takes and judges nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bench.figures import Figures, known, median, ratio, values
from bench.harness import Result, Table
from bench.plan import Plan
from bench.underlay import PASS_THROUGH, WIRE

HAND = "vxlan"
NOTHING = "-"


def method(plan: Plan) -> str:
    """For a reader who doubts it."""
    return (
        "All contestants of one underlay stand at the same time, each between two hosts and two containers of its own "
        "(network namespaces of one machine, which share its cores), and take turns: "
        f"{plan.rounds} rounds of {plan.seconds} s for one stream, fewer for what takes longer. Figures are medians "
        "over rounds; a ratio is the median of the rounds' ratios. TCP is iperf3 with cubic, as received. On the wire "
        "a third namespace is the switch, segmentation offloads are off on every device of the underlay, GRO is off in "
        "the switch and on at the hosts; losses are dropped in the switch, packet by packet, in both directions."
    )


def brief(figures: Mapping[str, float]) -> str:
    """One run on one line of progress."""
    if "pps" in figures:
        return f"{figures['pps']:9,.0f} packets/s of {figures['offered_pps']:,.0f} offered"
    said = [f"{figures['mbit_s']:9,.0f} Mbit/s"] if "mbit_s" in figures else []
    if "cpu_s_per_gb" in figures:
        said.append(f"{figures['cpu_s_per_gb']:5.2f} s/GB")
    if "median_ms" in figures:
        said.append(f"ping {figures['median_ms']:.3f} ms, p99 {figures['p99_ms']:.3f} ms")
    if "pings_lost" in figures:
        said.append(f"{figures['pings_lost']:.0f} of {figures['pings']:.0f} lost")
    return "  ".join(said)


def fill(result: Result, unmeasured: Sequence[str]) -> None:
    """Everything that is shown of what was found."""
    figures = result.figures
    result.columns = ("contestant", "version", "how", "encrypted")
    for name, facts in figures["contestants"].items():
        failed = "; ".join(f"{underlay}: {why}" for underlay, why in facts.get("failed", {}).items())
        version = facts["version"] or f"not measured: {facts['missing']}"
        said = f"{version}; not measured on {failed}" if failed else version
        result.rows.append((f"{facts['title']} (`{name}`)", said, facts["how"], "yes" if facts["encrypted"] else "no"))
    for underlay, found in figures["underlays"].items():
        names = _names(figures, found)
        for table in (_throughput(figures, underlay, names), _waiting(figures, underlay, names)):
            if any(cell != NOTHING for row in table.rows for cell in row[1:]):
                result.tables.append(table)
        result.tables.append(_cost(figures, underlay, names, found))
        if underlay == WIRE and found["dropped"]:
            result.tables.append(_losses(figures, names, found))
        result.tables.append(_crossing(underlay, found))
    if "rekey" in figures:
        result.tables.append(_rekey(figures["rekey"]))
    result.tables.append(_goals(result, unmeasured))
    result.aims_in_table = True


def _names(figures: Figures, found: Mapping[str, Any]) -> list[str]:
    there = {name for by_name in found["samples"].values() for name in by_name}
    return [name for name in figures["contestants"] if name in there]


def _throughput(figures: Figures, underlay: str, names: Sequence[str]) -> Table:
    rows = []
    for name in names:
        one = values(figures, underlay, "tcp1", name, "mbit_s")
        hand = values(figures, underlay, "tcp1", HAND, "mbit_s")
        offered, pps = (median(values(figures, underlay, "udp", name, key)) for key in ("offered_pps", "pps"))
        limited = " (all that was offered)" if pps and offered and pps >= 0.99 * offered else ""
        rows.append(
            (
                name,
                _spread(one),
                _number(ratio(one, hand), 3),
                _number(median(values(figures, underlay, "tcp4", name, "mbit_s")), 0),
                _number(median(values(figures, underlay, "reverse", name, "mbit_s")), 0),
                _number(pps, 0) + limited,
            )
        )
    columns = ("", "TCP 1 stream, Mbit/s: low .. median .. high", "x by hand", "4 streams", "reverse", "UDP 64 B, pps")
    return Table(f"Throughput, {underlay}", columns, rows)


def _waiting(figures: Figures, underlay: str, names: Sequence[str]) -> Table:
    rows = []
    for name in names:
        row = [name]
        for measure in ("ping", "tcp4"):
            middle, late = (median(values(figures, underlay, measure, name, key)) for key in ("median_ms", "p99_ms"))
            lost, sent = (known(values(figures, underlay, measure, name, key)) for key in ("pings_lost", "pings"))
            row += [_number(middle, 3), _number(late, 3), f"{sum(lost):.0f} of {sum(sent):,.0f}" if sent else NOTHING]
        row.append(_number(median(values(figures, underlay, "tcp4", name, "mbit_s")), 0))
        rows.append(row)
    each = ("median ms", "p99 ms", "lost")
    loaded = [f"under 4 streams: {what}" for what in each]
    columns = ("", *(f"idle: {what}" for what in each), *loaded, "Mbit/s meanwhile")
    return Table(f"Ping, {underlay}", columns, rows)


def _cost(figures: Figures, underlay: str, names: Sequence[str], found: Mapping[str, Any]) -> Table:
    rows = []
    for name in names:
        processes = found["memory"].get(name, [])
        total = sum(process["rss_mb"] for process in processes)
        each = ", ".join(f"{process['what']} {process['rss_mb']:.0f}" for process in processes)
        foreign = known(share for shares in found["foreign"].values() for share in shares.get(name, []))
        overlay, machine = (
            _number(median(values(figures, underlay, "tcp1", name, key)), 2)
            for key in ("cpu_s_per_gb", "machine_cpu_s_per_gb")
        )
        rows.append(
            (
                name,
                overlay if processes else "in kernel",
                machine,
                f"{total:.1f}" if processes else NOTHING,
                each or NOTHING,
                f"{max(foreign):.0%}" if foreign else NOTHING,
            )
        )
    columns = ("", "overlay CPU s/GB", "machine CPU s/GB", "RSS MB, all", "each process", "most taken by others")
    note = f"{found['repeated']} of {found['runs']} runs were done once more because others had taken the processors."
    if found["failures"]:
        note += f" Runs that failed: {'; '.join(found['failures'])}."
    return Table(f"What it costs, {underlay}", columns, rows, note)


def _losses(figures: Figures, names: Sequence[str], found: Mapping[str, Any]) -> Table:
    percents = list(found["dropped"])
    rows = [
        (
            name,
            _number(median(values(figures, WIRE, "tcp1", name, "mbit_s")), 0),
            *(_spread(values(figures, WIRE, f"loss {percent} %", name, "mbit_s")) for percent in percents),
        )
        for name in names
    ]
    really = []
    for percent in percents:
        seen, dropped = (sum(count[key] for count in found["dropped"][percent].values()) for key in ("seen", "dropped"))
        really.append(f"{dropped:,} of {seen:,} ({dropped / max(1, seen):.3%})")
    note = f"Mbit/s, low .. median .. high. What the switches really dropped: {'; '.join(really)}."
    columns = ("", "0 %", *(f"{percent} %" for percent in percents))
    return Table("TCP one stream on a wire that loses", columns, rows, note)


def _crossing(underlay: str, found: Mapping[str, Any]) -> Table:
    rows = [
        (
            name,
            f"{seen['packets']:,}",
            f"{seen['mean_bytes']:,}",
            NOTHING if seen["large"] is None else f"{seen['large']:,}",
        )
        for name, seen in found["crossing"].items()
    ]
    what = "packets handed on by the veth" if underlay == PASS_THROUGH else "packets that crossed the switch"
    note = "Counted during a short stream, to show that the underlay is what it is called."
    return Table(f"Sizes on the underlay, {underlay}", ("", what, "mean bytes", "above the MTU"), rows, note)


def _rekey(watched: Mapping[str, Any]) -> Table:
    note = (
        f"A slow ping between two hosts of its own beside all other measures, for {watched['seconds']:.0f} s; rolls "
        "are handshakes that the switch between them saw answered."
    )
    rows = [("weft-sleeve", f"{watched['rolls']:,}", f"{watched['pings']:,}", f"{watched['lost']:,}")]
    return Table("Frames lost while keys roll", ("", "rolls", "pings", "lost"), rows, note)


def _goals(result: Result, unmeasured: Sequence[str]) -> Table:
    rows = []
    for aim in result.aims:
        bound = f"at {'least' if aim.at_least else 'most'} {aim.bound:g}{aim.unit}"
        verdict = "met" if aim.met else f"**missed by {aim.shortfall}**"
        rows.append((aim.what, bound, f"{aim.value:.4g}{aim.unit}", verdict))
    if len(unmeasured) > len(rows):
        note = f"{len(unmeasured)} of {len(unmeasured) + len(rows)} goals were not measured in this run."
    else:
        note = f"Not measured in this run: {'; '.join(unmeasured)}." if unmeasured else ""
    return Table("Goals of the encrypted sleeve", ("measure", "goal", "figure", "verdict"), rows, note)


def _number(value: float | None, digits: int) -> str:
    return NOTHING if value is None else f"{value:,.{digits}f}"


def _spread(found: Sequence[float | None]) -> str:
    there = known(found)
    if not there:
        return NOTHING
    if len(there) == 1:
        return f"**{there[0]:,.0f}**"
    return f"{min(there):,.0f} .. **{median(there):,.0f}** .. {max(there):,.0f}"
