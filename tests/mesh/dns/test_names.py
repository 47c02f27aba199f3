"""The zone: whose names count, what changes them, and that following changes comes to the same as beginning anew."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gossip.errors import ProtocolError
from gossip.pages import TablePager
from mesh.dns.message import text_name, wire_name
from mesh.dns.names import TOLD_MAX, Zone, decode_bare_untrusted, encode_bare, reverse_address, reverse_name
from mesh.endpoints import Endpoint
from tests.mesh.dns.oracle import H1, H2, H3, World, endpoint


def found(world: World, name: str) -> list[str]:
    entry = world.zone.lookup(wire_name(name))
    if entry is None:
        return []
    return [str(ip_address(each)) for groups in (entry.v4, entry.v6) for group in groups for each in group]


def test_a_name_has_the_addresses_of_all_who_bear_it() -> None:
    """Of both families, whatever host they are on."""
    world = World()
    world.tell(endpoint(H1, 1, "10.32.1.1/16", "fd00:32::1/64", names=["web"]))
    world.tell(endpoint(H2, 2, "10.32.2.1/16", names=["web", "db"]))
    assert found(world, "web.weft.local") == ["10.32.1.1", "10.32.2.1", "fd00:32::1"]
    assert found(world, "db.weft.local") == ["10.32.2.1"]
    assert found(world, "nobody.weft.local") == []


def test_what_a_container_is_called_is_a_name_of_it() -> None:
    """Beside those that were given; a word with dots is under the domain."""
    world = World()
    world.tell(replace(endpoint(H2, 1, "10.32.1.1/16", names=["web"]), called="c1.1"))
    assert found(world, "c1.1.weft.local") == found(world, "web.weft.local") == ["10.32.1.1"]
    names = [text_name(each) for each in world.zone.names_at(ip_address("10.32.1.1"))]
    assert sorted(names) == ["c1.1.weft.local.", "web.weft.local."]


def test_what_went_is_not_found() -> None:
    """Withdrawn, away, out of reach, forgotten; and found again when it is back."""
    world = World()
    one, two = endpoint(H2, 1, "10.32.1.1/16", names=["web"]), endpoint(H3, 2, "10.32.1.2/16", names=["web"])
    world.tell(one)
    world.tell(two)
    entry = world.zone.lookup(wire_name("web.weft.local"))
    world.withdraw(one)
    assert entry is not None and entry.is_stale, "who kept an answer made of it is told"
    assert found(world, "web.weft.local") == ["10.32.1.2"]
    world.tell(endpoint(H3, 2, "10.32.1.2/16", names=["web"], away=True))
    assert found(world, "web.weft.local") == []
    world.tell(two)
    world.zone.set_reachable({H2})
    assert found(world, "web.weft.local") == []
    world.zone.set_reachable({H2, H3})
    assert found(world, "web.weft.local") == ["10.32.1.2"]
    world.table.forget(H3)
    world.zone.forget(H3)
    assert found(world, "web.weft.local") == [] and len(world.zone) == 0


def test_our_own_names_need_no_reach() -> None:
    world = World()
    world.zone.set_reachable(())
    world.tell(endpoint(H1, 1, "10.32.1.1/16", names=["web"]))
    assert found(world, "web.weft.local") == ["10.32.1.1"]


def test_an_address_that_somebody_else_holds_is_not_told() -> None:
    """Until the holder is gone."""
    world = World()
    weak = endpoint(H2, 1, "10.32.1.1/16", names=["old"])
    world.tell(weak)
    strong = endpoint(H3, 2, names=["new"])
    object.__setattr__(strong, "bindings", (type(weak.bindings[0])(ip_address("10.32.1.1"), 16, 9),))
    assert found(world, "old.weft.local") == ["10.32.1.1"]
    world.tell(strong)
    assert (found(world, "old.weft.local"), found(world, "new.weft.local")) == ([], ["10.32.1.1"])
    assert [text_name(each) for each in world.zone.names_at(ip_address("10.32.1.1"))] == ["new.weft.local."]
    world.withdraw(strong)
    assert found(world, "old.weft.local") == ["10.32.1.1"]


def test_nearer_hosts_come_first_and_equals_together() -> None:
    """Our own before everybody's, then by rank; those of one rank are one group."""
    world = World()
    world.ranks = {H2: 5, H3: 2}
    for number, owner in ((1, H2), (2, H3), (3, H1), (4, H3)):
        world.tell(endpoint(owner, number, f"10.32.0.{number}/16", names=["web"]))
    entry = world.zone.lookup(wire_name("web.weft.local"))
    assert entry is not None
    assert [sorted(each[3] for each in group) for group in entry.v4] == [[3], [2, 4], [1]]


def test_a_name_of_very_many_has_the_nearest() -> None:
    world = World()
    world.ranks = {H2: 1, H3: 0}
    for number in range(TOLD_MAX):
        world.tell(endpoint(H2, number, f"10.2.{number // 250}.{number % 250 + 1}/8", names=["many"]))
        world.tell(endpoint(H3, number, f"10.3.{number // 250}.{number % 250 + 1}/8", names=["many"]))
    addresses = found(world, "many.weft.local")
    assert len(addresses) == TOLD_MAX and all(each.startswith("10.3.") for each in addresses)


