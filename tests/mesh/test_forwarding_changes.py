"""One desired state after another from a table that changes: what a look at everything gives, by a look at the pages
that changed and at those whose rows they contest."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from ipaddress import ip_address, ip_interface

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataplane.desired import NOWHERE, SLEEVE, VXLAN, Desired, Group, Port, RemoteEndpoint, Segment
from gossip.names import PeerName
from mesh.endpoints import Binding, Endpoint, EndpointTable, Place, bridge_mac, derive_mac, encode_row
from mesh.forwarding import BEST, NONE, Forwarding, Path

ME, P, Q, R = (PeerName(bytes([number]) * 8) for number in (5, 3, 7, 9))
SEGMENT = Segment("weft", bridge_mac(ME), 1450, 7, 6784)
ADDRESSES = [ip_address(text) for text in ("10.32.0.1", "10.32.0.2", "fd00:32::3")]
MACS = [derive_mac("weft", address) for address in ADDRESSES]
TO_P = ip_address("10.9.0.3")
PATHS = [Path(VXLAN, BEST, TO_P), Path(VXLAN, BEST, ip_address("10.9.0.4")), Path(SLEEVE, "vxlan-silent", TO_P),
         Path(NONE, "unreachable")]  # fmt: skip
NOBODY: frozenset[PeerName] = frozenset()


def port(mac: bytes) -> Port:
    return Port("vw1", "ethwe", "/run/netns/c1", (4, 1), mac, (ip_interface("10.32.9.9/16"),))


def body(*endpoints: Endpoint) -> bytes:
    rows = [encode_row(each) for each in endpoints]
    return b"".join(struct.pack("!H", len(row)) + row for row in rows)


def obvious(
    table: EndpointTable, ports: tuple[Port, ...], paths: Mapping[PeerName, Path], expired: frozenset[PeerName]
) -> list[RemoteEndpoint]:
    """Every endpoint, asked for everything."""
    found = []
    for each in table.endpoints():
        if each.owner in {ME, *expired} or each.mac in {port.mac for port in ports}:
            continue
        if table.mac_holder(each.mac, expired) is not each:
            continue
        held = tuple(binding.ip for binding in each.bindings if table.holder(binding.ip, expired) is each)
        path = paths.get(each.owner)
        via = {VXLAN: VXLAN, SLEEVE: SLEEVE}.get(path.kind if path else NONE, NOWHERE)
        found.append(RemoteEndpoint(each.mac, held, path.destination if path else None, via))  # type: ignore[arg-type]
    return found


bindings = st.lists(
    st.builds(Binding, st.sampled_from(ADDRESSES), st.just(24), st.integers(0, 2)), max_size=2, unique_by=lambda b: b.ip
).map(tuple)
rows = st.builds(Endpoint, st.just(P), st.sampled_from(["web", "db"]), st.sampled_from(MACS), bindings)
pages = st.tuples(st.sampled_from([ME, P, Q, R]), st.integers(0, 1), st.lists(rows, max_size=3))
ports = st.one_of(st.just(()), st.sampled_from(MACS).map(lambda mac: (port(mac),)))
steps = st.tuples(
    st.lists(pages, max_size=2),
    st.dictionaries(st.sampled_from([P, Q, R]), st.sampled_from(PATHS)),
    st.sets(st.sampled_from([P, Q, R])).map(frozenset),
    ports,
    st.sampled_from([P, Q, R, None, None, None]),
)


@given(st.lists(steps, min_size=1, max_size=8))
def test_after_any_history_the_state_is_what_a_look_at_everything_gives(history: list) -> None:  # type: ignore[type-arg]
    """Rows, paths, hosts that expire and return or are forgotten, ports that take a MAC and give it back."""
    table, builder = EndpointTable(), Forwarding()
    for changes, paths, expired, attached, forgotten in history:
        for owner, index, page in changes:
            table.replace_page(owner, index, body(*page))
        if forgotten is not None:
            table.forget(forgotten)
        found = builder.desired(SEGMENT, attached, paths, table, ME, expired, True)
        assert list(found.endpoints) == obvious(table, attached, paths, expired)
        assert found == Forwarding().desired(SEGMENT, attached, paths, table, ME, expired, True)
        assert tuple(group for owner in sorted(builder.behind) for group in builder.behind[owner]) == found.groups
        assert () not in found.groups and () not in builder.behind.values()


# What one change looks at


class Watched(EndpointTable):
    """Remembers which pages were looked at."""

    def __init__(self) -> None:
        super().__init__()
        self.looked_at: list[Place] = []

    def on_page(self, place: Place):  # type: ignore[no-untyped-def]
        self.looked_at.append(place)
        return super().on_page(place)


class Mesh:
    """Hosts with pages of two endpoints each, and the states that follow one another."""

    def __init__(self, pages: int) -> None:
        self.table, self.builder = Watched(), Forwarding()
        self.paths = dict.fromkeys((P, Q, R), PATHS[0])
        self.ports: tuple[Port, ...] = ()
        self.expired = NOBODY
        for owner in (P, Q, R):
            for index in range(pages):
                self.table.replace_page(owner, index, body(self.row(owner, index, 0), self.row(owner, index, 1)))
        self.before: tuple[Group, ...] = self.next().groups
        self.table.looked_at.clear()

    def row(self, owner: PeerName, index: int, number: int, claim: int = 1) -> Endpoint:
        ip = ip_address(f"10.{owner[0]}.{index}.{number}")
        return Endpoint(owner, f"c{index}.{number}", derive_mac("weft", ip), (Binding(ip, 8, claim),))

    def next(self) -> Desired:
        return self.builder.desired(SEGMENT, self.ports, self.paths, self.table, ME, self.expired, True)

    def looked_at(self) -> list[Place]:
        """And which groups are others than before is just those."""
        groups = self.next().groups
        known, self.before = set(map(id, self.before)), groups
        assert len([group for group in groups if id(group) not in known]) <= len(self.table.looked_at)
        looked_at, self.table.looked_at = sorted(self.table.looked_at), []
        return looked_at


@pytest.fixture(params=[2, 10, 100])
def mesh(request: pytest.FixtureRequest) -> Mesh:
    return Mesh(request.param)


def test_one_row_is_one_page_and_nothing_is_none(mesh: Mesh) -> None:
    """However many pages there are."""
    assert mesh.looked_at() == []
    mesh.table.replace_page(Q, 0, body(mesh.row(Q, 0, 0), mesh.row(Q, 0, 7)))
    assert mesh.looked_at() == [(Q, 0)]
    mesh.table.replace_page(Q, 0, b"")
    assert mesh.looked_at() == [(Q, 0)]
    assert mesh.looked_at() == []


def test_a_contest_is_a_look_at_everybody_in_it_and_nobody_else(mesh: Mesh) -> None:
    """When it begins and when it ends; a third party whose MAC depends on it is in it too."""
    taken = mesh.row(P, 0, 0)
    rival = Endpoint(Q, "rival", MACS[0], (Binding(taken.bindings[0].ip, 8, 2),))
    bystander = Endpoint(R, "bystander", taken.mac, ())
    mesh.table.replace_page(R, 0, body(bystander))
    assert mesh.looked_at() == [(P, 0), (R, 0)]
    mesh.table.replace_page(Q, 0, body(rival))
    assert mesh.looked_at() == [(P, 0), (Q, 0), (R, 0)]
    mesh.expired = frozenset({Q})
    assert (P, 0) in mesh.looked_at()
    mesh.expired = NOBODY
    mesh.looked_at()
    mesh.table.replace_page(Q, 0, b"")
    assert mesh.looked_at() == [(P, 0), (Q, 0), (R, 0)]


def test_another_path_is_the_pages_of_its_host(mesh: Mesh) -> None:
    """And a MAC attached here the pages on which it is elsewhere."""
    mesh.paths[R] = PATHS[2]
    assert mesh.looked_at() == [(R, index) for index in mesh.table.pages(R)]
    mac = mesh.row(P, 0, 1).mac
    mesh.ports = (port(mac),)
    assert mesh.looked_at() == [(P, 0)]
    mesh.ports = ()
    assert mesh.looked_at() == [(P, 0)]
