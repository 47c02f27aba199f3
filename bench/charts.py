"""Charts of a comparison, as SVG written here and as PNG made from it.

Two forms: rows of dots on a logarithmic scale (the median, a line from the lowest round to the highest), because raw
veth and openvpn differ by a factor of fifty and bars on such a scale would lie; and lines over loss. Knows the shape of
the JSON, not how it was taken.

SVG is text, so nothing has to be installed for it. PNG is made by `rsvg-convert` (Debian: librsvg2-bin, 0.3 MB, which
`make bench` installs): what would draw it in Python brings either numpy or a C library of its own into the
environment of the product, for six pictures. Without it there are no PNGs, and the bench says so.
"""

from __future__ import annotations

import math
import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from bench.figures import Figures, Values, known, median, values
from bench.harness import say
from bench.underlay import UNDERLAYS, WIRE

FONT = "DejaVu Sans, Verdana, Helvetica, Arial, sans-serif"
INK, FAINT, GRID = "#1f2933", "#6b7785", "#e3e8ee"
WEFT, KERNEL, PEER = "#0b6e99", "#8a94a0", "#c0692b"
WEFT_BESIDE = {"weft-sleeve-clear": "#4fa3c7", "weft-vxlan": "#93b9cc"}
"""Paler than the encrypted one, which is what all this is about."""
LINES = ("#c0692b", "#7d5ba6", "#4d8f3a", "#b8405e", "#8c6d1f", "#2f6f6f", "#555555", "#a05195")
MARGIN, NAMES_WIDTH, VALUE_WIDTH = 24, 140, 84
PANEL_WIDTH, ROW_HEIGHT, TITLE_HEIGHT, AXIS_HEIGHT = 470, 22, 30, 30
PNG_ZOOM = "2"
CONVERT_TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True)
class Row:
    name: str
    colour: str
    low: float
    middle: float
    high: float


@dataclass(frozen=True, slots=True)
class Panel:
    title: str
    unit: str
    rows: Sequence[Row]


# What is drawn


def draw(figures: Figures) -> dict[str, str]:
    """SVG by name of picture; what was not measured has no picture."""
    drawn = {}
    for name, title, columns in _PICTURES:
        panels = [
            panel
            for measure, key, what, unit in columns
            for underlay in UNDERLAYS
            if (panel := _panel(figures, underlay, measure, key, f"{what}, {underlay}", unit)).rows
        ]
        if panels:
            drawn[name] = dots(title, panels)
    memories = [panel for underlay in UNDERLAYS if (panel := _memory(figures, underlay)).rows]
    if memories:
        drawn["memory"] = dots("Resident memory of all processes of both hosts, after the load", memories)
    curves = _curves(figures)
    if curves:
        drawn["loss"] = lines("TCP, one stream, on a wire that loses single packets", *curves)
    return drawn


_PICTURES: tuple[tuple[str, str, tuple[tuple[str, str, str, str], ...]], ...] = (
    ("tcp", "TCP from container to container, one stream", (("tcp1", "mbit_s", "one stream", "Mbit/s"),)),
    (
        "streams",
        "TCP, four streams and reverse",
        (("tcp4", "mbit_s", "four streams", "Mbit/s"), ("reverse", "mbit_s", "reverse", "Mbit/s")),
    ),
    (
        "ping",
        "Round trips, medians",
        (("ping", "median_ms", "idle", "ms"), ("tcp4", "median_ms", "under four streams", "ms")),
    ),
    ("udp", "UDP, packets of 64 bytes at under 1 % loss", (("udp", "pps", "UDP", "packets/s"),)),
    ("cpu", "Processor time of the overlay's processes", (("tcp1", "cpu_s_per_gb", "one TCP stream", "s/GB"),)),
)


def _panel(figures: Figures, underlay: str, measure: str, key: str, title: str, unit: str) -> Panel:
    rows = []
    for name in figures["contestants"]:
        # The kernel's ways have no processes of their own to charge.
        if key == "cpu_s_per_gb" and not figures["underlays"].get(underlay, {}).get("memory", {}).get(name):
            continue
        found = known(values(figures, underlay, measure, name, key))
        if found and max(found) > 0.01 * (key == "cpu_s_per_gb"):
            rows.append(_row(figures, name, found))
    return Panel(title, unit, rows)


