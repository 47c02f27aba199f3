"""What is measured of one overlay: streams, datagrams, pings, what its processes cost.

Each measure takes one world and gives named figures; it knows nothing of which overlay that is, of rounds or of goals.
The one idea needed to read it: whatever has a cost is charged in the run that earns the throughput, and whatever waits
is timed in the run that makes it wait. So throughput and ping under four streams are of the same seconds.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bench.harness import percentile
from bench.processes import Meter, Usage
from bench.traffic import Datagrams, Pinger, Stream, ping
from bench.underlay import CLIENT, SERVER, World

PING_INTERVAL_S = 0.002
PINGS_PER_SECOND = 300
"""Of the length asked for: the rest is for those that answer late."""
LOADED_INTERVAL_S = 0.01
LOADED_LEAD_S = 0.3
LOADED_TAIL_S = 0.15
"""How long the streams run before the first ping that counts, and what iperf3 takes to tell of them afterwards."""
STREAMS = 4

DATAGRAM_BYTES = 64
LOST_MAX = 0.01
STEPS = 5
"""Of a bisection after the first, unlimited step: it ends within 5 % of the answer."""
STEPS_MAX = 9
"""Where every one of them lost too much it goes on downwards, but not for ever."""
STEP_S = 1
BRACKET = (0.5, 2.5)
"""Of what arrives when the sender sends all it can: overload costs an overlay something, but not everything."""

Figures = dict[str, float]


@dataclass(frozen=True, slots=True)
class Sample:
    """One run of one measure."""

    figures: Figures
    foreign: float = 0.0
    """The share of the processors that strangers took meanwhile."""


@dataclass(frozen=True, slots=True)
class Setting:
    """How long, and who is no stranger."""

    seconds: int
    ours: Sequence[str]
    """The namespaces of all worlds."""


Measure = Callable[[World, Setting], Sample]


def _metered(world: World, setting: Setting, run: Callable[[], Stream]) -> tuple[Stream, Usage]:
    meter = Meter([process.pid for process in world.processes()], setting.ours)
    stream = run()
    return stream, meter.read()


def _stream(world: World, setting: Setting, flags: Sequence[str]) -> tuple[Stream, Usage]:
    server, address = world.serve(), world.lab.address(SERVER)
    return _metered(world, setting, lambda: server.stream(CLIENT, address, setting.seconds, flags=flags))


def tcp1(world: World, setting: Setting) -> Sample:
    """One stream, and what a gigabyte of it costs."""
    stream, usage = _stream(world, setting, ["-i", "0"])
    gigabytes = max(1, stream.received_bytes) / 1e9
    figures = {
        "mbit_s": stream.mbit_s,
        "cpu_s_per_gb": usage.overlay_s / gigabytes,
        "machine_cpu_s_per_gb": usage.machine_s / gigabytes,
        "retransmits": float(stream.retransmits),
    }
    return Sample(figures, usage.foreign)


def reverse(world: World, setting: Setting) -> Sample:
    """One stream, from the server to the client."""
    stream, usage = _stream(world, setting, ["-R", "-i", "0"])
    return Sample({"mbit_s": stream.mbit_s}, usage.foreign)


def tcp4(world: World, setting: Setting) -> Sample:
    """Four streams, and a ping every 10 ms beside them."""
    server, address = world.serve(), world.lab.address(SERVER)
    pinger = Pinger(world.lab, CLIENT, address, interval_s=LOADED_INTERVAL_S)
    flags = ["-P", str(STREAMS), "-i", "0"]
    try:
        stream, usage = _metered(world, setting, lambda: server.stream(CLIENT, address, setting.seconds, flags=flags))
    finally:
        ended_s = time.time()
        seen = pinger.stop()
    # Only those sent while the streams ran at full speed; a ping sent before or after would tell of an idle path.
    first_s, last_s = ended_s - setting.seconds + LOADED_LEAD_S - LOADED_TAIL_S, ended_s - LOADED_TAIL_S
    times = [ms for number, ms in seen.times_ms.items() if first_s <= seen.sent_s[number] <= last_s]
    figures = {"mbit_s": stream.mbit_s, "pings": float(seen.sent), "pings_lost": float(len(seen.lost))}
    return Sample(figures | _waits(times), usage.foreign)


def idle_ping(world: World, setting: Setting) -> Sample:
    """A ping every 2 ms with nothing else on the way."""
    count = max(50, round(PINGS_PER_SECOND * setting.seconds))
    meter = Meter([], setting.ours)
    seen = ping(world.lab, CLIENT, world.lab.address(SERVER), count=count, interval_s=PING_INTERVAL_S)
    figures = {"pings": float(seen.sent), "pings_lost": float(len(seen.lost))}
    return Sample(figures | _waits(list(seen.times_ms.values())), meter.read().foreign)


def _waits(times_ms: Sequence[float]) -> Figures:
    if not times_ms:
        return {}
    return {"median_ms": statistics.median(times_ms), "p99_ms": percentile(times_ms, 99), "most_ms": max(times_ms)}


def udp(world: World, setting: Setting) -> Sample:
    """The highest rate of small packets of which fewer than one in a hundred are lost."""
    server, address = world.serve(), world.lab.address(SERVER)
    seconds = min(STEP_S, setting.seconds)

    def offer(pps: float) -> Datagrams:
        return server.datagrams(CLIENT, address, seconds, size=DATAGRAM_BYTES, pps=pps)

    meter = Meter([], setting.ours)
    found, offered, steps = highest_rate(offer)
    figures = {"pps": found, "offered_pps": offered, "steps": float(steps)}
    return Sample(figures, meter.read().foreign)


def highest_rate(offer: Callable[[float], Datagrams]) -> tuple[float, float, int]:
    """By bisection: packets a second that arrived at that rate, what the sender could offer at most, and the steps.

    The first step sends without a limit. Where nearly all of that arrives, the sender is the limit and not the path.
    """
    flood = offer(0)
    offered = flood.sent / flood.seconds
    if flood.lost < LOST_MAX:
        return flood.received / flood.seconds, offered, 1
    low, high = (share * flood.received / flood.seconds for share in BRACKET)
    high = min(high, offered)
    best, steps = 0.0, 1
    while steps <= STEPS or (not best and steps < STEPS_MAX):
        rate = (low * high) ** 0.5 if steps <= STEPS else high / 2
        seen = offer(rate)
        steps += 1
        if seen.lost < LOST_MAX:
            best = max(best, seen.received / seen.seconds)
            low = rate
        else:
            high = rate
    return best, offered, steps


def memory(world: World) -> list[dict[str, object]]:
    """Every process of the overlay, as it stands after all that load."""
    return [
        {"what": process.what, "rss_mb": round(process.rss_mb, 1), "peak_rss_mb": round(process.peak_rss_mb, 1)}
        for process in world.processes()
    ]


MEASURES: dict[str, Measure] = {"tcp1": tcp1, "reverse": reverse, "tcp4": tcp4, "ping": idle_ping, "udp": udp}
"""In the order in which a round takes them. Loss is `tcp1` with a switch that drops."""
