"""A whole network of real nodes under a virtual clock: one seed replays everything.

Hosts, wires and faults are made up; the nodes, their signatures and their messages are the real ones. Links run at
message level (the cipher has tests of its own). A wire is what TCP is to a program: bytes arrive in order or not at
all, a blocked direction only delays, and a dead host is silent.

After every step the invariants of `_check_safety` hold; after healing and a bounded time those of `check_liveness`.
`python -m gossip.sim --seed 7` runs one scenario and prints a digest of its trace, equal for equal seeds.
"""

from __future__ import annotations

import argparse
import hashlib
import heapq
import sys
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from random import Random

from gossip.documents import PageId
from gossip.events import (
    CloseLink,
    Dial,
    DialKey,
    NameConflict,
    NameContested,
    Outcome,
    OwnerForgotten,
    PageChanged,
    Send,
    StoreEpoch,
)
from gossip.identity import Identity
from gossip.names import PeerName
from gossip.node import LINKS_HARD_MAX, Node, NodeConfig
from gossip.peers import LIVE, PeerRecord
from gossip.routes import links_wanted
from gossip.wire import PageMessage, decode_untrusted

DIAL_TIMEOUT_S = 3.0
DETECTION_LIMIT_S = 5.0
"""A host that dies in a healthy network is out of reach for all others within this time."""
HEALING_LIMIT_S = 90.0
TRACE_TAIL = 20


class SimulationFailed(AssertionError):
    """An invariant was broken. The message names seed, time, what broke, the last steps, and how to see it again."""


@dataclass(slots=True)
class _Host:
    index: int
    identity: Identity
    targets: list[str]
    epoch: int = 0
    """What is on this host's disk; rises before every start."""
    node: Node | None = None
    life: int = 0
    """Counts starts, so that timers of an earlier life are ignored."""
    clock_rate: float = 1.0
    timer_at: float | None = None
    wires: dict[int, _Wire] = field(default_factory=dict)
    pages: dict[tuple[str, int], bytes] = field(default_factory=dict)
    """What the application on this host publishes; on disk too."""
    stamps: dict[PageId, tuple[int, int, bytes]] = field(default_factory=dict)

    @property
    def address(self) -> str:
        return f"10.0.0.{self.index}:6783"


@dataclass(slots=True)
class _Wire:
    """One TCP connection as its two ends see it."""

    id: int
    """Even. The dialler knows this wire as link `id`, the listener as link `id + 1`: they may be one host."""
    hosts: tuple[int, int]
    """Host indexes: dialler, listener."""
    latency_s: float
    queues: tuple[deque[bytes | None], deque[bytes | None]] = field(default_factory=lambda: (deque(), deque()))
    """By receiving end: what waits for a blocked direction to open; None is the end of the stream."""
    open_at: set[int] = field(default_factory=lambda: {0, 1})
    """Ends that are still open."""


