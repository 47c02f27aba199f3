"""Datagrams that go by a route: a step further for those of others, into the first hop for our own.

Knows neither keys nor why a route is taken. The one idea: what is passed on is an entry in a record like any frame, so
it is sealed, queued, cut and counted on every hop as frames are; and a hop must be reached without a route, so nothing
is ever wrapped twice. Together with routes that name every host once, nothing can go round.

Each hop adds what stands in its queue to what the datagram says; its end reports that to its origin as if it waited in
its own socket, so that what is under way keeps to what the slowest hop takes, and the queue stands at the origin, where
it is fair and where what it drops is not taken for loss.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence

from dataplane.sleeve.partner import Partner
from dataplane.sleeve.receiver import Frames
from dataplane.sleeve.routes import Route, is_sound
from dataplane.sleeve.sender import Send, Sender
from dataplane.sleeve.wire import RELAYED_MAX_BYTES, Relayed, encode_relayed
from gossip.names import PeerName


def own_flow(names: tuple[PeerName, ...]) -> Hashable:
    """What our own datagrams on a route are to the queue of its first hop."""
    return True, names[-1]


class Relay:
    """This host as a hop, and as the end of routes."""

    def __init__(
        self,
        name: PeerName,
        partners: Mapping[PeerName, Partner],
        sender: Sender,
        counters: dict[str, int],
        arrived: Callable[[memoryview, Route, float], Frames],
    ) -> None:
        """`arrived`: a datagram for us, and the route by which to answer it."""
        self.has_given = False
        """Something was put into a queue since this was last set back."""
        self._name = name
        self._partners = partners
        self._sender = sender
        self._counters = counters
        self._arrived = arrived

    def take_untrusted(self, source: Partner, relayed: Relayed, now: float) -> Frames:
        """A datagram that goes by a route, out of a record of `source`: the frames in it where it ends here."""
        names, at, waits_kib, datagram = relayed
        if not is_sound(names) or at < 1 or names[at] != self._name or names[at - 1] != source.peer.name:
            self._count("relayed-astray")
            return []
        if at == len(names) - 1:
            origin, route = self._partners.get(names[0]), Route(names).back()
            if origin is not None and origin.address == route:
                origin.waits_bytes = waits_kib << 10
            return self._arrived(datagram, route, now)
        self._give(names, at + 1, waits_kib, (datagram,))
        return []

    def by_route(self, sends: Iterator[Send]) -> Iterator[Send]:
        """Of what is to be sent, all that has a real address; the rest waits for its first hop from now on."""
        for buffers, segment, address in sends:
            if isinstance(address, Route):
                self._give(address, 1, 0, buffers)
            else:
                yield buffers, segment, address

    def _give(self, names: tuple[PeerName, ...], at: int, waits_kib: int, parts: Sequence[bytes | memoryview]) -> None:
        hop = self._partners.get(names[at])
        size = sum(map(len, parts))
        if hop is None or hop.is_relayed or size > RELAYED_MAX_BYTES:
            self._count("relayed-nowhere")
            return
        if at > 1:
            waits_kib += hop.queue.held_bytes >> 10
        # What is passed on shares by whom it came from: names at the ends of a route are as many as anybody makes up.
        flow = own_flow(names) if at == 1 else (False, names[at - 1])
        self._sender.pass_on(hop, encode_relayed(names, at, waits_kib, size), parts, flow)
        self.has_given = True
        self._count("relayed-datagrams")

    def _count(self, reason: str) -> None:
        self._counters[reason] = self._counters.get(reason, 0) + 1
