"""Asks peers whether VXLAN reaches them, and answers those who ask, on the VXLAN devices themselves.

What is sent here passes the forwarding table by, so a peer whose frames go by the sleeve is probed all the same. The
shell around `VxlanHealth`: a socket, a clock, a timer and a look each second at whom frames go to, for each device. A
device sends to addresses of one IP version and an answer comes back on the device that asked, so each has a mind of its
own, and what is found of a peer is found of its address of that version. What arrives for whoever measures paths is
handed on. Knows nothing of what a verdict is used for.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from functools import partial
from random import Random

from dataplane import probe
from dataplane.linux.packet import open_probe_socket
from gossip.names import PeerName
from mesh.endpoints import bridge_mac
from mesh.framesocket import FrameSocket
from mesh.vxlanhealth import Ask, VxlanHealth

LOOK_INTERVAL_S = 1.0
"""Between two looks at whom frames go to: a pair that begins to talk is asked so soon."""
TIMER_SLACK_S = 0.005
"""Probes that are due so close together share one waking."""
LINGER_S = 1.5
"""A peer out of reach that was heard so lately by one device is alive: its silence on the other one means something.
More than an interval between probes, less than silence on both takes to be found."""

Faults = Mapping[int, Mapping[PeerName, str]]
"""By IP version, the peers that VXLAN does not reach there, and how."""


class Probers:
    """A prober for each IP version, and what needs both.

    When a host loses its addresses of one version, its links end too, and for a while nobody reaches it. As long as it
    answers over the other version it is asked over both, so that frames go over to the one that works."""

    def __init__(
        self,
        devices: Mapping[int, str],
        own_mac: bytes,
        rng: Random,
        silent: Faults,
        is_peer_mac: Callable[[int, bytes], bool],
        on_verdict: Callable[[], None],
        talked_to: Callable[[int], frozenset[PeerName] | None],
        on_size: Callable[[int, probe.Probe], None],
        on_doubt: Callable[[frozenset[PeerName]], None],
    ) -> None:
        """`devices` by IP version. `is_peer_mac` says whether that device has an entry for a MAC; `on_doubt` hears of
        those that left a question unanswered, before that means anything; for the rest see `Prober`."""
        self._on_doubt = on_doubt
        self.each = {
            version: Prober(
                device, own_mac, rng, silent.get(version, {}), partial(is_peer_mac, version), on_verdict,
                partial(talked_to, version), partial(on_size, version), self._let_go, partial(self._doubted, version),
            )
            for version, device in devices.items()
        }  # fmt: skip
        self._probed: Mapping[int, Collection[PeerName]] = {}
        self._sizes: Mapping[int, int] = {}
        self._lingering: frozenset[PeerName] = frozenset()

    @property
    def verdicts(self) -> Faults:
        return {version: prober.verdicts for version, prober in self.each.items()}

    @property
    def counters(self) -> Mapping[str, int]:
        total: Counter[str] = Counter()
        for prober in self.each.values():
            total.update(prober.counters)
        return total

    def rtt_s(self, peer: PeerName, version: int) -> float | None:
        return self.each[version].rtt_s(peer)

    def open(self) -> None:
        for prober in self.each.values():
            prober.open()

    def close(self) -> None:
        for prober in self.each.values():
            prober.close()

    def watch(
        self,
        probed: Mapping[int, Collection[PeerName]],
        lost: Collection[PeerName],
        sizes: Mapping[int, int],
        known: Collection[PeerName] | None,
    ) -> None:
        """Probe these, up to those sizes, by IP version. `lost` are out of reach, and have addresses of both; `known`,
        once all are: what was found of any other peer is forgotten."""
        self._probed, self._sizes = probed, sizes
        self._lingering = frozenset(filter(self._is_alive, lost))
        self._watch(known)

    def _watch(self, known: Collection[PeerName] | None) -> None:
        for version, prober in self.each.items():
            prober.watch({*self._probed[version], *self._lingering}, self._sizes[version], known)

    def _is_alive(self, peer: PeerName) -> bool:
        return any(prober.heard_s(peer) >= time.monotonic() - LINGER_S for prober in self.each.values())

    def _let_go(self) -> None:
        """Before silence is counted: that of a peer which has gone silent altogether is not."""
        alive = frozenset(filter(self._is_alive, self._lingering))
        if alive != self._lingering:
            self._lingering = alive
            self._watch(None)

    def _doubted(self, version: int, peers: frozenset[PeerName]) -> None:
        """Who may be silent there is asked over the other version at once: that is where frames would go, or else into
        the sleeve."""
        self._on_doubt(peers)
        for other, prober in self.each.items():
            if other != version:
                prober.check(peers)


class Prober:
    """A socket on one VXLAN device, re-opened when that is made anew."""

    def __init__(
        self,
        device: str,
        own_mac: bytes,
        rng: Random,
        silent: Mapping[PeerName, str],
        is_peer_mac: Callable[[bytes], bool],
        on_verdict: Callable[[], None],
        talked_to: Callable[[], frozenset[PeerName] | None],
        on_size: Callable[[probe.Probe], None],
        before_turn: Callable[[], None] = lambda: None,
        on_doubt: Callable[[frozenset[PeerName]], None] = lambda _: None,
    ) -> None:
        """`silent` are the verdicts of an earlier life; `on_verdict` is called when they have changed, `before_turn`
        before answers are missed, `on_doubt` when somebody has begun to miss questions. `talked_to` says whom frames
        went to lately (None: nobody knows); `on_size` takes probes that measure a path."""
        self.counters: dict[str, int] = {}
        self._health = VxlanHealth(rng, silent)
        self._own_mac = own_mac
        self._is_peer_mac = is_peer_mac
        self._on_verdict = on_verdict
        self._talked_to = talked_to
        self._on_size = on_size
        self._look_timer: asyncio.TimerHandle | None = None
        self._before_turn = before_turn
        self._on_doubt = on_doubt
        self._heard_s: dict[bytes, float] = {}
        self._peers: dict[bytes, PeerName] = {}
        self._packet_bytes = 0
        self._timer: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()
        self._frames = FrameSocket(
            lambda: open_probe_socket(device), probe.MAX_FRAME_BYTES,
            lambda frame: self._received(probe.decode_untrusted(frame)), self._count, "probe", self._look, self._lost,
        )  # fmt: skip

    @property
    def verdicts(self) -> Mapping[PeerName, str]:
        """The peers that VXLAN does not reach, and how."""
        return self._health.verdicts

    def rtt_s(self, peer: PeerName) -> float | None:
        return self._health.rtt_s(peer)

    @property
    def is_listening(self) -> bool:
        return self._frames.is_open

    def heard_s(self, peer: PeerName) -> float:
        """When the peer last asked or answered here."""
        return self._heard_s.get(bridge_mac(peer), float("-inf"))

    def open(self) -> None:
        """Listen on the device; where it is not there (yet), the next call tries again."""
        self._frames.open()

    def close(self) -> None:
        self._frames.close()
        for timer in (self._timer, self._look_timer):
            if timer is not None:
                timer.cancel()
        self._timer = self._look_timer = None

    def watch(self, peers: Collection[PeerName], packet_bytes: int, known: Collection[PeerName] | None) -> None:
        """Probe these, up to that size. `known`, once all are: what was found of any other peer is forgotten."""
        before = self._health.verdicts
        self._health.watch(peers, time.monotonic())
        if packet_bytes != self._packet_bytes:
            self._health.resize(time.monotonic())
        if known is not None:
            self._health.keep_only(known)
            macs = {*map(bridge_mac, known)}
            self._heard_s = {mac: heard_s for mac, heard_s in self._heard_s.items() if mac in macs}
        self._peers = {bridge_mac(peer): peer for peer in peers}
        self._packet_bytes = packet_bytes
        self._tell(before)
        self._set_timer()

    # -- asking ------------------------------------------------------------------------------------

    def _look(self) -> None:
        if self._look_timer is not None:
            self._look_timer.cancel()
        self._look_timer = self._loop.call_later(LOOK_INTERVAL_S, self._look)
        self._health.talk(self._talked_to(), time.monotonic())
        self._set_timer()

    def _set_timer(self) -> None:
        due_s = self._health.next_due()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if due_s is not None and self._frames.is_open:
            self._timer = self._loop.call_later(max(TIMER_SLACK_S, due_s - time.monotonic()), self._turn)

    def _turn(self) -> None:
        self._timer = None
        self._frames.read()  # an answer that waits behind a late timer is no miss
        self._before_turn()
        before = self._health.verdicts
        for ask in self._health.due(time.monotonic()):
            self._ask(ask)
        self._tell(before)
        self._set_timer()
        if doubted := self._health.doubted():
            self._on_doubt(doubted)

    def check(self, peers: Collection[PeerName]) -> None:
        """Ask these now."""
        self._health.check(peers, time.monotonic())
        self._set_timer()

    def _ask(self, ask: Ask) -> None:
        size = self._packet_bytes if ask.full_size else 0
        asked = probe.request(self._own_mac, bridge_mac(ask.peer), ask.nonce, size, probe.PATH_REQUEST)
        if not self._send(asked):
            self._health.abandon(time.monotonic(), [ask.peer])

    def _tell(self, before: Mapping[PeerName, str]) -> None:
        if self._health.verdicts is not before:
            self._on_verdict()

    # -- what is heard -----------------------------------------------------------------------------

    def _send(self, frame: probe.Probe) -> bool:
        return self._frames.send(probe.encode(frame))

    def _received(self, frame: probe.Probe | probe.Drop) -> None:
        if isinstance(frame, probe.Drop):
            self._count(frame.value)
        elif frame.kind in (probe.REQUEST, probe.REPLY):
            return  # on its way to the bridge, where somebody waits for it
        elif frame.destination != self._own_mac or not self._is_peer_mac(frame.source):
            self._count("probe-stranger")
        else:
            self._heard_s[frame.source] = time.monotonic()
            self._heard(frame)

    def _heard(self, frame: probe.Probe) -> None:
        if frame.kind in (probe.SIZE_REQUEST, probe.SIZE_REPLY):
            self._on_size(frame)
        elif frame.kind == probe.PATH_REQUEST:
            self._send(probe.reply(frame, self._own_mac))
        elif (peer := self._peers.get(frame.source)) is not None:
            before = self._health.verdicts
            self._health.answered(peer, frame.nonce, time.monotonic())
            self._tell(before)
            self._set_timer()

    def _lost(self) -> None:
        """Nothing can be asked until the device is there again, and nobody is to blame for what is under way."""
        self._health.abandon(time.monotonic())

    def _count(self, counter: str) -> None:
        self.counters[counter] = self.counters.get(counter, 0) + 1
