"""One desired state after another: the same objects in the end as expanding the last one from nothing, by looking only
at what changed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataplane import expansion as expansion_module
from dataplane.desired import NOWHERE, SLEEVE, VXLAN, Desired, Group, RemoteEndpoint, Segment
from dataplane.expansion import Expander, Expansion, expand
from dataplane.layers import Layers
from dataplane.objects import BRIDGE_FDB, NEIGHBOUR, VXLAN_FDB, Key, Value
from tests.dataplane.world import DESIRED, SEGMENT, World, endpoint, mac, peer, port

# Layers, against the obvious: walk through all of them, last to first.

LAYERS = [{"a": 1, "b": 1}, {"a": 2}, {"b": 3, "c": 3}, {"a": 4, "c": 4}, {}, {"d": 6}]
stacks = st.lists(st.sampled_from(range(len(LAYERS))), max_size=7)


def flat(layers: Iterable[Mapping[str, int]]) -> dict[str, int]:
    found: dict[str, int] = {}
    for layer in reversed(list(layers)):
        found.update(layer)
    return found


@given(st.lists(stacks, min_size=1, max_size=8))
def test_the_first_layer_that_has_a_key_says_its_value(states: list[list[int]]) -> None:
    """Whatever came and went before, in whatever order."""
    layers: Layers[dict[str, int], str, int] = Layers(lambda layer: layer)
    known: dict[str, int] = {}
    for state in states:
        wanted = flat(LAYERS[number] for number in state)
        change = layers.replace(LAYERS[number] for number in state)
        known.update(change.rows)
        for key in change.gone:
            del known[key]
        assert known == wanted


# Desired states, against the obvious: all rows of everything, the weakest first.


def obvious(desired: Desired) -> dict[Key, Value]:
    """One row after another into one dictionary."""
    found: dict[Key, Value] = {}
    for each in reversed(desired.endpoints):
        found.update(expansion_module._endpoint_rows(desired.segment, each))
    for state in (replace(desired, ports=(), groups=()), replace(desired, peers=(), groups=())):
        found.update(expand(state).objects)
    return found


class Listener:
    """Keeps what expansions say, as the reconciler does."""

    def __init__(self) -> None:
        self.objects: dict[Key, Value] = {}

    def hear(self, expansion: Expansion) -> None:
        for key in expansion.gone:
            del self.objects[key]
        self.objects.update(expansion.objects)


VIAS = st.sampled_from([VXLAN, SLEEVE, NOWHERE])
# Endpoints share MACs and addresses with each other, with ports (of the same number) and with the bridges of peers.
endpoints = st.builds(
    lambda number, macs, host, via: replace(endpoint(number, host, via), mac=macs),
    st.integers(1, 4),
    st.sampled_from([mac(1), mac(2), mac(3), peer(2).bridge_mac, SEGMENT.bridge_mac, b"\2"]),
    st.sampled_from([None, 2, 3]),
    VIAS,
)
groups = st.lists(endpoints, max_size=4).map(tuple)
segments = st.sampled_from([SEGMENT, replace(SEGMENT, vxlan_port=None), replace(SEGMENT, mtu=1200)])


@st.composite
def histories(draw: st.DrawFn) -> list[Desired]:
    """States of which many groups stay the same objects, some changed, moved or there twice."""
    pool: list[Group] = draw(st.lists(groups, min_size=1, max_size=5))
    states = []
    for _ in range(draw(st.integers(1, 6))):
        index = draw(st.integers(0, len(pool) - 1))
        pool[index] = draw(st.one_of(groups, st.permutations(pool[index]).map(tuple), st.just(pool[index])))
        states.append(
            Desired(
                draw(segments),
                tuple(port(number) for number in draw(st.sets(st.integers(1, 2)))),
                tuple(peer(number, draw(VIAS)) for number in draw(st.sets(st.integers(2, 3)))),
                tuple(draw(st.lists(st.sampled_from(pool), max_size=6))),
            )
        )
    return states


@given(histories())
def test_one_expansion_after_another_ends_in_what_the_last_state_says(history: list[Desired]) -> None:
    """Port over peer, peer over endpoint, first over last: across groups as within one. What is left out is told."""
    expander, listener = Expander(), Listener()
    for desired in history:
        expansion = expander.expand(desired)
        listener.hear(expansion)
        whole = expand(desired)
        assert listener.objects == whole.objects == obvious(desired)
        assert (expansion.port_of, expansion.scope, expansion.settled) == (whole.port_of, whole.scope, whole.settled)
        assert expansion.skipped == whole.skipped


@given(histories())
def test_groups_do_not_matter_for_what_is_there(history: list[Desired]) -> None:
    """The same endpoints in one group, or each in its own."""
    for desired in history:
        whole = expand(desired).objects
        assert expand(replace(desired, groups=(desired.endpoints,))).objects == whole
        assert expand(replace(desired, groups=tuple((each,) for each in desired.endpoints))).objects == whole


def test_an_endpoint_behind_a_contested_mac_comes_forth_when_the_first_one_goes() -> None:
    """In another group, which has not changed, and whose other rows are not looked at."""
    first, second = (endpoint(11),), (replace(endpoint(12, 3), mac=mac(11)), endpoint(13))
    expander = Expander()
    expander.expand(Desired(SEGMENT, groups=(first, second)))
    expansion = expander.expand(Desired(SEGMENT, groups=(second,)))
    assert {key.kind for key in expansion.objects} == {VXLAN_FDB, BRIDGE_FDB}
    assert {key.item for key in expansion.objects} == {mac(11)}
    assert {(key.kind, key.item) for key in expansion.gone} == {
        (NEIGHBOUR, address.packed) for address in endpoint(11).addresses
    }


# What one change touches.

GROUP = 90


def many_groups(count: int) -> tuple[Group, ...]:
    def at(number: int) -> RemoteEndpoint:
        one = endpoint(1)
        return replace(one, mac=bytes((2, 9)) + number.to_bytes(4, "big"), addresses=(one.addresses[0] + number,))

    return tuple(tuple(at(number) for number in range(first, first + GROUP)) for first in range(0, count, GROUP))


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[RemoteEndpoint]:
    """The endpoints whose rows were made."""
    calls: list[RemoteEndpoint] = []
    rows = expansion_module._endpoint_rows

    def counted(segment: Segment, each: RemoteEndpoint) -> dict[Key, Value]:
        calls.append(each)
        return rows(segment, each)

    monkeypatch.setattr(expansion_module, "_endpoint_rows", counted)
    return calls


@pytest.mark.parametrize("count", [GROUP, GROUP * 10, GROUP * 100])
def test_one_change_makes_the_rows_of_its_group_and_no_others(count: int, made: list[RemoteEndpoint]) -> None:
    """As they were and as they are, however many groups there are; what comes out is one operation."""
    world, state = World(), list(many_groups(count))
    world.reach(replace(DESIRED, groups=tuple(state)))
    made.clear()
    changed = (replace(state[-1][0], destination=None), *state[-1][1:])
    world.want(replace(DESIRED, groups=(*state[:-1], changed)))
    assert len(made) == 2 * GROUP
    assert [operation.key for operation in world.settle()] == [Key(VXLAN_FDB, "weft-vx", changed[0].mac)]


def test_an_unchanged_state_makes_no_rows_at_all(made: list[RemoteEndpoint]) -> None:
    """The same groups in an equal state."""
    expander, state = Expander(), many_groups(GROUP * 10)
    expander.expand(replace(DESIRED, groups=state))
    made.clear()
    expansion = expander.expand(replace(DESIRED, groups=(*state,), ports=(*DESIRED.ports,)))
    assert (expansion.objects, list(expansion.gone), made) == ({}, [], [])
