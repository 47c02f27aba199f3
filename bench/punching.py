"""How soon a host behind a NAT is reached by another host behind a NAT, which nobody can dial.

    c1.1 - h1 - [NAT] --+-- h2 (public)        h1 and h2 know each other; then h3 is launched, told of h2 only
    c3.1 - h3 - [NAT] --+

Knows labs, NATs and pings. The one idea needed to read it: the first frames may take the way through h2, so two moments
are told apart, the first answer by whatever way, and the first moment at which both hosts use each other's address.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import Any

from bench.nat import put_behind_nat
from bench.outage import RELAY, Pair, Turn, silence_s, wait
from bench.traffic import ping
from mesh.lab import Lab
from mesh.namespaces import LabError, wait_until

PORT = 6783
SLEEVE = "sleeve"
PUBLIC, FIRST = "h2", "h1"
OTHERS = 2
"""Hosts of the lab that no round launches."""
ANSWER_MAX_S = 15.0
DIRECT_MAX_S = 15.0
LOOK_EVERY_S = 0.1
BEFORE_S = 0.3
AFTER_S = 1.0


@dataclass(frozen=True, slots=True)
class Meeting:
    """One host behind a NAT, launched. Times are in seconds since `launch` had returned, where not said otherwise."""

    host: str
    launch_s: float
    """From the call of `launch` to its return."""
    attached_s: float
    """When `attach` of its container had returned."""
    answered_s: float | None
    """When the first answer reached the container of the other host."""
    direct_s: float | None
    """When both hosts were seen to use each other's address: looked up, so up to some tenths of a second late."""
    pause_s: float
    """The longest time without an answer after the first one."""
    turns: tuple[Turn, ...]


def plain(meeting: Meeting) -> dict[str, Any]:
    """For the JSON."""
    return asdict(meeting)


def prepare(lab: Lab, flags: list[str]) -> None:
    """Everybody but the public host behind a NAT of its own; that one and the first launched and talking."""
    lab.build()
    for host in range(1, lab.hosts + 1):
        if f"h{host}" != PUBLIC:
            put_behind_nat(lab, host)
    lab.launch(PUBLIC, flags)
    lab.launch(FIRST, [*flags, lab.underlay(2)])
    for container in ("c1.1", "c2.1"):
        lab.attach(container)
    wait_until(lambda: not ping(lab, "c2.1", lab.address("c1.1")).lost, ANSWER_MAX_S, "the first two heard each other")


def meet(lab: Lab, host: str, flags: list[str]) -> Meeting:
    """Launch this one and attach its container, which the first host's has been pinging since before."""
    pair = Pair(lab, FIRST, host)
    pinger = pair.ping()
    time.sleep(BEFORE_S)
    called_s = time.time()
    lab.launch(host, [*flags, lab.underlay(2)])
    returned_s = time.time()
    lab.attach(f"c{host[1:]}.1")
    attached_s = time.time()
    if not wait(lambda: pinger.last_answer_s() is not None, ANSWER_MAX_S, LOOK_EVERY_S):
        pinger.stop()
        raise LabError(f"{host} was launched and attached, and nothing was answered within {ANSWER_MAX_S:g} s")
    seen_s: list[float] = []

    def is_direct() -> bool:
        seen_s.append(time.time())
        return _is_direct(pair)

    is_met = wait(is_direct, DIRECT_MAX_S, LOOK_EVERY_S)
    time.sleep(AFTER_S)
    ended_s = time.time()
    pings = pinger.stop()
    turns = pair.turns(called_s)
    direct_s = _since_turns(turns, returned_s - called_s) if is_met else None
    return Meeting(
        host,
        round(returned_s - called_s, 3),
        round(attached_s - returned_s, 3),
        round(pings.answered_s[0] - returned_s, 3),
        direct_s if direct_s is not None or not is_met else round(seen_s[-1] - returned_s, 3),
        round(silence_s(pings, ended_s), 3),
        turns,
    )


def _is_direct(pair: Pair) -> bool:
    """Whether both use the address at which the other's NAT is seen."""
    wanted = [f"{pair.lab.underlay(100 + int(host[1:]))}:{PORT}" for host in pair.hosts[::-1]]
    return [row["address"] for row in pair.ends() if row["path"] == SLEEVE] == wanted


def _since_turns(turns: tuple[Turn, ...], launch_s: float) -> float | None:
    """The moment itself, where both hosts went from a way through others to the address; else it is not in them."""
    last = {turn.host: turn for turn in turns}
    if {turn.host for turn in turns if turn.path == RELAY} != last.keys():
        return None
    return round(max(turn.after_s for turn in last.values()) - launch_s, 3)