class Simulation:
    """Hosts, wires, a clock and a seed."""

    def __init__(self, seed: int, hosts: int, config: NodeConfig | None = None) -> None:
        self.seed = seed
        self.rng = Random(seed)
        self.now = 0.0
        self.config = config or NodeConfig()
        self.hosts: dict[int, _Host] = {}
        self.blocked: set[tuple[int, int]] = set()
        self.page_messages = 0
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._counter = 0
        self._trace = hashlib.sha256()
        self._tail: deque[str] = deque(maxlen=TRACE_TAIL)
        self._published: dict[tuple[PageId, int, int], bytes] = {}
        for index in range(1, hosts + 1):
            rate = 1.0 + self.rng.uniform(-5e-4, 5e-4)
            self.hosts[index] = _Host(index, self._new_identity(), [], clock_rate=rate)

    # -- hosts -------------------------------------------------------------------------------------

    def start(self, index: int, fresh: bool = False) -> None:
        """Start a host's daemon; `fresh` is a host whose disk was lost."""
        host = self.hosts[index]
        assert host.node is None
        if fresh:
            host.identity, host.epoch, host.pages = self._new_identity(), 0, {}
        host.epoch += 1
        host.life += 1
        host.stamps = {}
        record = PeerRecord(f"h{index}", self.rng.randbytes(16), LIVE, "sim", (host.address,), {})
        rng = Random(self.rng.getrandbits(64))
        host.node = Node(host.identity, record, host.epoch, self.config, rng, self._local(host))
        self._log(f"h{index} starts{' with an empty disk' if fresh else ''}")
        for (table, page), body in sorted(host.pages.items()):
            self._perform(host, host.node.publish(table, page, body, self._local(host)))
        self._perform(host, host.node.connect(list(host.targets), self._local(host)))

    def crash(self, index: int, power: bool) -> None:
        """End a daemon without a word. Without `power` loss its kernel still closes the connections."""
        host = self.hosts[index]
        assert host.node is not None
        self._log(f"h{index} {'loses power' if power else 'is killed'}")
        host.node = None
        for link, wire in sorted(host.wires.items()):
            wire.open_at.discard(link - wire.id)
            if not power:
                self._transmit(wire, link - wire.id, None)
        host.wires = {}

    def stop(self, index: int, gone: bool = False) -> None:
        host = self.hosts[index]
        assert host.node is not None
        self._log(f"h{index} {'is removed' if gone else 'is stopped'}")
        self._perform(host, host.node.leave(gone, self._local(host)))
        host.node, host.wires = None, {}

    def publish(self, index: int, page: int, body: bytes) -> None:
        host = self.hosts[index]
        assert host.node is not None
        host.pages[("rows", page)] = body
        self._perform(host, host.node.publish("rows", page, body, self._local(host)))

    def block(self, source: int, target: int) -> None:
        """From now on nothing that `source` sends reaches `target`."""
        self.blocked.add((source, target))
        self._log(f"h{source} is no longer heard by h{target}")

    def partition(self, side: set[int]) -> None:
        for a in sorted(side):
            for b in sorted(set(self.hosts) - side):
                self.blocked |= {(a, b), (b, a)}
        self._log(f"hosts {sorted(side)} are cut off")

    def heal(self) -> None:
        self._log("the network heals")
        self.blocked.clear()
        wires = {wire.id: wire for host in self.hosts.values() for wire in host.wires.values()}
        for _, wire in sorted(wires.items()):
            for receiver in (0, 1):
                waiting = list(wire.queues[receiver])
                wire.queues[receiver].clear()
                for data in waiting:
                    self._transmit(wire, 1 - receiver, data)

    # -- the clock ---------------------------------------------------------------------------------

    def run_for(self, seconds: float) -> None:
        """Let this much virtual time pass."""
        end = self.now + seconds
        while self._queue and self._queue[0][0] <= end:
            self.now, _, action = heapq.heappop(self._queue)
            action()
        self.now = end

    def at(self, delay_s: float, action: Callable[[], None]) -> None:
        self._counter += 1
        heapq.heappush(self._queue, (self.now + delay_s, self._counter, action))

    def _local(self, host: _Host) -> float:
        """This host's own clock: it drifts, and does not begin at nought."""
        return 1000.0 * host.index + self.now * host.clock_rate

    # -- what nodes ask for ------------------------------------------------------------------------

    def _perform(self, host: _Host, outcomes: list[Outcome]) -> None:
        for outcome in outcomes:
            match outcome:
                case Send(link, data):
                    self._send(host, link, data)
                case CloseLink(link, _):
                    self._close(host, link)
                case Dial(key, addresses):
                    self._dial(host, key, addresses)
                case StoreEpoch(epoch):
                    host.epoch = max(host.epoch, epoch)
                    self.at(0.01, self._for_life(host, partial(_epoch_stored, epoch)))
                case OwnerForgotten(owner):
                    host.stamps = {page_id: stamp for page_id, stamp in host.stamps.items() if page_id[0] != owner}
                case _:
                    self._log(f"h{host.index} {outcome}")
        self._check_safety(host, outcomes)
        self._arm(host)

    def _arm(self, host: _Host) -> None:
        if host.node is None:
            return
        due = host.node.next_timeout()
        if due is None:
            return
        at = max(self.now, (due - 1000.0 * host.index) / host.clock_rate)
        if host.timer_at is not None and self.now < host.timer_at <= at:
            return
        host.timer_at = at
        action = self._for_life(host, lambda node, now: node.handle_timeout(now))

        def fire() -> None:
            if host.timer_at is not None and host.timer_at <= self.now:
                host.timer_at = None
            action()

        self.at(at - self.now + 1e-6, fire)

    def _for_life(self, host: _Host, call: Callable[[Node, float], list[Outcome]]) -> Callable[[], None]:
        life = host.life

        def action() -> None:
            if host.node is not None and host.life == life:
                self._perform(host, call(host.node, self._local(host)))

        return action

    def _dial(self, host: _Host, key: DialKey, addresses: tuple[str, ...]) -> None:
        target = next((other for other in self.hosts.values() if other.address in addresses), None)
        ways = {(host.index, target.index), (target.index, host.index)} if target else set()
        life = host.life

        def failed(error: str) -> Callable[[], None]:
            return self._for_life(host, lambda node, now: node.dial_failed(key, error, now))

        if target is None or ways & self.blocked:
            self.at(DIAL_TIMEOUT_S, failed("timed out"))
            return
        latency = self.rng.uniform(0.001, 0.05)

        def connected() -> None:
            if host.node is None or host.life != life:
                return
            if target.node is None or ways & self.blocked:
                failed("connection refused")()
                return
            self._counter += 1
            wire = _Wire(2 * self._counter, (host.index, target.index), latency)
            handshake_hash = self.rng.randbytes(32)
            for end, (at, remote) in enumerate(((host, target.address), (target, f"10.0.0.{host.index}:1"))):
                at.wires[wire.id + end] = wire
                assert at.node is not None
                dial_key = key if end == 0 else None
                now = self._local(at)
                self._perform(at, at.node.link_up(wire.id + end, end == 0, handshake_hash, remote, dial_key, now))

        self.at(2 * latency, connected)

    # -- wires -------------------------------------------------------------------------------------

    def _send(self, host: _Host, link: int, data: bytes) -> None:
        wire = host.wires.get(link)
        if wire is None:
            return
        message = decode_untrusted(data)
        if isinstance(message, PageMessage):
            self.page_messages += 1
        self._trace.update(f"{self.now:.6f} {host.index} {link} ".encode() + data)
        self._transmit(wire, link - wire.id, data)

    def _close(self, host: _Host, link: int) -> None:
        wire = host.wires.pop(link, None)
        if wire is not None:
            wire.open_at.discard(link - wire.id)
            self._transmit(wire, link - wire.id, None)

    def _transmit(self, wire: _Wire, sender: int, data: bytes | None) -> None:
        receiver = 1 - sender
        if (wire.hosts[sender], wire.hosts[receiver]) in self.blocked or wire.queues[receiver]:
            wire.queues[receiver].append(data)
        else:
            self.at(wire.latency_s, lambda: self._arrive(wire, receiver, data))

    def _arrive(self, wire: _Wire, receiver: int, data: bytes | None) -> None:
        host, link = self.hosts[wire.hosts[receiver]], wire.id + receiver
        if host.node is None or receiver not in wire.open_at or link not in host.wires:
            return
        now = self._local(host)
        if data is not None:
            self._perform(host, host.node.receive(link, data, now))
            return
        del host.wires[link]
        wire.open_at.discard(receiver)
        self._perform(host, host.node.link_down(link, "closed by the other side", now))

    # -- invariants --------------------------------------------------------------------------------

    def _check_safety(self, host: _Host, outcomes: list[Outcome]) -> None:
        node = host.node
        if node is None:
            return
        for outcome in outcomes:
            if isinstance(outcome, PageChanged):
                self._check_page(host, node, (outcome.owner, outcome.table, outcome.index))
            elif isinstance(outcome, NameConflict | NameContested):
                self.fail(f"h{host.index}: hears of another host with its key, and there is none: {outcome.text}")
        for page in node.replica.store.pages_of(node.name):
            self._published[(page.id, page.epoch, page.version)] = page.body
        peers = [link.peer for link in node.links()]
        if len(peers) != len(set(peers)) or len(peers) > LINKS_HARD_MAX or node.name in peers:
            self.fail(f"h{host.index}: impossible links {peers}")
        if node.name in node.replica.reachable:
            self.fail(f"h{host.index}: reaches itself through others")

    def _check_page(self, host: _Host, node: Node, page_id: PageId) -> None:
        page = node.replica.store.get(page_id)
        assert page is not None
        before = host.stamps.get(page_id)
        if before is not None and before > page.stamp:
            self.fail(f"h{host.index}: page {page.table}/{page.index} went back to an older version")
        if self._published.get((page_id, page.epoch, page.version)) != page.body:
            self.fail(f"h{host.index}: holds a page that its owner never wrote")
        host.stamps[page_id] = page.stamp

    def check_liveness(self) -> None:
        """After healing: everybody agrees, everybody is in reach, links are few, and the network is silent."""
        live = {host.identity.name: host for host in self.hosts.values() if host.node is not None}
        roots = {host.node.replica.store.root_digest() for host in live.values() if host.node is not None}
        if len(roots) > 1:
            self.fail(f"stores differ after healing: {self._differences()}")
        _, high = links_wanted(len(live))
        for name, host in sorted(live.items()):
            node = host.node
            assert node is not None
            if node.replica.reachable != frozenset(live) - {name}:
                self.fail(f"h{host.index} reaches {len(node.replica.reachable)} of {len(live) - 1} live peers")
            for link in node.links():
                other = live[link.peer].node
                assert other is not None
                if name not in [back.peer for back in other.links()]:
                    self.fail(f"h{host.index} has a link that the other side does not have")
            if len(node.links()) > high:
                self.fail(f"h{host.index} has {len(node.links())} links, more than {high}")
            if len(live) > 1 and not node.settled:
                self.fail(f"h{host.index} never settled")
            if node.conflict is not None:
                self.fail(f"h{host.index} gave up its name")
            for (table, index), body in host.pages.items():
                page = node.replica.store.get((name, table, index))
                if page is None or page.body != body:
                    self.fail(f"h{host.index} lost its own page")
        before = self.page_messages
        self.run_for(10.0)
        if self.page_messages != before:
            self.fail(f"{self.page_messages - before} pages were sent in a network at rest")

    def _differences(self) -> list[str]:
        held: dict[PageId, dict[str, list[int]]] = {}
        for host in self.hosts.values():
            for owner in host.node.replica.store.owners() if host.node is not None else ():
                assert host.node is not None
                for page in host.node.replica.store.pages_of(owner):
                    versions = held.setdefault(page.id, {})
                    versions.setdefault(f"{page.epoch}.{page.version}", []).append(host.index)
        live = sum(host.node is not None for host in self.hosts.values())
        return [
            f"{owner.hex()}/{table}/{index}: {versions}"
            for (owner, table, index), versions in sorted(held.items())
            if len(versions) > 1 or sum(map(len, versions.values())) < live
        ]

    def fail(self, what: str) -> None:
        tail = "\n".join(f"    {line}" for line in self._tail)
        raise SimulationFailed(
            f"seed {self.seed}, at {self.now:.3f} s: {what}\n  last steps:\n{tail}\n"
            f"  replay: python -m gossip.sim --seed {self.seed}"
        )

    @property
    def trace_digest(self) -> str:
        """Equal for two runs that did exactly the same."""
        return self._trace.hexdigest()[:32]

    def _log(self, line: str) -> None:
        self._tail.append(f"{self.now:10.3f} {line}")
        self._trace.update(line.encode())

    def _new_identity(self) -> Identity:
        return Identity(self.rng.randbytes(32), self.rng.randbytes(32))


