"""How long traffic stops when a path fails, how it comes back, and what ways through others and probes cost.

Whole daemons in labs of their own. What is done to a pair of hosts is in `bench/outage.py`, what two behind NATs do in
`bench/punching.py`, TCP through one in `bench/hop.py`, silence in `bench/quiet.py`; here is the order of things, and
what the figures are held against. The one idea needed to read it: each failure is a new one for its pair of hosts,
because a path that failed a moment ago is trusted again later, and would tell of that instead.
"""

from __future__ import annotations

import argparse
import itertools
import os
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any

from bench import hop, outage, punching, quiet
from bench.harness import Result, say
from bench.outage import RELAY, Pair
from bench.underlay import sweep
from bench.verdicts import fill
from mesh.lab import Lab
from mesh.namespaces import LabError, need_root_and_tools

VXLAN, SLEEVE = "vxlan", "sleeve"
PAIRS_OF_HOSTS_MIN, HOSTS_MAX = 4, 7
"""Two who use others need two others; with more hosts than that this machine measures itself."""
TCP_ROUNDS_FACTOR = 2
"""Streams vary more than clocks."""
QUIET_HOSTS = 10
DOWN_TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True)
class Failure:
    """Something that happens to a pair of hosts, and may be undone."""

    best: str
    """The path that they have before, and should have again."""
    sealed: bool
    destroy: Callable[[Pair], None]
    lasts: bool = False
    """Whether it goes on for a while: tries to leave a way through others become rarer the longer it is needed."""


