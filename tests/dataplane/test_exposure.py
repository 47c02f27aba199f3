"""The host on its own overlay, as objects and as an order of operations: what follows from an exposed address."""

from __future__ import annotations

import errno
from dataclasses import replace
from ipaddress import ip_address, ip_interface

import pytest

from dataplane.desired import Desired, Exposed, Port
from dataplane.expansion import expand
from dataplane.faults import describe, text_of
from dataplane.kernel import ADD, DELETE, REPLACE, KernelError, Operation
from dataplane.linux import teardown
from dataplane.memory import MemoryKernel
from dataplane.objects import (
    ACCEPT,
    FORWARDING,
    GATEWAY,
    GUEST_ADDRESS,
    GUEST_ROUTE,
    HOST_ADDRESS,
    LINK,
    UP,
    DefaultRoute,
    Forwarding,
    Gateway,
    HostAddress,
    Key,
    Value,
    address_item,
    fits,
)
from tests.dataplane.world import DESIRED, EXPOSED, SEGMENT, World

WAY_OUT = (HOST_ADDRESS, FORWARDING, GATEWAY, GUEST_ROUTE)
V4, V6 = ip_address("10.32.0.200").packed, ip_address("fd00::200").packed


def extra(desired: Desired) -> dict[Key, Value]:
    """What there is more than without the exposure."""
    hidden = expand(replace(desired, exposed=())).objects
    return {key: value for key, value in expand(desired).objects.items() if key not in hidden}


def exposed(*texts: str, masquerade: bool = True) -> tuple[Exposed, ...]:
    return tuple(Exposed(ip_interface(text), masquerade) for text in texts)


def test_an_exposed_host_has_addresses_forwards_masquerades_and_leads_its_containers_out() -> None:
    """Each family by itself; faults of it are those of the bridge, and of a route those of its container."""
    assert extra(EXPOSED) == {
        Key(HOST_ADDRESS, "weft", V4 + b"\x10"): HostAddress(),
        Key(HOST_ADDRESS, "weft", V6 + b"\x40"): HostAddress(),
        Key(FORWARDING, "weft", b"ip"): Forwarding(),
        Key(FORWARDING, "weft", b"ip6"): Forwarding(),
        Key(GATEWAY, "weft"): Gateway(("10.32.0.0/16", "fd00::/64")),
        Key(ACCEPT, "weft", b"ip out"): True,
        Key(ACCEPT, "weft", b"ip in"): True,
        Key(ACCEPT, "weft", b"ip6 out"): True,
        Key(ACCEPT, "weft", b"ip6 in"): True,
        Key(GUEST_ROUTE, "vw1", b"ip"): DefaultRoute(V4),
        Key(GUEST_ROUTE, "vw1", b"ip6"): DefaultRoute(V6),
    }
    expansion = expand(EXPOSED)
    of = {expansion.port_of[key] for key in extra(EXPOSED) if key.kind != GUEST_ROUTE}
    assert of == {"weft"} and expansion.port_of[Key(GUEST_ROUTE, "vw1", b"ip")] == "vw1"
    assert expansion.scope.routed == {b"ip", b"ip6"} and expand(DESIRED).scope.routed == frozenset()
    only4 = replace(EXPOSED, exposed=EXPOSED.exposed[:1])
    assert expand(only4).scope.routed == {b"ip"}
    assert not [key for key in extra(only4) if key.item.startswith(b"ip6")]


def test_without_masquerade_there_is_everything_but_the_table() -> None:
    """And a network that only some address of it masquerades is masqueraded."""
    plain = exposed("10.32.0.200/16", "10.40.0.1/16", masquerade=False)
    assert not any(key.kind == GATEWAY for key in extra(replace(DESIRED, exposed=plain)))
    both = replace(DESIRED, exposed=(*plain, *exposed("10.32.0.201/16")))
    assert extra(both)[Key(GATEWAY, "weft")] == Gateway(("10.32.0.0/16",), ("10.40.0.0/16",))