def _epoch_stored(epoch: int, node: Node, now: float) -> list[Outcome]:
    return node.epoch_stored(epoch, now)


# -- scenarios -------------------------------------------------------------------------------------


def run_scenario(seed: int) -> Simulation:
    """Random hosts, targets, changes and faults from one seed; heal; check. Raises `SimulationFailed`."""
    choose = Random(seed ^ 0x5EED)
    sim = Simulation(seed, hosts=choose.randint(3, 12))
    indexes = sorted(sim.hosts)
    for index in indexes:
        others = choose.sample(indexes, min(len(indexes), choose.randint(1, 3)))
        sim.hosts[index].targets = [sim.hosts[other].address for other in (*others, indexes[0])]
        sim.run_for(choose.uniform(0.0, 1.0))
        sim.start(index)
    sim.run_for(choose.uniform(0.0, 10.0))
    for _ in range(choose.randint(8, 16)):
        _one_fault(sim, choose)
        for _ in range(choose.randint(0, 4)):
            _one_change(sim, choose)
            sim.run_for(choose.uniform(0.0, 0.2))
        sim.run_for(choose.choice([0.05, 0.5, 2.0, 6.0]))
    sim.heal()
    for index in indexes:
        if sim.hosts[index].node is None:
            sim.start(index)
    sim.run_for(HEALING_LIMIT_S)
    sim.check_liveness()
    _check_detection(sim, choose)
    return sim


