"""What the sleeve is to reach, and how far it is from that.

Each goal is judged on what one run has found, against peers that were measured beside it. Knows the shape of the JSON
(`bench/figures.py`) and nothing of how it was taken. The one idea needed to read it: a goal without its peer is neither
met nor missed; it is said to be unmeasured, with the reason.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from bench.figures import Figures, best_peer, known, median, ratio, values
from bench.harness import Aim
from bench.underlay import PASS_THROUGH, UNDERLAYS, WIRE

US = "weft-sleeve"
HAND = "vxlan"
WORKER = "dataplane.sleeve"

AHEAD = 1.6
OF_THE_LOAD = 0.8
"""A ping under load counts at this share of the throughput goal or more."""
SENDER_SHARE = 0.95


@dataclass(slots=True)
class _Bench:
    figures: Figures
    aims: list[Aim] = field(default_factory=list)
    unmeasured: list[str] = field(default_factory=list)

    def values(self, underlay: str, measure: str, name: str, key: str) -> list[float | None]:
        return values(self.figures, underlay, measure, name, key)

    def bound(self, what: str, value: float | None, bound: float, unit: str = "", *, at_least: bool = False) -> None:
        if value is None:
            self.unmeasured.append(what)
        else:
            self.aims.append(Aim(what, value, bound, unit, at_least))

    def against(self, what: str, underlay: str, measure: str, key: str, other: str | None, factor: float) -> None:
        """At least `factor` times another contestant; a negative one is the most allowed."""
        name = f"{what} / {other or 'best peer'}"
        found = None
        if other is not None:
            found = ratio(self.values(underlay, measure, US, key), self.values(underlay, measure, other, key))
        self.bound(name, found, abs(factor), " x", at_least=factor > 0)

    def best(self, underlay: str, measure: str, key: str, *, most: bool = True) -> str | None:
        return best_peer(self.figures, underlay, measure, key, most=most)


def judge(figures: Figures) -> tuple[list[Aim], list[str]]:
    """The aims that could be judged, and what could not."""
    bench = _Bench(figures)
    for goal in _GOALS:
        goal(bench)
    return bench.aims, bench.unmeasured


def _one_stream(bench: _Bench) -> None:
    for underlay, bounds in (
        (PASS_THROUGH, (("wireguard-go", 1.6), ("tinc", 8.0), (HAND, 0.35))),
        (WIRE, (("wireguard-go", 2.0), (HAND, 0.6))),
    ):
        for other, factor in bounds:
            bench.against(f"TCP one stream, {underlay}", underlay, "tcp1", "mbit_s", other, factor)
    bench.against(f"TCP one stream, {PASS_THROUGH} (aim)", PASS_THROUGH, "tcp1", "mbit_s", HAND, 0.5)
    bench.against(f"TCP one stream, {WIRE} (aim)", WIRE, "tcp1", "mbit_s", HAND, 0.75)


def _more_streams(bench: _Bench) -> None:
    for measure, what in (("tcp4", "TCP four streams"), ("reverse", "TCP reverse")):
        for underlay in UNDERLAYS:
            best = bench.best(underlay, measure, "mbit_s")
            bench.against(f"{what}, {underlay}", underlay, measure, "mbit_s", best, AHEAD)


def _cost(bench: _Bench) -> None:
    key = "cpu_s_per_gb"
    ours = median(bench.values(PASS_THROUGH, "tcp1", US, key))
    bench.bound("CPU of the overlay's processes, pass-through", ours, 2.0, " s/GB")
    best = bench.best(PASS_THROUGH, "tcp1", key, most=False)
    bench.against("CPU of the overlay's processes, pass-through", PASS_THROUGH, "tcp1", key, best, -0.5)


def _packets(bench: _Bench) -> None:
    for underlay in UNDERLAYS:
        best = bench.best(underlay, "udp", "pps")
        ours, theirs = bench.values(underlay, "udp", US, "pps"), bench.values(underlay, "udp", best or "", "pps")
        offered = bench.values(underlay, "udp", US, "offered_pps")
        of_sender, of_peer = ratio(ours, offered), ratio(ours, theirs)
        what = f"UDP of 64 bytes under 1 % loss, {underlay}"
        if of_sender is not None and of_sender >= SENDER_SHARE and (of_peer is None or of_peer < 1):
            bench.bound(f"{what} / what the sender can offer", of_sender, SENDER_SHARE, " x", at_least=True)
        else:
            bench.bound(f"{what} / {best or 'best peer'}", of_peer, 1.0, " x", at_least=True)


def _waits(bench: _Bench) -> None:
    for underlay in UNDERLAYS:
        bench.against(f"ping median, idle, {underlay}", underlay, "ping", "median_ms", "tinc", -1.0)
    for underlay in UNDERLAYS:
        what = f"ping under four streams, {underlay}"
        bench.bound(f"{what}: median", median(bench.values(underlay, "tcp4", US, "median_ms")), 2.0, " ms")
        lost = known(bench.values(underlay, "tcp4", US, "pings_lost"))
        bench.bound(f"{what}: lost", sum(lost) if lost else None, 0)
        best = bench.best(underlay, "tcp4", "mbit_s")
        bench.against(f"{what}: throughput meanwhile", underlay, "tcp4", "mbit_s", best, OF_THE_LOAD * AHEAD)


def _losses(bench: _Bench) -> None:
    for percent in ("0.1", "1"):
        measure = f"loss {percent} %"
        best = bench.best(WIRE, measure, "mbit_s")
        bench.against(f"TCP one stream, wire, {percent} % lost", WIRE, measure, "mbit_s", best, 1.0)


def _rekey(bench: _Bench) -> None:
    watched = bench.figures.get("rekey")
    lost = watched["lost"] if watched and watched["rolls"] else None
    bench.bound("frames lost across a rekey", lost, 0)


def _memory(bench: _Bench) -> None:
    peaks = [
        float(process["peak_rss_mb"])
        for underlay in bench.figures["underlays"].values()
        for process in underlay["memory"].get(US, [])
        if process["what"] == WORKER
    ]
    bench.bound("memory of the worker at its peak", max(peaks) if peaks else None, 60.0, " MB")


_GOALS: tuple[Callable[[_Bench], None], ...] = (
    _one_stream,
    _more_streams,
    _cost,
    _packets,
    _waits,
    _losses,
    _rekey,
    _memory,
)