@pytest.mark.parametrize(
    ("container", "hosts", "gateway"),
    [
        ("10.32.0.1/16", ["10.32.0.200/16", "10.32.0.201/16"], "10.32.0.200"),
        ("10.32.0.1/16", ["10.40.0.200/16", "10.32.0.201/16"], "10.32.0.201"),
        ("10.32.0.1/24", ["10.32.7.200/16"], None),
        ("10.32.0.1/16", ["10.32.7.200/24"], None),
        ("10.32.0.1/32", ["10.32.0.200/16"], None),
        ("10.32.0.1/16", ["fd00::200/64"], None),
        ("fd00::1/64", ["10.32.0.200/16", "fd00::200/64"], "fd00::200"),
    ],
)
def test_the_gateway_is_the_first_exposed_address_that_sees_the_container_and_is_seen(
    container: str, hosts: list[str], gateway: str | None
) -> None:
    """Each must be in the other's network, or packets would not come back."""
    one = Port("vw1", "ethwe", "/run/netns/1", (4, 1), b"\2\0\0\0\0\1", (ip_interface(container),))
    rows = expand(Desired(SEGMENT, (one,), exposed=exposed(*hosts))).objects
    found = [value for key, value in rows.items() if key.kind == GUEST_ROUTE]
    assert found == ([] if gateway is None else [DefaultRoute(ip_address(gateway).packed)])


def test_an_mtu_too_small_for_ipv6_leaves_ipv6_out() -> None:
    """As with containers' addresses, and told in the same way."""
    small = replace(EXPOSED, segment=replace(SEGMENT, mtu=1200), ports=(), groups=())
    assert {key.item[:3] for key in extra(small) if key.kind in (FORWARDING, ACCEPT)} == {b"ip", b"ip "}
    assert [skipped.code for skipped in expand(small).skipped] == ["mtu-below-ipv6"]


WANTED = DefaultRoute(V4)


@pytest.mark.parametrize(
    ("wanted", "found", "is_fine"),
    [
        (WANTED, DefaultRoute(V4), True),
        (WANTED, DefaultRoute(V6), False),
        (WANTED, DefaultRoute(None, others=True), True),
        (WANTED, DefaultRoute(V4, others=True), False),
        (Forwarding(), Forwarding(ours=False), True),
        (Forwarding(), Forwarding(ours=True, on=False), False),
        (HostAddress(), HostAddress(ours=False), True),
        (Gateway(("10.32.0.0/16",)), Gateway(()), False),
    ],
)
def test_what_fits(wanted: Value, found: Value, is_fine: bool) -> None:
    """A default route of somebody else's is as good as ours, but ours must not be beside it."""
    assert fits(wanted, found) is is_fine


def test_containers_are_led_out_only_when_all_that_masquerades_is_there_and_until_it_goes() -> None:
    """Or packets would leave under addresses of the overlay."""
    world = World()
    world.reach(DESIRED)
    made = [(op.verb, op.key.kind) for op in world.reach(EXPOSED) if op.key.kind in WAY_OUT]
    order = [kind for _, kind in made]
    assert {verb for verb, _ in made} == {ADD} and len(made) == 7
    assert order.index(GATEWAY) < order.index(FORWARDING) < order.index(GUEST_ROUTE)
    assert order.index(HOST_ADDRESS) < order.index(GUEST_ROUTE)
    gone = [(op.verb, op.key.kind) for op in world.reach(DESIRED) if op.key.kind in WAY_OUT]
    order = [kind for _, kind in gone]
    assert {verb for verb, _ in gone} == {DELETE} and len(gone) == 7
    assert max(i for i, kind in enumerate(order) if kind in (GUEST_ROUTE, FORWARDING)) < order.index(GATEWAY)


def test_where_the_table_cannot_be_made_nothing_is_forwarded() -> None:
    """One fault, of the table; what it is needed for waits, and comes with it."""
    world = World()
    world.kernel.fail = lambda number, op: errno.EIO if op.key.kind == GATEWAY else 0
    world.reach(EXPOSED)
    assert [key.kind for key in world.reconciler.failures] == [GATEWAY]
    assert not any(key.kind in (FORWARDING, GUEST_ROUTE) for key in world.kernel.objects)
    world.kernel.fail = lambda number, op: 0
    world.later(1.0)
    world.assert_holds(EXPOSED)


