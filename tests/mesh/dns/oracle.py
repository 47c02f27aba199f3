"""Questions by dnspython, and its view of answers: what ours are compared with."""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import ip_interface
from random import Random

import dns.flags
import dns.message
import dns.rdatatype

from gossip.names import PeerName
from gossip.pages import TablePager
from mesh.dns.names import Zone
from mesh.dns.resolver import Forward, Resolver
from mesh.endpoints import Binding, Endpoint, EndpointTable, encode_row

H1, H2, H3 = (PeerName(bytes((number,)) * 8) for number in (1, 2, 3))


def endpoint(owner: PeerName, number: int, *addresses: str, names: Iterable[str] = (), away: bool = False) -> Endpoint:
    bindings = tuple(Binding(ip_interface(a).ip, ip_interface(a).network.prefixlen, 1) for a in addresses)
    mac = bytes((2, owner[0], 0, 0, number >> 8, number & 255))
    return Endpoint(owner, f"c{number}", mac, bindings, tuple(names), away=away)


class World:
    """A table of endpoints, the zone that follows it, and a resolver: as a daemon wires them."""

    def __init__(self, domain: str = "weft.local") -> None:
        self.table = EndpointTable()
        self.ranks: dict[PeerName, int] = {}
        self.zone = Zone(domain, H1, self.table, lambda owner: self.ranks.get(owner, 1 << 20))
        self.zone.set_reachable({H2, H3})
        self.resolver = Resolver(self.zone, Random(1))
        self._pagers: dict[PeerName, TablePager] = {}

    def tell(self, each: Endpoint) -> None:
        self._page(each.owner, self._pagers.setdefault(each.owner, TablePager()).put(each.id, encode_row(each)))

    def withdraw(self, each: Endpoint) -> None:
        self._page(each.owner, self._pagers[each.owner].remove(each.id))

    def _page(self, owner: PeerName, changed: Iterable[int]) -> None:
        for index in changed:
            self.table.replace_page(owner, index, self._pagers[owner].body(index))
            self.zone.page_changed((owner, index))

    def ask(self, name: str, kind: str = "A", tcp: bool = False, **options: object) -> dns.message.Message:
        """The answer as dnspython reads it. What it cannot read fails the test."""
        query = dns.message.make_query(name, kind, **options)  # type: ignore[arg-type]
        data = self.resolver.answer_untrusted(query.to_wire(), tcp)
        assert isinstance(data, bytes), data
        answer = dns.message.from_wire(data)
        assert query.is_response(answer)
        return answer

    def is_forwarded(self, name: str, kind: str = "A") -> bool:
        return isinstance(self.resolver.answer_untrusted(dns.message.make_query(name, kind).to_wire()), Forward)

    def addresses(self, name: str, kind: str = "A") -> list[str]:
        """In the order of the answer."""
        return [str(record) for each in self.ask(name, kind).answer for record in each]


def flags_of(answer: dns.message.Message) -> set[str]:
    return set(dns.flags.to_text(answer.flags).split())
