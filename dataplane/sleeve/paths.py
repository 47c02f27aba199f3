"""How partners are found and kept: where hellos go, which routes there are, what probes and their answers tell.

Holds what concerns all partners (the graph, where others see us); what concerns one is its `Whereabouts`. Makes notes
and reads them; sends nothing. The one idea: whoever answers a probe says where it came from, so each probe also tells
us where we are seen, and that is what two behind NATs tell each other to meet.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final

from dataplane.sleeve.keys import Keyring
from dataplane.sleeve.partner import Partner
from dataplane.sleeve.routes import Edges, Graph, Route, agreed, find_routes
from dataplane.sleeve.whereabouts import ROUTES_MAX, Address
from dataplane.sleeve.wire import NOTE_CALL, NOTE_PROBE, NOTE_PROOF, encode_note
from gossip.names import PeerName

ADDRESSES_TRIED_MAX: Final = 8
"""Of a peer's addresses, a handshake goes to so many at once."""
STRAIGHT_S: Final = 12.0
"""Who was not heard for so long is no hop for others: two askings of those who stay in contact, and a little."""
OWN_EVERY_S: Final = 0.5
ROUTES_KEPT_S: Final = 0.5
SALT_BYTES: Final = 8
SEEN_MAX: Final = 8
CALL_MAX: Final = 3
NOWHERE: Final = bytes(18)
"""In place of a packed address: the datagram came by a route."""


class Paths:
    """Of one worker."""

    def __init__(
        self,
        name: PeerName,
        partners: Mapping[PeerName, Partner],
        keyring: Keyring,
        resolve: Callable[[tuple[str, int]], Address | None],
        pack_address: Callable[[Address], bytes],
        unpack_address: Callable[[bytes], Address | None],
        own_address: Callable[[Address], bytes],
    ) -> None:
        """The functions are those that `Sleeve` is given."""
        self._name = name
        self._partners = partners
        self._keyring = keyring
        self._resolve = resolve
        self._pack_address = pack_address
        self._unpack_address = unpack_address
        self._own_address = own_address
        self._edges: Edges = {}
        self._straight: dict[PeerName, float] = {}
        """Those that are reached without help, as of `_straight_s`, and their round trips in ms."""
        self._straight_s = float("-inf")
        self._salt = 1
        self._seen: dict[bytes, None] = {}
        """Where others see us, packed, the newest last."""

    def set_graph(self, graph: Graph) -> None:
        self._edges = agreed(graph)
        for partner in self._partners.values():
            partner.routes_s = float("-inf")

    # Where to.

    def tell(self, partner: Partner) -> Sequence[Address]:
        """Take in what the daemon says of its addresses, resolved anew: an interface may have appeared since. Every
        address that may lead there."""
        found = (self._resolve(each) for each in partner.peer.addresses)
        partner.where.told = tuple(address for address in found if address is not None)
        return partner.where.straight()[:ADDRESSES_TRIED_MAX]

    def hello_to(self, partner: Partner, now: float) -> Sequence[Address]:
        """Where a hello is sent: by turns to every address where the peer may be, and by a route. Never both at once:
        a hello is answered once only, on the way that it came first, and that may lead in one direction only."""
        straight, routes = self.tell(partner), self.routes(partner, now)
        number, partner.hellos = partner.hellos, partner.hellos + 1
        if routes and (number % 2 or not straight):
            return (routes[number // 2 % len(routes)],)
        return straight

    def routes(self, partner: Partner, now: float) -> list[Route]:
        if now - partner.routes_s > ROUTES_KEPT_S:
            partner.routes_s = now
            if now - self._straight_s > ROUTES_KEPT_S:
                self._straight_s = now
                partners = self._partners.items()
                self._straight = {name: each.rtt_ms or 0.0 for name, each in partners if self._is_straight(each, now)}
            partner.routes = find_routes(self._edges, self._name, partner.peer.name, self._straight, ROUTES_MAX)
        return partner.routes

    def _is_straight(self, partner: Partner, now: float) -> bool:
        """Whether UDP passes between us, as far as was seen lately."""
        return (
            partner.address is not None
            and not partner.is_relayed
            and partner.heard_s is not None
            and now - partner.heard_s < STRAIGHT_S
            and partner.unanswered(now) < partner.where.patience_s
            and self._keyring.current(partner.peer.name) is not None
        )

    # Asking, and being asked.

    def probe(self, partner: Partner, address: Address, now: float) -> bytes:
        """A note to send there: whether it arrives, and its answer here."""
        salt = self._salt.to_bytes(SALT_BYTES, "big")
        self._salt += 1
        partner.where.asked(salt, address, now)
        if address == partner.address and partner.unanswered_s is None:
            partner.unanswered_s = now
        return encode_note(NOTE_PROBE, salt)

    def take_probe(self, partner: Partner, source: Address, body: bytes) -> bytes:
        """The answer to a probe, for where it came from."""
        partner.where.take_probe(source)
        return encode_note(NOTE_PROOF, body[:SALT_BYTES] + self.pack(source))

    def take_proof(self, partner: Partner, source: Address, body: bytes, now: float) -> Address | None:
        """An answer: the way there and back works. Comes back: where to go from now on, if that is better than where
        we go."""
        where = partner.where
        question = where.proven(body[:SALT_BYTES], source)
        if question is None:
            return None
        self.see(partner, body[SALT_BYTES:])
        better = question.address != where.address and where.is_better(question.address, partner.unanswered(now))
        if better or question.address == where.address:
            where.proven_s = now
            where.took(now - question.asked_s)
            partner.rtt_ms = (now - question.asked_s) * 1000
            partner.unanswered_s = None
        return question.address if better else None

    def call(self, partner: Partner) -> bytes:
        """A note for one whom only a route leads to: where we are seen, so that it can ask us there, as we ask it."""
        own = {self._own_address(address) for address in partner.where.told}
        seen = [each for each in reversed(self._seen) if each not in own]
        return encode_note(NOTE_CALL, b"".join(seen[:CALL_MAX]))

    def take_call(self, partner: Partner, body: bytes) -> None:
        size = len(NOWHERE)
        found = (self._unpack_address(body[at : at + size]) for at in range(0, len(body) - size + 1, size))
        partner.where.take_call([address for address in found if address is not None])

    def pack(self, source: Address) -> bytes:
        """Where a datagram came from, as its sender is told."""
        return NOWHERE if isinstance(source, Route) else self._pack_address(source)

    def see(self, partner: Partner, packed: bytes) -> None:
        """That partner sees us there."""
        if len(packed) != len(NOWHERE) or packed == NOWHERE:
            return
        partner.sees = packed
        self._seen.pop(packed, None)
        self._seen[packed] = None
        while len(self._seen) > SEEN_MAX:
            del self._seen[next(iter(self._seen))]

    # What lies between.

    def is_translated(self, partner: Partner) -> bool:
        """Whether it sees us elsewhere than we are, or is itself elsewhere than it says: a NAT, which forgets us when
        we are silent."""
        address = partner.address
        if address is None or isinstance(address, Route):
            return False
        if not partner.own:
            partner.own = self._own_address(address)
        elsewhere = bool(partner.sees) and partner.sees != partner.own
        return elsewhere or address not in partner.where.told

    def has_moved(self, partner: Partner, now: float) -> bool:
        """Whether our own address towards it has changed: the sooner it hears from us, the sooner it answers there."""
        address = partner.address
        if address is None or isinstance(address, Route) or now - partner.own_s < OWN_EVERY_S:
            return False
        before, partner.own, partner.own_s = partner.own, self._own_address(address), now
        return bool(before) and before != partner.own