def test_a_name_between_exists_without_addresses() -> None:
    """As long as one below it counts."""
    world = World()
    one = endpoint(H2, 1, "10.32.1.1/16", names=["a.b.c"])
    world.tell(one)
    for name in ("b.c.weft.local", "c.weft.local"):
        entry = world.zone.lookup(wire_name(name))
        assert entry is not None and not entry.v4
    assert world.zone.lookup(wire_name("x.c.weft.local")) is None
    world.zone.set_reachable({H3})
    assert world.zone.lookup(wire_name("c.weft.local")) is None
    world.zone.set_reachable({H2})
    world.withdraw(one)
    assert world.zone.lookup(wire_name("c.weft.local")) is None


def test_names_of_bare_addresses() -> None:
    """They have a table of their own; two hosts may say them of one name."""
    world = World()
    pager = TablePager()
    pager.put("nas", encode_bare("nas", [ip_address("10.32.9.9"), ip_address("fd00::9")]))
    world.zone.bare_page_untrusted(H2, 0, pager.body(0))
    world.zone.bare_page_untrusted(H3, 0, pager.body(0))
    assert found(world, "nas.weft.local") == ["10.32.9.9", "fd00::9"]
    assert [text_name(each) for each in world.zone.names_at(ip_address("fd00::9"))] == ["nas.weft.local."]
    world.zone.bare_page_untrusted(H2, 0, b"")
    assert found(world, "nas.weft.local") == ["10.32.9.9", "fd00::9"]
    world.zone.forget(H3)
    assert found(world, "nas.weft.local") == [] and len(world.zone) == 0


@pytest.mark.parametrize(
    "row",
    [b"", b"\xc0", encode_bare("n" * 64, []), encode_bare("..", []), b"\x92\xa1a\x91\xc4\x03abc", b"\x92\xa1a\x01"],
)
def test_malformed_rows_are_counted_and_left_out(row: bytes) -> None:
    world = World()
    with pytest.raises(ProtocolError):
        decode_bare_untrusted(row)
    pager = TablePager()
    pager.put("x", row)
    pager.put("y", encode_bare("fine", [ip_address("10.0.0.1")]))
    world.zone.bare_page_untrusted(H2, 0, pager.body(0))
    assert world.zone.malformed == 1 and found(world, "fine.weft.local") == ["10.0.0.1"]


@given(st.binary(max_size=200))
def test_garbage_in_the_table_of_names_never_raises(body: bytes) -> None:
    World().zone.bare_page_untrusted(H2, 0, body)


def test_names_relative_to_the_domain() -> None:
    """A word is ours, a name under the domain is, any other is not."""
    zone = World().zone
    assert zone.relative("Web") == zone.relative("web.weft.local.") == "web"
    assert zone.relative("a.b.weft.local") == "a.b"
    assert zone.relative("web.example.org") is None and zone.relative("web.xweft.local") is None
    assert zone.is_ours(wire_name("a.weft.local")) and zone.is_ours(wire_name("weft.local"))
    assert not zone.is_ours(wire_name("xweft.local")) and not zone.is_ours(wire_name("local"))
    assert not zone.is_ours(b"\x0ca\x04weft\x05local\x00"), "bytes that look like the domain inside a label"


@pytest.mark.parametrize("text", ["10.32.1.5", "fd00:32::5", "0.0.0.0"])
def test_reverse_names(text: str) -> None:
    assert reverse_address(reverse_name(ip_address(text))) == ip_address(text)


@pytest.mark.parametrize(
    "name", ["5.1.32.in-addr.arpa", "1.5.1.32.10.in-addr.arpa", "05.1.32.10.in-addr.arpa", "x.1.32.10.in-addr.arpa",
             "256.1.32.10.in-addr.arpa", "1.ip6.arpa", "in-addr.arpa", "example.org"]
)  # fmt: skip
def test_what_is_no_reverse_name_of_an_address(name: str) -> None:
    assert reverse_address(wire_name(name)) is None


_EACH = st.builds(
    endpoint, st.sampled_from([H1, H2, H3]), st.integers(1, 6), st.integers(1, 4).map(lambda n: f"10.0.0.{n}/8"),
    names=st.lists(st.sampled_from(["a", "b", "a.b", "c.a.b", "b.weft.local", "web.example.org"]), max_size=3),
    away=st.booleans(),
)  # fmt: skip


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(_EACH, st.sampled_from(["tell", "withdraw", "reach", "look"])), max_size=30))
def test_following_changes_comes_to_the_same_as_beginning_anew(steps: list[tuple[Endpoint, str]]) -> None:
    """However often it is looked at in between."""
    world = World()
    told: dict[tuple[bytes, str], Endpoint] = {}
    reachable = {H2, H3}
    names = [f"{each}.weft.local" for each in ("a", "b", "a.b", "c.a.b", "web.example.org", "org")]
    for each, step in steps:
        if step == "tell":
            world.tell(each)
            told[each.owner, each.id] = each
        elif step == "withdraw" and told.pop((each.owner, each.id), None):
            world.withdraw(each)
        elif step == "reach":
            reachable ^= {each.owner} - {H1}
            world.zone.set_reachable(reachable)
        else:
            [world.zone.lookup(wire_name(name)) for name in names]
    fresh = Zone("weft.local", H1, world.table, lambda owner: 1 << 20)
    fresh.set_reachable(reachable)
    for owner in world.table.owners():
        for index in world.table.pages(owner):
            fresh.page_changed((owner, index))
    for name in names:
        assert world.zone.lookup(wire_name(name)) == fresh.lookup(wire_name(name)), name
    assert len(world.zone) == len(fresh) and sorted(world.zone.rows(99), key=repr) == sorted(fresh.rows(99), key=repr)