def _memory(figures: Figures, underlay: str) -> Panel:
    rows = []
    for name, processes in figures["underlays"].get(underlay, {}).get("memory", {}).items():
        if processes:
            rows.append(_row(figures, name, [sum(process["rss_mb"] for process in processes)]))
    return Panel(f"memory, {underlay}", "MB", rows)


def _row(figures: Figures, name: str, found: Sequence[float]) -> Row:
    middle = median(found)
    assert middle is not None
    return Row(figures["contestants"][name]["title"], _colour(figures, name), min(found), middle, max(found))


def _colour(figures: Figures, name: str) -> str:
    if name.startswith("weft"):
        return WEFT_BESIDE.get(name, WEFT)
    return PEER if figures["contestants"][name]["is_peer"] else KERNEL


Curve = tuple[str, str, list[float | None]]


def _curves(figures: Figures) -> tuple[list[str], list[Curve]] | None:
    percents = list(figures["underlays"].get(WIRE, {}).get("dropped", {}))
    if not percents:
        return None
    curves: list[Curve] = []
    others = iter(LINES)
    for name, facts in figures["contestants"].items():
        at: list[Values] = [values(figures, WIRE, "tcp1", name, "mbit_s")]
        at += [values(figures, WIRE, f"loss {percent} %", name, "mbit_s") for percent in percents]
        if any(known(found) for found in at):
            colour = _colour(figures, name)
            curves.append((facts["title"], next(others, PEER) if colour == PEER else colour, [median(f) for f in at]))
    return ["0 %", *(f"{percent} %" for percent in percents)], curves


# How it is drawn


def dots(title: str, panels: Sequence[Panel]) -> str:
    """Panels two abreast, each with a scale of its own."""
    columns = min(2, len(panels))
    lines_of = [panels[at : at + columns] for at in range(0, len(panels), columns)]
    heights = [TITLE_HEIGHT + ROW_HEIGHT * max(len(p.rows) for p in line) + AXIS_HEIGHT for line in lines_of]
    width = MARGIN * 2 + PANEL_WIDTH * columns + MARGIN * (columns - 1)
    parts = []
    top = 56
    for line, height in zip(lines_of, heights, strict=True):
        for number, panel in enumerate(line):
            parts += _dots_panel(panel, MARGIN + number * (PANEL_WIDTH + MARGIN), top)
        top += height + 14
    return _svg(title, width, top, parts, "dot: median of the rounds; line: lowest to highest; logarithmic scale")


def _dots_panel(panel: Panel, left: float, top: float) -> list[str]:
    first, last = left + NAMES_WIDTH, left + PANEL_WIDTH - VALUE_WIDTH
    ticks = _ticks(min(row.low for row in panel.rows), max(row.high for row in panel.rows))
    at = _scale(ticks, first, last)
    bottom = top + TITLE_HEIGHT + ROW_HEIGHT * len(panel.rows)
    parts = [_text(left, top + 14, f"{panel.title}, {panel.unit}", size=13, weight="bold")]
    for tick in ticks:
        parts.append(_line(at(tick), top + TITLE_HEIGHT - 4, at(tick), bottom, GRID, 1))
        parts.append(_text(at(tick), bottom + 15, _short(tick), size=10, colour=FAINT, anchor="middle"))
    for number, row in enumerate(panel.rows):
        y = top + TITLE_HEIGHT + ROW_HEIGHT * (number + 0.5)
        weight = "bold" if row.colour == WEFT else "normal"
        parts.append(_text(first - 10, y + 4, row.name, size=11, anchor="end", weight=weight))
        parts.append(_line(at(row.low), y, at(row.high), y, row.colour, 3, opacity=0.45))
        parts.append(f'<circle cx="{at(row.middle):.1f}" cy="{y:.1f}" r="5" fill="{row.colour}"/>')
        parts.append(_text(at(row.high) + 9, y + 4, _value(row.middle), size=11, colour=row.colour, weight=weight))
    return parts