def test_an_ipv6_address_that_changes_its_length_goes_first() -> None:
    """The kernel takes the second one for a change of the first."""
    world = World()
    world.reach(EXPOSED)
    changed = world.reach(replace(EXPOSED, exposed=exposed("10.32.0.200/16", "fd00::200/80")))
    addresses = [(op.verb, op.key.item[-1]) for op in changed if op.key.kind == HOST_ADDRESS]
    assert addresses == [(DELETE, 64), (ADD, 80)]


def test_what_is_not_ours_stays() -> None:
    """An address, a default route, forwarding that somebody else set; also when everything of ours is removed."""
    theirs: dict[Key, Value] = {
        Key(HOST_ADDRESS, "weft", b"\xc0\x00\x02\x01\x18"): HostAddress(ours=False),
        Key(FORWARDING, "weft", b"ip"): Forwarding(ours=False),
        Key(GUEST_ROUTE, "vw1", b"ip"): DefaultRoute(None, others=True),
    }
    world = World()
    world.reach(DESIRED)
    world.kernel.objects.update(theirs)
    for desired in (DESIRED, EXPOSED, DESIRED):
        world.reach(desired)
        assert theirs.items() <= world.kernel.objects.items()


def test_ours_goes_where_somebody_elses_default_route_appears() -> None:
    """And is not wanted again until that has gone."""
    world = World()
    world.reach(EXPOSED)
    key = Key(GUEST_ROUTE, "vw1", b"ip")
    world.kernel.meddle(key, DefaultRoute(V4, others=True))
    assert [(op.verb, op.key) for op in world.settle()] == [(REPLACE, key)]
    world.kernel.meddle(key, DefaultRoute(None, others=True))
    assert world.settle() == []
    world.kernel.meddle(key, None)
    assert [(op.verb, op.key) for op in world.settle()] == [(ADD, key)]


def test_teardown_takes_all_of_it_back() -> None:
    """Before the bridge goes."""
    kernel = MemoryKernel()
    world = World()
    world.reach(EXPOSED)
    kernel.objects = {
        key: value for key, value in world.kernel.objects.items() if key.kind not in (GUEST_ROUTE, GUEST_ADDRESS)
    }
    teardown(kernel)
    assert {key for key in kernel.objects if key.kind not in (UP, LINK)} == set()
    assert {op.key.kind for op in kernel.operations} >= {HOST_ADDRESS, FORWARDING, GATEWAY}


@pytest.mark.parametrize(
    ("key", "value", "number", "text"),
    [
        (Key(HOST_ADDRESS, "weft", address_item(ip_interface("fd00::1/64"))), HostAddress(), errno.EOPNOTSUPP,
         "cannot make address fd00::1/64 of weft: no; this kernel has no IPv6: expose no IPv6 address"),
        (Key(FORWARDING, "weft", b"ip6"), Forwarding(), errno.EROFS,
         "cannot make forwarding of IPv6: no; /proc/sys is read-only here: set the sysctl yourself, outside of this "
         "container"),
        (Key(GATEWAY, "weft"), Gateway(()), errno.EIO,
         "cannot make masquerade rules: no; load the kernel's NAT with 'modprobe nft_masq', or expose "
         "--without-masquerade"),
        (Key(GUEST_ROUTE, "vw1", b"ip"), DefaultRoute(V4), errno.ENETUNREACH,
         "cannot make default route of vw1 (IPv4): no"),
    ],
)  # fmt: skip
def test_refusals_name_the_thing(key: Key, value: Value, number: int, text: str) -> None:
    """One line each."""
    assert text_of(KernelError(number, Operation(ADD, key, value), "no")) == text


def test_accept_rules_are_named_by_their_chain() -> None:
    """Whichever way they open."""
    assert describe(Key(ACCEPT, "weft", b"ip6 out"), True) == "accept rule in ip6 filter FORWARD"