FAILURES = {
    "vxlan-one-way": Failure(VXLAN, False, lambda pair: outage.shut_port(pair, quiet.PORTS[VXLAN], both=False)),
    "vxlan": Failure(VXLAN, False, lambda pair: outage.shut_port(pair, quiet.PORTS[VXLAN], both=True)),
    "datagrams": Failure(VXLAN, False, lambda pair: pair.lab.cut_datagrams(*pair.hosts)),
    "sleeve": Failure(SLEEVE, True, lambda pair: pair.lab.cut_datagrams(*pair.hosts), lasts=True),
}
RELAY_DIES, RELAY_TCP, PUNCHING, PROBES = "relay-dies", "relay-tcp", "punching", "probes"
MEASURES = (*FAILURES, RELAY_DIES, RELAY_TCP, PUNCHING, PROBES)


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do, and how often."""

    measures: Sequence[str] = MEASURES
    rounds: int = 3
    seconds: int = 2
    """Of a stream."""

    def __post_init__(self) -> None:
        for word in self.measures:
            if word not in MEASURES:
                raise LabError(f"{word!r} is none of {', '.join(MEASURES)}")

    @classmethod
    def asked(cls, args: argparse.Namespace) -> Plan:
        """From the command line, where what was not given is as usual."""
        given = {"measures": args.measures, "rounds": args.rounds, "seconds": args.seconds}
        return cls(**{key: value for key, value in given.items() if value})

    def of(self, *names: str) -> list[str]:
        return [name for name in names if name in self.measures]


def run(plan: Plan | None = None) -> Result:
    """One lab after the other, each with what needs one of its kind."""
    plan = plan or Plan()
    need_root_and_tools()
    for name in sweep():
        say(f"removed {name}, left by a bench that was killed")
    result = Result("paths", "When paths fail, and when they work again", method(plan), ())
    result.figures = {"rounds": plan.rounds, "failures": []}
    clear = plan.of(*(name for name, failure in FAILURES.items() if not failure.sealed))
    sealed = plan.of(*(name for name, failure in FAILURES.items() if failure.sealed), RELAY_DIES)
    steps: list[tuple[list[str], Callable[[], None]]] = [
        (clear, lambda: _fail_all(clear, plan, result.figures, sealed=False)),
        (sealed, lambda: _fail_all(sealed, plan, result.figures, sealed=True)),
        (plan.of(RELAY_TCP), lambda: _stream(plan, result.figures)),
        (plan.of(PUNCHING), lambda: _meet(plan, result.figures)),
        (plan.of(PROBES), lambda: _be_quiet(result.figures)),
    ]
    for names, step in steps:
        if names:
            start = time.monotonic()
            _attempt(result.figures, ", ".join(names), step)
            say(f"[{', '.join(names)}] {time.monotonic() - start:.0f} s")
    fill(result)
    return result


def method(plan: Plan) -> str:
    """For a reader who doubts it."""
    return (
        f"Whole daemons in network namespaces that share one machine. {plan.rounds} rounds of each failure, every one "
        "on another pair of hosts while there are any to which nothing has happened yet. A container pings another one "
        f"every {outage.INTERVAL_S * 1e3:g} ms; time without traffic is the longest time between two answers as they "
        "arrived. Datagrams are dropped in the hub; control links stay. A way is opened again once pings are answered "
        f"steadily, that of the sleeve at different moments from {outage.DETOUR_S:g} s on, when tries to return are "
        "rarest. The return is over when both daemons have the best path in their history; lost are pings "
        f"unanswered from {outage.LEAD_S:g} s before until {outage.TAIL_S:g} s after. A relay dies by SIGKILL, daemon "
        f"and worker at once. TCP is iperf3 with cubic for {plan.seconds} s, straight and through one host in turns on "
        "the same three hosts, encrypted, the hub handing packets on whole; the ratio is the median of the rounds'. "
        "Two behind NATs: both have dialled a third host; time runs from the return of `weft launch` of the second one "
        "(`attach` of its container follows at once) until the first answer to a ping that the first one's container "
        "has been sending it every 10 ms since before. That answer may come through the third host; direct is when "
        "both use each other's address. "
        f"Probes: UDP {' and '.join(map(str, quiet.PORTS.values()))} as counted in the hub of {QUIET_HOSTS} hosts at "
        f"rest for {quiet.WATCH_S:g} s, Ethernet headers included. Of {quiet.MANY_HOSTS} hosts, VXLAN's are computed "
        "by the real pacing under a virtual clock, and the sleeve's are the measured ones of a link times the most "
        "links that a host wants."
    )


def _attempt(figures: dict[str, Any], what: str, step: Callable[[], None]) -> bool:
    """Whether it came to its end; the rest is measured all the same."""
    try:
        step()
    except LabError as error:
        figures["failures"].append(f"{what}: {error}")
        say(f"[{what}] {error}")
        return False
    return True


def _lab(tag: str, hosts: int) -> AbstractContextManager[Lab]:
    return Lab(f"wb{os.getpid()}{tag}", hosts=hosts, containers=1)


def _password(lab: Lab) -> list[str]:
    path = lab.directory / "password"
    path.touch(mode=0o600)
    path.write_text("a password of the bench alone\n")
    return ["--password-file", str(path)]


# Failures of pairs


def hosts_for(pairs: int) -> int:
    """How many hosts have so many pairs; where that is too many, pairs are used again."""
    hosts = PAIRS_OF_HOSTS_MIN
    while hosts < HOSTS_MAX and hosts * (hosts - 1) // 2 < pairs:
        hosts += 1
    return hosts


def _fail_all(names: Sequence[str], plan: Plan, figures: dict[str, Any], *, sealed: bool) -> None:
    with _lab("sealed" if sealed else "clear", hosts_for(plan.rounds * len(names))) as lab:
        say(f"[{', '.join(names)}] building {lab.hosts} hosts")
        flags = _password(lab) if sealed else []
        lab.up(flags)
        outage.allow_shutting(lab)
        pairs = itertools.cycle(outage.pairs(lab))
        for number in range(plan.rounds):
            for name in names:
                dwell_s = outage.dwell_s(number, plan.rounds)
                what = f"{name}, round {number + 1} of {plan.rounds}"
                pair = next(pairs)
                taken = figures.setdefault(name, [])

                step = partial(_round, name, pair, flags, dwell_s, taken)
                if not _attempt(figures, what, step):
                    _mend(lab)
                    continue
                say(f"[{what}] {brief(taken[-1])}")


def _round(name: str, pair: Pair, flags: list[str], dwell_s: float, taken: list[dict[str, Any]]) -> None:
    if name == RELAY_DIES:
        taken.append(_kill_relay(pair, flags))
    else:
        failure = FAILURES[name]
        taken.append(_fail(pair, failure, dwell_s if failure.lasts else 0.0))


def _mend(lab: Lab) -> None:
    lab.heal()
    outage.open_ports(lab)


def _fail(pair: Pair, failure: Failure, dwell_s: float) -> dict[str, Any]:
    pair.make_ready(failure.best)
    start = time.monotonic()
    failed = outage.fail(pair, lambda: failure.destroy(pair))
    time.sleep(max(0.0, dwell_s - (time.monotonic() - start)))
    back = outage.heal(pair, lambda: _mend(pair.lab), failure.best)
    return {"outage": outage.plain(failed), "return": outage.plain(back)}


def _kill_relay(pair: Pair, flags: list[str]) -> dict[str, Any]:
    """Of the two through others, the one whose container pings loses its first hop; which is launched again."""
    lab = pair.lab
    pair.make_ready(SLEEVE)
    lab.cut_datagrams(*pair.hosts)
    pair.make_ready(RELAY)
    relay = pair.ends()[0]["via"][0]
    failed = outage.fail(pair, outage.killer(lab, relay))
    lab.launch(relay, flags)
    _mend(lab)
    lab.wait_connected(DOWN_TIMEOUT_S)
    return {"outage": outage.plain(failed), "killed": relay}


def brief(found: dict[str, Any]) -> str:
    """One round on one line of progress."""
    failed, back = found["outage"], found.get("return")
    said = f"{failed['pair']}: nothing for {failed['gap_s']:.2f} s"
    if back is None:
        return f"{said} after {found['killed']} was killed"
    took = "not back" if back["took_s"] is None else f"back after {back['took_s']:.2f} s"
    return f"{said}, {took}, {back['lost']} lost by that"


# The other measures


def _stream(plan: Plan, figures: dict[str, Any]) -> None:
    with _lab("tcp", 3) as lab:
        lab.up(_password(lab))
        figures[RELAY_TCP] = hop.measure(lab, plan.rounds * TCP_ROUNDS_FACTOR, plan.seconds)


def _meet(plan: Plan, figures: dict[str, Any]) -> None:
    with _lab("nat", punching.OTHERS + plan.rounds) as lab:
        say(f"[{PUNCHING}] building {lab.hosts} hosts")
        flags = _password(lab)
        punching.prepare(lab, flags)
        met = figures.setdefault(PUNCHING, [])
        for number in range(plan.rounds):
            found = punching.plain(punching.meet(lab, f"h{punching.OTHERS + number + 1}", flags))
            met.append(found)
            direct = "never direct" if found["direct_s"] is None else f"direct after {found['direct_s']:.2f} s"
            say(f"[{PUNCHING}] round {number + 1}: answered {found['answered_s']:.2f} s after launch, {direct}")


def _be_quiet(figures: dict[str, Any]) -> None:
    with _lab("quiet", QUIET_HOSTS) as lab:
        say(f"[{PROBES}] building {lab.hosts} hosts")
        lab.up()
        seen = quiet.watch(lab)
    figures[PROBES] = quiet.figures(seen)