def _one_change(sim: Simulation, choose: Random) -> None:
    live = [index for index in sorted(sim.hosts) if sim.hosts[index].node is not None]
    if live:
        sim.publish(choose.choice(live), choose.randint(0, 3), choose.randbytes(choose.choice([1, 100, 4000])))


def _one_fault(sim: Simulation, choose: Random) -> None:
    indexes = sorted(sim.hosts)
    live = [index for index in indexes if sim.hosts[index].node is not None]
    dead = [index for index in indexes if sim.hosts[index].node is None]
    a, b = choose.sample(indexes, 2)
    fault = choose.choice(["block", "cut", "partition", "heal", "kill", "power", "stop", "start", "lost disk"])
    if fault == "block":
        sim.block(a, b)
    elif fault == "cut":
        sim.block(a, b)
        sim.block(b, a)
    elif fault == "partition":
        sim.partition(set(choose.sample(indexes, choose.randint(1, len(indexes) - 1))))
    elif fault == "heal":
        sim.heal()
    elif fault in ("kill", "power") and live:
        sim.crash(choose.choice(live), power=fault == "power")
    elif fault == "stop" and live:
        sim.stop(choose.choice(live))
    elif dead:
        sim.start(choose.choice(dead), fresh=fault == "lost disk")


def _check_detection(sim: Simulation, choose: Random) -> None:
    """A host that loses power is out of reach for all others in time; nobody else is accused."""
    victim = choose.choice(sorted(sim.hosts))
    name: PeerName = sim.hosts[victim].identity.name
    others = {host.identity.name for host in sim.hosts.values() if host.index != victim}
    sim.crash(victim, power=True)
    sim.run_for(DETECTION_LIMIT_S)
    for host in sim.hosts.values():
        if host.node is not None:
            if name in host.node.replica.reachable:
                sim.fail(f"h{host.index} still reaches h{victim}, dead for {DETECTION_LIMIT_S} s")
            if host.node.replica.reachable != frozenset(others - {host.identity.name}):
                sim.fail(f"h{host.index} accuses a live peer of the death of h{victim}")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m gossip.sim", description="Replay simulated networks by seed.")
    parser.add_argument("--seed", type=int, default=1, help="the first seed (default 1)")
    parser.add_argument("--seeds", type=int, default=1, help="how many seeds, one after the other (default 1)")
    options = parser.parse_args(arguments)
    failed = 0
    for seed in range(options.seed, options.seed + options.seeds):
        try:
            sim = run_scenario(seed)
        except SimulationFailed as failure:
            failed += 1
            print(failure, file=sys.stderr)
        else:
            print(f"seed {seed}: {len(sim.hosts)} hosts, {sim.now:.0f} s, trace {sim.trace_digest}", flush=True)
    print(f"{options.seeds - failed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
