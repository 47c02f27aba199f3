"""What a worker is told: whole peers that changed, once each, and that these are all when they are."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from dataplane.sleeve.control import Complete, Forget, Graph, Message, Peer
from gossip.names import PeerName
from mesh.roster import Roster

NO_GRAPH = Graph(())
A, B = PeerName(b"\x01" * 8), PeerName(b"\x02" * 8)


def peer(name: PeerName, flood: bool = False) -> Peer:
    return Peer(name, bytes(32), (), (b"\x02" * 6,), flood)


def test_only_what_changed_is_said() -> None:
    """An equal peer is nothing new, be it another object or not."""
    roster = Roster()
    roster.begin(adopted=False)
    roster.want({B: peer(B), A: peer(A)}, NO_GRAPH, settled=True)
    assert roster.pending() == [peer(A), peer(B), Complete()]
    roster.want({A: peer(A), B: peer(B)}, NO_GRAPH, settled=True)
    assert roster.pending() == []
    roster.want({A: peer(A, flood=True)}, NO_GRAPH, settled=True)
    assert roster.pending() == [peer(A, flood=True), Forget(B)]


def test_a_new_worker_hears_everything_again() -> None:
    """In one go, with the end of it."""
    roster = Roster()
    for _ in range(2):
        roster.begin(adopted=False)
        roster.want({A: peer(A)}, NO_GRAPH, settled=True)
        assert roster.pending() == [peer(A), Complete()]


def test_until_all_is_known_nobody_is_told_that_it_is_all() -> None:
    """A worker of ours hears what there is."""
    roster = Roster()
    roster.begin(adopted=False)
    roster.want({A: peer(A)}, NO_GRAPH, settled=False)
    assert roster.pending() == [peer(A)]
    roster.want({A: peer(A), B: peer(B)}, NO_GRAPH, settled=True)
    assert roster.pending() == [peer(B), Complete()]


def test_an_adopted_worker_knows_more_than_we_until_all_is_known() -> None:
    """A peer whose endpoints are still on their way would lose them."""
    roster = Roster()
    roster.begin(adopted=True)
    roster.want({A: peer(A)}, NO_GRAPH, settled=False)
    assert roster.pending() == []
    roster.want({A: peer(A), B: peer(B)}, NO_GRAPH, settled=True)
    assert roster.pending() == [peer(A), peer(B), Complete()]


states = st.dictionaries(st.sampled_from([A, B]), st.booleans()).map(
    lambda known: {name: peer(name, flood) for name, flood in known.items()}
)


@given(st.lists(st.tuples(states, st.booleans(), st.sampled_from(["", "new", "adopted"])), min_size=1))
def test_a_worker_knows_in_the_end_what_it_should(steps: list[tuple[dict[PeerName, Peer], bool, str]]) -> None:
    """Whatever came before, and whatever an adopted one knew."""
    roster, worker, said = Roster(), {A: peer(A)}, set[PeerName]()

    def hear(messages: list[Message]) -> None:
        for message in messages:
            match message:
                case Peer(name=name):
                    worker[name] = message
                    said.add(name)
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
    assert worker == steps[-1][0]
