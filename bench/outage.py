"""What becomes of traffic between two hosts when the way between them fails, and when it works again.

Knows labs, a ping every 10 ms, and what daemons tell of their paths; neither rounds nor aims. The one idea needed to
read it: how long nothing got through is taken from the answers alone, as they arrived; only when a path became another
one is what the daemons say, whose history has the moment.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

from bench.traffic import Pinger, Pings, ping
from dataplane.sleeve.whereabouts import RETURN_MAX_S as TRY_EVERY_S
from mesh.lab import Lab
from mesh.namespaces import LabError, wait_until

INTERVAL_S = 0.01
LEAD_S = 1.0
"""How long pings are answered before something happens to them."""
STEADY_S = 1.5
"""So long without a pause, and the outage is over."""
PAUSE_S = 0.3
SILENT_MAX_S = 20.0
"""Traffic that is not back by then is not waited for."""
RETURN_MAX_S = 30.0
TAIL_S = 1.0
LOOK_EVERY_S = 0.5
"""A look costs the machine two processes: often enough to go on in time, too seldom to disturb pings."""
READY_S = 15.0
DETOUR_S = 11.0
"""After so long on a way through others, tries to leave it are as rare as they ever get."""

RELAY = "relay"
_CUTTING = """\
table bridge benchcut {
 set ways { type ifname . ifname . inet_service; }
 chain forward {
  type filter hook forward priority 0; policy accept;
  iifname . oifname . udp dport @ways drop
 }
}
"""
"""In the hub, beside the lab's own table, which knows whole hosts and all datagrams only."""


@dataclass(frozen=True, slots=True)
class Turn:
    """A path became another one."""

    after_s: float
    """Since something was done to the wire."""
    host: str
    path: str
    reason: str
    via: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Outage:
    """What was seen of one failure."""

    pair: str
    gap_s: float
    lost: int
    turns: tuple[Turn, ...]


@dataclass(frozen=True, slots=True)
class Return:
    """What was seen when the best path worked again."""

    took_s: float | None
    """Until both hosts used it; None where they did not within `RETURN_MAX_S`."""
    lost: int
    duplicates: int
    turns: tuple[Turn, ...]


def plain(seen: Outage | Return) -> dict[str, Any]:
    """For the JSON."""
    return asdict(seen)


@dataclass(frozen=True, slots=True)
class Pair:
    """Two hosts of a lab, with a container on each."""

    lab: Lab
    one: str
    other: str

    @property
    def hosts(self) -> tuple[str, str]:
        return self.one, self.other

    def ping(self) -> Pinger:
        return Pinger(self.lab, f"c{self.one[1:]}.1", self._target, interval_s=INTERVAL_S)

    @property
    def _target(self) -> str:
        return self.lab.address(f"c{self.other[1:]}.1")

    def ends(self) -> list[dict[str, Any]]:
        """What each of the two says of its path to the other."""
        found = []
        for host, other in (self.hosts, self.hosts[::-1]):
            rows = self.lab.weft_json(host, "status", "connections")
            found += [row for row in rows if row["nickname"] == other]
        return found

    def is_by(self, path: str) -> bool:
        ends = self.ends()
        return len(ends) == 2 and all(row["path"] == path for row in ends)

    def make_ready(self, path: str) -> None:
        """Raises `LabError` where pings do not go by this path, both ways, within `READY_S`."""
        client = f"c{self.one[1:]}.1"
        wait_until(lambda: not ping(self.lab, client, self._target).lost, READY_S, f"{client} was answered")
        if not wait(lambda: self.is_by(path), READY_S):
            seen = ", ".join(f"{row['path']} ({row['reason']})" for row in self.ends())
            raise LabError(f"{self.one} and {self.other} should use {path}, and use {seen or 'nothing'}")

    def turns(self, since_s: float) -> tuple[Turn, ...]:
        """What has become of both paths since then (`time.time`), in order."""
        names = {row["nickname"]: row["peer"] for row in self.ends()}
        found = []
        for host, other in (self.hosts, self.hosts[::-1]):
            for row in self.lab.weft_json(host, "report")["history"]:
                if row["peer"] == names.get(other) and row["at"] >= since_s:
                    after_s = round(row["at"] - since_s, 3)
                    found.append(Turn(after_s, host, row["path"], row["reason"], tuple(row["via"])))
        return tuple(sorted(found, key=lambda turn: turn.after_s))


