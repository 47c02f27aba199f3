"""What the bench `paths` found, beside its aims, and where the seconds of the worst rounds went.

Knows the shape of that bench's figures and takes nothing itself. The one idea needed to read it: whoever waits for a
path waits once, so times are judged by the worst round, and only what varies with the machine by its median.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bench.harness import Aim, Result, Table, median_ratio
from bench.hop import BY_ONE, STRAIGHT
from bench.outage import RETURN_MAX_S

Figures = Mapping[str, Any]

GAP_MAX_S = 4.0
RETURN_AIM_S = 10.0
THROUGH_ONE_MIN = 0.4
MET_MAX_S = 2.0
PER_PEER_MAX_B_S = 200.0

TITLES = {
    "vxlan-one-way": "no VXLAN, one way",
    "vxlan": "no VXLAN, both ways",
    "datagrams": "neither VXLAN nor sleeve",
    "sleeve": "no sleeve (password)",
    "relay-dies": "a relay dies",
}


@dataclass(frozen=True, slots=True)
class Line:
    """One figure, and what it is held against if anything."""

    what: str
    values: Sequence[float]
    unit: str
    aim: Aim | None = None
    more_is_better: bool = False

    def cells(self) -> list[str]:
        worst = (min if self.more_is_better else max)(self.values)
        shown = [f"{_number(value)}{self.unit}" for value in (statistics.median(self.values), worst)]
        if self.aim is None:
            return [self.what, str(len(self.values)), *shown, "", ""]
        bound = f"{'at least' if self.aim.at_least else 'at most'} {self.aim.bound:g}{self.unit}"
        verdict = "met" if self.aim.met else f"**missed by {self.aim.shortfall}**"
        return [self.what, str(len(self.values)), *shown, bound, verdict]


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 or value == int(value) else f"{value:.2f}"


def lines(figures: Figures) -> list[Line]:
    """Of everything that was measured, in the order of the table."""
    found = []
    for name, title in TITLES.items():
        found += _outages(title, figures.get(name, ()))
    if streams := figures.get("relay-tcp"):
        found += _streams(streams["mbit_s"])
    found += _meetings(figures.get("punching", ()))
    if probes := figures.get("probes"):
        found += _probes(probes)
    return found


def _worst(what: str, values: Sequence[float], bound: float, unit: str = " s") -> Line:
    return Line(what, values, unit, Aim(what, max(values), bound, unit))


def _outages(title: str, rounds: Sequence[Figures]) -> list[Line]:
    if not rounds:
        return []
    found = [_worst(f"{title}: time without traffic", [each["outage"]["gap_s"] for each in rounds], GAP_MAX_S)]
    returns = [each["return"] for each in rounds if "return" in each]
    if returns:
        took_s = [RETURN_MAX_S if each["took_s"] is None else each["took_s"] for each in returns]
        found.append(_worst(f"{title}: until the best path is back", took_s, RETURN_AIM_S))
        found.append(_worst(f"{title}: pings lost by going back", [each["lost"] for each in returns], 0, ""))
    return found


def _streams(mbit_s: Mapping[str, Sequence[float]]) -> list[Line]:
    ratios = [through / straight for through, straight in zip(mbit_s[BY_ONE], mbit_s[STRAIGHT], strict=True)]
    what = "TCP through one relay / straight"
    aim = Aim(what, median_ratio(mbit_s[BY_ONE], mbit_s[STRAIGHT]), THROUGH_ONE_MIN, at_least=True)
    return [
        *(Line(f"TCP {name}", mbit_s[name], " Mbit/s", more_is_better=True) for name in (STRAIGHT, BY_ONE)),
        Line(what, ratios, "", aim, more_is_better=True),
    ]


def _meetings(met: Sequence[Figures]) -> list[Line]:
    if not met:
        return []
    direct_s = [each["direct_s"] for each in met if each["direct_s"] is not None]
    return [
        _worst("two behind NATs: first answer after launch", [each["answered_s"] for each in met], MET_MAX_S),
        Line("the same from the call of launch", [each["answered_s"] + each["launch_s"] for each in met], " s"),
        Line("of that, until attach had returned", [each["attached_s"] for each in met], " s"),
        *([Line("direct after launch", direct_s, " s")] if direct_s else []),
        Line("not direct in time", [len(met) - len(direct_s)], ""),
        Line("longest pause after the first answer", [each["pause_s"] for each in met], " s"),
    ]


def _probes(probes: Figures) -> list[Line]:
    hosts, many = probes["measured"]["hosts"], probes["computed_hosts"]
    measured, again, more = probes["measured"]["per_peer_b_s"], probes["computed_same"], probes["computed"]
    return [
        Line(f"probes to and from one peer, {hosts} hosts, measured", [measured["both"]], " B/s"),
        Line("the same, computed", [again["both"]], " B/s"),
        _worst(f"probes to and from one peer, {many} hosts, computed", [more["both"]], PER_PEER_MAX_B_S, " B/s"),
        Line("of that, VXLAN", [more["vxlan"]], " B/s"),
    ]


def fill(result: Result) -> None:
    """Tables and aims of what stands in the figures."""
    found = lines(result.figures)
    result.columns = ("figure", "rounds", "median", "worst", "aim", "verdict")
    result.rows = [line.cells() for line in found]
    result.aims = [line.aim for line in found if line.aim is not None]
    result.aims_in_table = True
    if rows := _turns(result.figures):
        note = "Seconds since the failure, or since its end, until daemons changed a path."
        result.tables.append(Table("Where the time went, in the worst round", ("figure", "path changes"), rows, note))
    if streams := result.figures.get("relay-tcp"):
        result.tables.append(_senders(streams))
    if failures := result.figures["failures"]:
        result.tables.append(Table("Not measured", ("what, and why",), [(failure,) for failure in failures]))


def _senders(streams: Figures) -> Table:
    """Round by round, because what a sender has made of a way decides how fast it is."""
    rows = []
    mbit_s = streams["mbit_s"]
    for straight, through, state in zip(mbit_s[STRAIGHT], mbit_s[BY_ONE], streams["sender"][BY_ONE], strict=True):
        said = [f"{state['loss']:.3%}", str(state["datagrams"]), str(state["parity"])]
        rows.append([_number(straight), _number(through), f"{through / straight:.2f}", *said])
    columns = ("Mbit/s, straight", f"Mbit/s, {BY_ONE}", "ratio", "lost", "datagrams a record", "parity")
    note = (
        f"How the sender sends at the end of each round {BY_ONE}: the loss it measures, and what it does about it. "
        f"Packets had {streams['mean_packet_bytes']:,} bytes on average when they reached a host."
    )
    return Table("TCP through one relay, round by round", columns, rows, note)


def _turns(figures: Figures) -> list[tuple[str, str]]:
    rows = []
    for name, title in TITLES.items():
        rounds = figures.get(name, ())
        if not rounds:
            continue
        worst = max((each["outage"] for each in rounds), key=lambda each: float(each["gap_s"]))
        rows.append((f"{title}: {worst['gap_s']:.2f} s", _told(worst["turns"])))
        returns = [each["return"] for each in rounds if "return" in each]
        if returns:
            slowest = max(returns, key=lambda each: RETURN_MAX_S if each["took_s"] is None else float(each["took_s"]))
            took = "not" if slowest["took_s"] is None else f"{slowest['took_s']:.2f} s"
            rows.append((f"{title}, back: {took}", _told(slowest["turns"])))
    return rows


def _told(turns: Sequence[Figures]) -> str:
    return ", ".join(f"{each['after_s']:.2f} {each['host']} {each['path']} ({each['reason']})" for each in turns) or "-"