def lines(title: str, labels: Sequence[str], curves: Sequence[Curve]) -> str:
    """One line a contestant over equal steps of loss."""
    width, height = 860, 470
    left, right, top, bottom = 70, width - 190, 60, height - 60
    there = [value for _, _, points in curves for value in points if value]
    ticks = _ticks(min(there), max(there))
    up = _scale(ticks, bottom, top)
    step = (right - left) / max(1, len(labels) - 1)
    parts = []
    for tick in ticks:
        parts.append(_line(left, up(tick), right, up(tick), GRID, 1))
        parts.append(_text(left - 8, up(tick) + 4, _short(tick), size=10, colour=FAINT, anchor="end"))
    for number, label in enumerate(labels):
        parts.append(_text(left + number * step, bottom + 18, label, size=11, colour=FAINT, anchor="middle"))
    parts.append(_text(left - 8, top - 12, "Mbit/s", size=10, colour=FAINT, anchor="end"))
    ends = []
    for name, colour, points in curves:
        places = [(left + number * step, up(value)) for number, value in enumerate(points) if value]
        if not places:
            continue
        dash = "" if colour != KERNEL else ' stroke-dasharray="5 4"'
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        thick = 3 if colour == WEFT else 1.8
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="{thick}"{dash}/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in places]
        ends.append((places[-1][1], name, colour))
    last = -math.inf
    for y, name, colour in sorted(ends):
        last = max(y, last + 14)  # names that would lie on one another move down
        parts.append(_text(right + 10, last + 4, name, size=11, colour=colour))
    return _svg(title, width, height, parts, "loss in the switch, each packet by its own throw; medians of the rounds")


def _svg(title: str, width: float, height: float, parts: Sequence[str], note: str) -> str:
    height += 24
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height:.0f}" '
        f'viewBox="0 0 {width:.0f} {height:.0f}" font-family="{FONT}">'
    )
    background = f'<rect width="{width:.0f}" height="{height:.0f}" fill="#ffffff"/>'
    named = _text(MARGIN, 32, title, size=17, weight="bold")
    noted = _text(MARGIN, height - 14, note, size=10, colour=FAINT)
    return "\n".join([head, background, named, *parts, noted, "</svg>", ""])


def _text(
    x: float, y: float, text: str, *, size: int, colour: str = INK, anchor: str = "start", weight: str = "normal"
) -> str:
    style = f'font-size="{size}" fill="{colour}" text-anchor="{anchor}" font-weight="{weight}"'
    return f'<text x="{x:.1f}" y="{y:.1f}" {style}>{escape(text)}</text>'


def _line(x1: float, y1: float, x2: float, y2: float, colour: str, width: float, *, opacity: float = 1) -> str:
    where = f'x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"'
    return f'<line {where} stroke="{colour}" stroke-width="{width}" stroke-opacity="{opacity}"/>'


def _ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 of each power of ten where few are needed, else the powers alone; they enclose the values."""
    low = max(low, high / 1e5, 1e-6)
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    fine = [digit * 10.0**power for power in powers for digit in (1, 2, 5)]
    coarse = [10.0**power for power in powers]
    for ticks in (fine, coarse):
        first = max((tick for tick in ticks if tick <= low), default=ticks[0])
        last = min((tick for tick in ticks if tick >= high), default=ticks[-1])
        chosen = [tick for tick in ticks if first <= tick <= last]
        if len(chosen) <= 7:
            break
    return chosen if len(chosen) > 1 else [chosen[0], chosen[0] * 10]


def _scale(ticks: Sequence[float], start: float, end: float) -> Callable[[float], float]:
    first, last = math.log10(ticks[0]), math.log10(ticks[-1])

    def place(value: float) -> float:
        return start + (math.log10(max(value, ticks[0])) - first) / (last - first) * (end - start)

    return place


def _short(value: float) -> str:
    if value >= 1000:
        return f"{value / 1000:g}k"
    return f"{value:g}"


def _value(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


# Files


def write_pictures(figures: Figures, directory: Path, stem: str) -> list[str]:
    """The SVG files, beside each its PNG; the names of the first."""
    directory.mkdir(parents=True, exist_ok=True)
    convert = shutil.which("rsvg-convert")
    if convert is None:
        say("no rsvg-convert here (package librsvg2-bin), so there are no PNGs, only SVGs")
    names = []
    for name, svg in draw(figures).items():
        path = directory / f"{stem}-{name}.svg"
        path.write_text(svg)
        names.append(path.name)
        if convert is not None:
            command = [convert, "--zoom", PNG_ZOOM, "--output", str(path.with_suffix(".png")), str(path)]
            done = subprocess.run(command, capture_output=True, text=True, timeout=CONVERT_TIMEOUT_S, check=False)
            if done.returncode != 0:
                say(f"{path.name}: {done.stderr.strip()}")
    return names