def wait(condition: Callable[[], bool], timeout_s: float, every_s: float = LOOK_EVERY_S) -> bool:
    """Look now and then until it holds, or time is over."""
    end_s = time.monotonic() + timeout_s
    while not (held := condition()) and time.monotonic() < end_s:
        time.sleep(every_s)
    return held


# Failing, and returning


def fail(pair: Pair, destroy: Callable[[], None]) -> Outage:
    """Ping while something is destroyed, until pings are answered steadily again."""
    pinger = pair.ping()
    time.sleep(LEAD_S)
    begun_s = time.time()
    destroy()
    _wait_steady(pinger, time.time())
    ended_s = time.time()
    pings = pinger.stop()
    gap_s = silence_s(pings, ended_s)
    return Outage(f"{pair.one}-{pair.other}", round(gap_s, 3), len(pings.lost), pair.turns(begun_s))


def _wait_steady(pinger: Pinger, since_s: float) -> None:
    steady_s = since_s + PAUSE_S  # what was on its way when it happened proves nothing
    while (now := time.time()) < since_s + SILENT_MAX_S and now - steady_s < STEADY_S:
        last_s = pinger.last_answer_s()
        if last_s is None or now - last_s > PAUSE_S:
            steady_s = now
        time.sleep(INTERVAL_S)


def heal(pair: Pair, mend: Callable[[], None], best: str) -> Return:
    """Ping while something is mended, until both hosts use the best path again and a little longer."""
    pinger = pair.ping()
    time.sleep(LEAD_S)
    begun_s = time.time()
    mend()
    is_back = wait(lambda: pair.is_by(best), RETURN_MAX_S)
    time.sleep(TAIL_S)
    pings = pinger.stop()
    turns = pair.turns(begun_s)
    took_s = returned_s(turns, best) if is_back else None
    return Return(took_s, len(pings.lost), pings.duplicates, turns)


def silence_s(pings: Pings, until_s: float) -> float:
    """The longest time in which no answer came, as of `until_s`: also one that is not over. Raises `LabError` where
    there was no answer at all, since nothing worked then that could fail."""
    came_s = [at_s for at_s in pings.answered_s if at_s < until_s]
    if not came_s:
        raise LabError("no ping was ever answered, so nothing can be said of a pause")
    return max(after - before for before, after in pairwise([*came_s, until_s]))


def returned_s(turns: Iterable[Turn], best: str) -> float | None:
    """When the last of the hosts had gone over to the best path; None where one of them left it again."""
    last = {turn.host: turn for turn in turns}
    if any(turn.path != best for turn in last.values()):
        return None
    return max((turn.after_s for turn in last.values()), default=0.0)


def dwell_s(number: int, rounds: int) -> float:
    """How long a way stays shut in that round. Tries to return are so far apart by then that it matters when between
    two of them it is opened, so rounds are spread evenly over that time."""
    return DETOUR_S + TRY_EVERY_S * (number + 0.5) / rounds


# What may be destroyed


def shut_port(pair: Pair, port: int, *, both: bool) -> None:
    """No datagram to that port from the one to the other, or both ways."""
    ways = [pair.hosts, pair.hosts[::-1]] if both else [pair.hosts]
    elements = ", ".join(f'"{source}" . "{sink}" . {port}' for source, sink in ways)
    pair.lab.run("hub", ["nft", "add", "element", "bridge", "benchcut", "ways", f"{{ {elements} }}"])


def allow_shutting(lab: Lab) -> None:
    """Once for a lab, before `shut_port`."""
    lab.run("hub", ["nft", "-f", "-"], stdin=_CUTTING)


def open_ports(lab: Lab) -> None:
    lab.run("hub", ["nft", "flush", "set", "bridge", "benchcut", "ways"])


def killer(lab: Lab, host: str) -> Callable[[], None]:
    """What kills a host's daemon and worker at once."""
    pids = [lab.daemon_pid(host), lab.weft_json(host, "report")["counters"]["sleeve"]["pid"]]
    if None in pids:
        raise LabError(f"{host} has no daemon or no worker that could be killed")

    def kill() -> None:
        for pid in pids:
            os.kill(int(pid), signal.SIGKILL)

    return kill


def pairs(lab: Lab) -> list[Pair]:
    """Every pair of hosts once, with neighbours in the list as different as may be."""
    nodes = lab.host_nodes()
    steps: Sequence[int] = range(1, len(nodes))
    return [Pair(lab, nodes[at], nodes[at + step]) for step in steps for at in range(len(nodes) - step)]
