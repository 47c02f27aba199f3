"""What a worker is told: peers that are new or somewhere else whole, of others what came and went behind them, once
each, and that these are all when they are."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from dataplane.desired import SLEEVE, Group, RemoteEndpoint
from dataplane.sleeve.control import Complete, Forget, Graph, Macs, Message, Peer
from gossip.names import PeerName
from mesh import roster as roster_module
from mesh.roster import Entry, Roster

NO_GRAPH = Graph(())
A, B = PeerName(b"\x01" * 8), PeerName(b"\x02" * 8)


def mac(number: int) -> bytes:
    return b"\x02" * 5 + bytes([number])


def group(*numbers: int) -> Group:
    return tuple(RemoteEndpoint(mac(number), (), None) for number in numbers)


def entry(name: PeerName, *groups: Group, flood: bool = False) -> Entry:
    return Entry(Peer(name, bytes(32), (), (b"\x06" + name[:5],), flood), groups)


def whole(name: PeerName, *numbers: int, flood: bool = False) -> Peer:
    return Peer(name, bytes(32), (), (b"\x06" + name[:5], *map(mac, numbers)), flood)


def test_only_what_changed_is_said() -> None:
    """An equal peer is nothing new, be it another object or not."""
    roster = Roster()
    roster.begin(adopted=False)
    roster.want({B: entry(B), A: entry(A, group(1), group(2))}, NO_GRAPH, settled=True)
    assert roster.pending() == [whole(A, 1, 2), whole(B), Complete()]
    roster.want({A: entry(A, group(1), group(2)), B: entry(B)}, NO_GRAPH, settled=True)
    assert roster.pending() == []
    roster.want({A: entry(A, group(1), group(2), flood=True)}, NO_GRAPH, settled=True)
    assert roster.pending() == [whole(A, 1, 2, flood=True), Forget(B)]


def test_what_comes_and_goes_behind_a_peer_is_said_by_itself() -> None:
    """In whatever group; a group that is another one for other reasons is nothing to a worker."""
    roster, first, second = Roster(), group(1, 2), group(3, 4)
    roster.begin(adopted=False)
    roster.want({A: entry(A, first, second)}, NO_GRAPH, settled=True)
    roster.pending()
    roster.want({A: entry(A, first, group(3, 5, 6))}, NO_GRAPH, settled=True)
    assert roster.pending() == [Macs(A, (mac(5), mac(6)), (mac(4),))]
    by_sleeve = tuple(replace(each, via=SLEEVE) for each in first)
    roster.want({A: entry(A, group(6), by_sleeve, group(5, 3))}, NO_GRAPH, settled=True)
    assert roster.pending() == []


def test_the_mac_of_a_bridge_stays_when_its_host_is_exposed_no_more() -> None:
    """As an endpoint it has the MAC that it has anyhow."""
    roster = Roster()
    roster.begin(adopted=False)
    host = (RemoteEndpoint(entry(A).peer.macs[0], (), None), *group(1))
    roster.want({A: entry(A, host)}, NO_GRAPH, settled=True)
    assert roster.pending() == [whole(A, 1), Complete()]
    roster.want({A: entry(A, group(1, 2))}, NO_GRAPH, settled=True)
    assert roster.pending() == [Macs(A, (mac(2),), ())]


def test_one_change_behind_a_peer_looks_into_one_group(monkeypatch) -> None:  # type: ignore[no-untyped-def]
    """As it was and as it is, however many groups there are."""
    looked_into: list[Group] = []
    macs = roster_module._macs

    def counted(groups) -> list[bytes]:  # type: ignore[no-untyped-def]
        groups = list(groups)
        looked_into.extend(groups)
        return macs(groups)

    monkeypatch.setattr(roster_module, "_macs", counted)
    groups = [group(number) for number in range(200)]
    roster = Roster()
    roster.begin(adopted=False)
    roster.want({A: entry(A, *groups)}, NO_GRAPH, settled=True)
    roster.pending()
    looked_into.clear()
    roster.want({A: entry(A, *groups[:100], group(201), *groups[101:])}, NO_GRAPH, settled=True)
    assert roster.pending() == [Macs(A, (mac(201),), (mac(100),))]
    assert looked_into == [groups[100], group(201)]


def test_a_new_worker_hears_everything_again() -> None:
    """In one go, with the end of it."""
    roster = Roster()
    for _ in range(2):
        roster.begin(adopted=False)
        roster.want({A: entry(A, group(1))}, NO_GRAPH, settled=True)
        assert roster.pending() == [whole(A, 1), Complete()]


def test_until_all_is_known_nobody_is_told_that_it_is_all() -> None:
    """A worker of ours hears what there is."""
    roster = Roster()
    roster.begin(adopted=False)
    roster.want({A: entry(A)}, NO_GRAPH, settled=False)
    assert roster.pending() == [whole(A)]
    roster.want({A: entry(A), B: entry(B)}, NO_GRAPH, settled=True)
    assert roster.pending() == [whole(B), Complete()]


def test_an_adopted_worker_knows_more_than_we_until_all_is_known() -> None:
    """A peer whose endpoints are still on their way would lose them."""
    roster = Roster()
    roster.begin(adopted=True)
    roster.want({A: entry(A)}, NO_GRAPH, settled=False)
    assert roster.pending() == []
    roster.want({A: entry(A, group(1)), B: entry(B)}, NO_GRAPH, settled=True)
    assert roster.pending() == [whole(A, 1), whole(B), NO_GRAPH, Complete()], "it may have had another graph"


GROUPS = [group(1), group(2, 3), group(1, 2), group(4)]
some_groups = st.lists(st.sampled_from(GROUPS), max_size=3).filter(
    lambda groups: len({each.mac for group in groups for each in group}) == sum(map(len, groups))
)
states = st.dictionaries(st.sampled_from([A, B]), st.tuples(st.booleans(), some_groups)).map(
    lambda known: {name: entry(name, *groups, flood=flood) for name, (flood, groups) in known.items()}
)


@given(st.lists(st.tuples(states, st.booleans(), st.sampled_from(["", "new", "adopted"])), min_size=1))
def test_a_worker_knows_in_the_end_what_it_should(steps: list[tuple[dict[PeerName, Entry], bool, str]]) -> None:
    """Whatever came before, and whatever an adopted one knew."""
    roster, worker, said = Roster(), {A: (whole(A), {mac(9)})}, set[PeerName]()

    def hear(messages: list[Message]) -> None:
        for message in messages:
            match message:
                case Peer(name=name):
                    worker[name] = (replace(message, macs=()), set(message.macs))
                    said.add(name)
                case Macs(name, came, went):
                    macs = worker[name][1]
                    assert macs.isdisjoint(came) and macs.issuperset(went)
                    macs |= {*came}
                    macs -= {*went}
                case Forget(name):
                    del worker[name]
                case Complete():
                    for name in worker.keys() - said:
                        del worker[name]

    roster.begin(adopted=True)
    for wanted, settled, life in [*steps, (steps[-1][0], True, "")]:
        if life:
            said.clear()
            if life == "new":
                worker.clear()
            roster.begin(adopted=life == "adopted")
        roster.want(wanted, NO_GRAPH, settled)
        hear(roster.pending())
    last = {name: each.whole() for name, each in steps[-1][0].items()}
    assert worker == {name: (replace(each, macs=()), set(each.macs)) for name, each in last.items()}
