"""Which partner a MAC leads to, whatever was said of peers: whole ones, and what came and went behind them."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from dataplane.sleeve.control import Forget, Macs, Peer
from gossip.names import PeerName
from tests.dataplane.sleeve.network import Network, name_of

MACS = [bytes((2, 0, 0, 0, 0, number)) for number in range(4)]
names = st.sampled_from([name_of(1), name_of(2), name_of(3)])
macs = st.lists(st.sampled_from(MACS), max_size=3, unique=True).map(tuple)
messages = st.one_of(
    st.builds(Peer, names, st.sampled_from([b"k" * 32, b"l" * 32]), st.just(()), macs, st.booleans()),
    st.builds(Macs, names, macs, macs),
    st.builds(Forget, names),
)


class Obvious:
    """What everybody has, and of whom each MAC was said last."""

    def __init__(self) -> None:
        self.behind: dict[PeerName, set[bytes]] = {}
        self.leads_to: dict[bytes, PeerName] = {}

    def hear(self, message: Peer | Macs | Forget) -> None:
        name = message.name
        match message:
            case Peer():
                self.hear(Forget(name))
                self.behind[name] = set()
                self.hear(Macs(name, message.macs, ()))
            case Macs(_, came, went) if name in self.behind:
                self.behind[name] = (self.behind[name] - {*went}) | {*came}
                self.leads_to = {
                    mac: other for mac, other in self.leads_to.items() if other != name or mac not in went
                } | dict.fromkeys(came, name)
            case Forget():
                self.behind.pop(name, None)
                self.leads_to = {mac: other for mac, other in self.leads_to.items() if other != name}


@given(st.lists(messages, max_size=12))
def test_a_mac_leads_to_whom_it_was_said_of_last(said: list[Peer | Macs | Forget]) -> None:
    """And to nobody when it went there, whoever had it before; of a peer that nobody knows nothing is kept."""
    sleeve, obvious = Network(1, hosts=1).hosts[0].sleeve, Obvious()
    for message in said:
        obvious.hear(message)
        match message:
            case Peer():
                sleeve.set_peer(message)
            case Macs():
                sleeve.change_macs(message)
            case Forget(name):
                sleeve.forget(name)
        assert {mac: partner.peer.name for mac, partner in sleeve.sender.macs.items()} == obvious.leads_to
        assert {name: partner.macs for name, partner in sleeve.partners.items()} == obvious.behind
