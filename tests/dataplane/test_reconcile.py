"""The difference and its order, against a kernel in memory that remembers every harmful moment."""

from __future__ import annotations

import errno
from dataclasses import replace
from ipaddress import ip_address, ip_interface

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataplane.desired import NOWHERE, SLEEVE, VXLAN, Desired, Exposed
from dataplane.expansion import expand
from dataplane.kernel import ADD, ANNOUNCE, DELETE, REPLACE, Operation
from dataplane.objects import (
    ACCEPT,
    BRIDGE_FDB,
    FLOOD,
    GUARD,
    GUEST,
    GUEST_ADDRESS,
    LINK,
    NEIGHBOUR,
    OFFLOADS,
    PORT,
    UP,
    VXLAN_FDB,
    Bridge,
    GuestAddress,
    Key,
    Odd,
    Offloads,
    OtherLink,
    PortFlags,
    Tap,
    Unavailable,
    Value,
    Veth,
    Vxlan,
    fits,
)
from dataplane.reconcile import (
    NEWCOMERS_ANNOUNCED_MAX,
    REMEMBERED_MACS,
    REPAIR_BURST,
    REPAIR_WINDOW_S,
    RETRY_FIRST_S,
    RETRY_LIMIT_S,
    Reconciler,
)
from tests.dataplane.world import DESIRED, EXPOSED, SEGMENT, SEGMENT6, World, by_sleeve, endpoint, mac, peer, port

OVER_IPV6 = replace(
    DESIRED,
    segment=SEGMENT6,
    peers=(peer(2, version=6, spare=4), peer(3)),
    groups=((endpoint(11, version=6), endpoint(12, 3), endpoint(13, None)),),
)


def test_an_empty_kernel_becomes_what_is_wanted_without_a_harmful_moment() -> None:
    """In one pass; a second look changes nothing."""
    world = World()
    world.reach(DESIRED)
    world.assert_holds(DESIRED)
    assert world.kernel.harm == []
    world.list_all()
    assert world.settle() == []


def test_nothing_wanted_leaves_nothing() -> None:
    """Teardown is reconciling towards nothing, in the order that harms nobody."""
    world = World()
    world.reach(DESIRED)
    wanted = expand(DESIRED)
    world.reconciler.want(replace(wanted, objects={}, gone=list(wanted.objects)))
    world.settle()
    assert world.kernel.objects == {} and world.kernel.harm == []


def test_the_order_of_a_unicast_path_is_vxlan_first_and_last() -> None:
    """Added before, deleted after the bridge entry of the same MAC; a new destination is one replacement."""
    world = World()
    world.reach(replace(DESIRED, groups=()))
    made = world.reach(replace(DESIRED, groups=((endpoint(11),),)))
    assert [(op.verb, op.key.kind) for op in made] == [
        (ADD, VXLAN_FDB), (ADD, BRIDGE_FDB), (ADD, NEIGHBOUR), (ADD, NEIGHBOUR),
        (ANNOUNCE, NEIGHBOUR), (ANNOUNCE, NEIGHBOUR),
    ]  # fmt: skip
    moved = world.reach(replace(DESIRED, groups=((endpoint(11, 3),),)))
    assert [(op.verb, op.key.kind) for op in moved] == [(REPLACE, VXLAN_FDB)]
    gone = world.reach(replace(DESIRED, groups=()))
    assert [(op.verb, op.key.kind) for op in gone] == [
        (DELETE, NEIGHBOUR), (DELETE, NEIGHBOUR), (DELETE, BRIDGE_FDB), (DELETE, VXLAN_FDB),
    ]  # fmt: skip


def test_the_first_act_without_vxlan_is_to_remove_the_device() -> None:
    """Before anything else, even when other hosts' state is unknown."""
    world = World()
    world.reach(DESIRED)
    segment = replace(SEGMENT, vxlan_port=None, mtu=1400)
    operations = world.reach(replace(DESIRED, segment=segment, settled=False, ports=(port(1), port(2))))
    assert (operations[0].verb, operations[0].key) == (DELETE, Key(LINK, "weft-vx"))
    assert Key(LINK, "weft-vx") not in world.kernel.objects


def test_a_stray_ipv6_vxlan_device_is_removed() -> None:
    """One of a life in which this host had IPv6."""
    world = World({Key(LINK, "weft-vx6"): Vxlan(7, 6784, 1430, ipv6=True)})
    world.reach(DESIRED)
    world.assert_holds(DESIRED)


def test_while_unsettled_nothing_of_other_hosts_is_deleted() -> None:
    """Entries, neighbours, flood destinations stay; our own ports go; then all goes once it is settled."""
    world = World()
    world.reach(replace(DESIRED, ports=(port(1), port(2))))
    bare = Desired(SEGMENT, (port(1),), settled=False)
    remote = dict(expand(replace(DESIRED, ports=())).objects)
    operations = world.reach(bare)
    assert {op.key.device for op in operations if op.verb == DELETE} == {"vw2"}
    assert remote.items() <= {**world.kernel.objects, Key(ACCEPT, "weft", b"ip"): True,
                              Key(ACCEPT, "weft", b"ip6"): True}.items()  # fmt: skip
    world.reach(replace(bare, settled=True))
    world.assert_holds(bare)
    assert world.kernel.harm == []


def test_an_endpoint_that_moves_here_and_away_again_is_replaced() -> None:
    """Remote to local and back; no moment at which its frames go to every peer."""
    world = World()
    away, here = replace(DESIRED, groups=((endpoint(1),),), ports=()), replace(DESIRED, groups=())
    for desired in (away, here, away, here):
        world.reach(desired)
        world.assert_holds(desired)
    assert world.kernel.harm == []


def test_a_changed_mac_is_announced_directly_or_after_a_gap() -> None:
    """Once for each address, after the entries are in place; an unchanged one is not."""
    world = World()
    world.reach(DESIRED)
    new = replace(endpoint(11), mac=mac(99))
    operations = world.reach(replace(DESIRED, groups=((new, *DESIRED.endpoints[1:]),)))
    announced = [op for op in operations if op.verb == ANNOUNCE]
    assert [(op.key.item, op.value, op.old) for op in announced] == [
        (address.packed, mac(99), mac(11)) for address in new.addresses
    ]
    assert operations.index(announced[0]) > max(
        index for index, op in enumerate(operations) if op.key.kind in (BRIDGE_FDB, NEIGHBOUR) and op.verb == ADD
    )
    world.reach(replace(DESIRED, groups=()))
    back = world.reach(DESIRED)
    assert len([op for op in back if op.verb == ANNOUNCE]) == 2
    world.reach(replace(DESIRED, groups=()))
    assert [op for op in world.reach(DESIRED) if op.verb == ANNOUNCE] == []


def test_a_newcomer_is_announced_for_whoever_asked_too_early() -> None:
    """A container whose question came before the answer was known asks again only after a second."""
    world = World()
    world.reach(replace(DESIRED, groups=()))
    made = world.reach(replace(DESIRED, groups=((endpoint(11),),)))
    assert [(op.key.item, op.value) for op in made if op.verb == ANNOUNCE] == [
        (address.packed, mac(11)) for address in endpoint(11).addresses
    ]


def test_a_whole_mesh_of_newcomers_is_not_announced() -> None:
    """Beyond the limit nobody waits for any one of them, and every container here would hear them all."""
    many = tuple(endpoint(number) for number in range(20, NEWCOMERS_ANNOUNCED_MAX + 21))
    world = World()
    world.reach(replace(DESIRED, groups=()))
    made = world.reach(replace(DESIRED, groups=(many,)))
    assert [op for op in made if op.verb == ANNOUNCE] == []


def test_last_macs_are_remembered_up_to_their_limit() -> None:
    """The oldest is forgotten: then nobody announces it, and caches find out by themselves."""
    reconciler = Reconciler()
    for number in range(REMEMBERED_MACS + 5):
        key = Key(NEIGHBOUR, "weft", number.to_bytes(4, "big"))
        reconciler.observe(key, mac(1))
        reconciler.observe(key, None)
    remembered = reconciler._last_macs
    assert len(remembered) == REMEMBERED_MACS
    assert Key(NEIGHBOUR, "weft", (4).to_bytes(4, "big")) not in remembered


MISFITS: list[tuple[Key, Value, list[str]]] = [
    (Key(LINK, "weft-vx"), Vxlan(8, 6784, 1450), [DELETE, ADD]),
    (Key(LINK, "weft-vx"), Vxlan(7, 6784, 1450, "learning"), [DELETE, ADD]),
    (Key(LINK, "weft-vx"), Vxlan(7, 6784, 1300), [REPLACE]),
    (Key(OFFLOADS, "weft-vx"), Offloads(("vxlan-checksum",)), [REPLACE]),
    (Key(LINK, "weft-tap"), Tap(1450, oddity="several queues"), [DELETE, ADD]),
    (Key(LINK, "weft-tap"), Tap(1300), [REPLACE]),
    (Key(LINK, "weft-tap"), Tap(1450, queue_packets=500), [REPLACE]),
    (Key(PORT, "weft-tap"), PortFlags("weft", True, False, False), [REPLACE]),
    (Key(LINK, "vw1"), Veth(1450, (4, 9)), [DELETE, ADD]),
    (Key(LINK, "vw1"), Veth(1300, (4, 1000)), [REPLACE]),
    (Key(LINK, "weft"), Bridge(SEGMENT.bridge_mac, 1450, snooping=True), [REPLACE]),
    (Key(PORT, "vw1"), PortFlags("weft", False, False, False), [REPLACE]),
    (Key(PORT, "vw1"), PortFlags("other", False, False, True), [REPLACE]),
    (Key(BRIDGE_FDB, "weft", mac(11)), Odd("weft-vx"), [REPLACE]),
    (Key(BRIDGE_FDB, "weft", mac(11)), Odd("weft-vx", sticks=True), [DELETE, ADD]),
    (Key(BRIDGE_FDB, "weft", mac(11)), "vw1", [REPLACE]),
    (Key(VXLAN_FDB, "weft-vx", mac(11)), Odd("weft-vx"), [REPLACE]),
    (Key(NEIGHBOUR, "weft", ip_address("10.32.0.11").packed), mac(77), [REPLACE]),
    (Key(ACCEPT, "weft", b"ip"), False, [REPLACE]),
]


@pytest.mark.parametrize(("key", "found", "verbs"), MISFITS, ids=lambda value: str(value)[:40])
def test_what_differs_is_changed_or_made_anew(key: Key, found: Value, verbs: list[str]) -> None:
    """By the fewest operations, and by those only."""
    world = World()
    world.reach(DESIRED)
    world.kernel.meddle(key, found)
    operations = [op for op in world.settle() if op.verb != ANNOUNCE and op.key == key]
    assert [op.verb for op in operations] == verbs
    world.assert_holds(DESIRED)


@pytest.mark.parametrize(
    ("key", "found"),
    [
        (Key(GUEST_ADDRESS, "vw1", bytes((192, 0, 2, 1, 24))), GuestAddress(ours=False)),
        (Key(BRIDGE_FDB, "weft", mac(88)), Odd("tap0")),
        (Key(LINK, "weft-vx6"), OtherLink("tun")),
        (Key(ACCEPT, "weft", b"bridge"), False),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_others_made_is_left_alone(key: Key, found: Value) -> None:
    """By event and by listing."""
    world = World()
    world.reach(DESIRED)
    world.kernel.meddle(key, found)
    assert world.settle() == []
    world.list_all()
    assert world.settle() == []


def test_a_device_of_another_sort_under_our_name_is_a_fault_and_nothing_else() -> None:
    """What needs the device waits; when it is gone everything comes."""
    world = World({Key(LINK, "weft"): OtherLink("tun")})
    assert world.reach(DESIRED) == []
    assert [(key, failure.error.code) for key, failure in world.reconciler.failures.items()] == [
        (Key(LINK, "weft"), "name-taken")
    ]
    world.kernel.meddle(Key(LINK, "weft"), None)
    world.settle()
    world.later(RETRY_FIRST_S)
    world.assert_holds(DESIRED)


def test_what_this_host_cannot_have_is_not_asked_for() -> None:
    """A listing that says so is enough."""
    world = World()
    world.reach(DESIRED)
    world.kernel.meddle(Key(GUARD, "weft-vx"), Unavailable("no nft"))
    assert world.settle() == []


def test_a_missing_device_is_one_fault_and_its_dependents_wait() -> None:
    """Not ten thousand; and they come by themselves once it can be made."""
    world = World()
    world.kernel.fail = lambda number, op: errno.EOPNOTSUPP if isinstance(op.value, Vxlan) else 0
    world.reach(DESIRED)
    assert list(world.reconciler.failures) == [Key(LINK, "weft-vx")]
    assert not [op for op in world.kernel.operations if op.key.kind in (VXLAN_FDB, FLOOD)]
    assert not [op for op in world.kernel.operations if op.value == "weft-vx"]
    world.kernel.fail = lambda number, op: 0
    world.later(RETRY_FIRST_S)
    world.assert_holds(DESIRED)
    assert world.kernel.harm == []


def test_an_announcement_is_not_made_for_an_entry_that_was_refused() -> None:
    """Containers would be sent to a MAC that nobody answers for."""
    world = World()
    world.reach(DESIRED)
    world.kernel.fail = lambda number, op: errno.ENOSPC if op.key.kind == NEIGHBOUR and op.verb == REPLACE else 0
    operations = world.reach(replace(DESIRED, groups=((replace(endpoint(11), mac=mac(99)),),)))
    assert [op for op in operations if op.verb == ANNOUNCE] == []


def test_what_waited_for_a_port_that_is_wanted_no_more_is_forgotten() -> None:
    """However many attaches fail, nothing grows."""
    world = World()
    world.kernel.fail = lambda number, op: errno.ENOSPC if isinstance(op.value, Veth) else 0
    for number in range(1, 20):
        world.reach(replace(DESIRED, ports=(port(number),)))
        assert set(world.reconciler._waiting) == {Key(LINK, f"vw{number}"), Key(PORT, f"vw{number}"),
                                                  Key(GUEST, f"vw{number}")}  # fmt: skip
    world.reach(Desired(SEGMENT))
    assert world.reconciler._waiting == {} and dict(world.reconciler.failures) == {}


class Unwalked(dict[Key, Value]):
    """Answers questions about one key, and is not to be looked through."""

    def __iter__(self):  # type: ignore[no-untyped-def]
        raise AssertionError("looked at everything")

    keys = items = values = __iter__  # type: ignore[assignment]


def test_a_change_looks_at_what_changed_and_not_at_everything() -> None:
    """An endpoint, a port that comes and goes, what waits for a device, something that somebody else did."""
    world = World()
    world.reach(DESIRED)
    world.reconciler._actual = Unwalked(world.reconciler._actual)
    world.reconciler._wanted = Unwalked(world.reconciler._wanted)
    for desired in (
        replace(DESIRED, groups=(*DESIRED.groups, (endpoint(14),))),
        replace(DESIRED, ports=(port(1), port(2))),
        replace(DESIRED, ports=(port(2),), peers=(peer(2),)),
        DESIRED,
    ):
        world.want(desired)
        assert world.settle() != []
        world.assert_holds(desired)
    world.kernel.meddle(Key(BRIDGE_FDB, "weft", mac(11)), None)
    world.kernel.meddle(Key(LINK, "vw1"), None)
    assert world.settle() != []
    world.assert_holds(DESIRED)


def test_with_a_container_port_goes_what_was_under_it_and_nothing_else() -> None:
    """Also a MAC that had come there from elsewhere, and not one that has gone elsewhere since."""
    world = World()
    world.reach(replace(DESIRED, ports=(port(1), port(2))))
    here, there = Key(BRIDGE_FDB, "weft", mac(11)), Key(BRIDGE_FDB, "weft", mac(1))
    world.reconciler.observe(here, "vw1")
    world.reconciler.observe(there, "vw2")
    before = set(world.reconciler._actual)
    world.reconciler.observe(Key(LINK, "vw1"), None)
    gone = before - set(world.reconciler._actual)
    assert gone == {key for key in before if key.device == "vw1"} | {here}
    world.reconciler.observe(Key(LINK, "vw2"), None)
    assert there not in world.reconciler._actual
    assert not [key for key in world.reconciler._actual if key.device in ("vw1", "vw2")]


def test_a_kernel_without_ipv6_has_no_ipv6_neighbours_and_no_fault() -> None:
    """Its containers cannot have IPv6 addresses either."""
    world = World()
    world.kernel.fail = lambda number, op: errno.EAFNOSUPPORT if len(op.key.item) == 16 else 0
    world.reach(replace(DESIRED, ports=()))
    assert dict(world.reconciler.failures) == {}
    assert Key(NEIGHBOUR, "weft", ip_address("10.32.0.11").packed) in world.kernel.objects


def test_a_path_whose_vxlan_entry_is_refused_gets_no_bridge_entry() -> None:
    """Its frames would go to every peer."""
    world = World()
    world.kernel.fail = lambda number, op: errno.ENOSPC if op.key.kind == VXLAN_FDB and op.key.item == mac(11) else 0
    world.reach(DESIRED)
    assert Key(BRIDGE_FDB, "weft", mac(11)) not in world.kernel.objects
    assert Key(BRIDGE_FDB, "weft", mac(12)) in world.kernel.objects


def test_a_bridge_entry_that_cannot_be_deleted_keeps_its_vxlan_entry() -> None:
    """The other half of the same rule."""
    world = World()
    world.reach(DESIRED)
    world.kernel.fail = lambda number, op: errno.EBUSY if op.verb == DELETE and op.key.kind == BRIDGE_FDB else 0
    world.reach(replace(DESIRED, groups=()))
    assert Key(VXLAN_FDB, "weft-vx", mac(11)) in world.kernel.objects and world.kernel.harm == []
    world.kernel.fail = lambda number, op: 0
    world.later(RETRY_FIRST_S)
    world.assert_holds(replace(DESIRED, groups=()))


def test_a_port_without_its_flags_is_not_brought_up() -> None:
    """Up without them it would learn, flood, and let forged MACs pass."""
    world = World()
    world.kernel.fail = lambda number, op: errno.EOPNOTSUPP if op.key == Key(PORT, "vw1") else 0
    world.reach(DESIRED)
    assert Key(UP, "vw1") not in world.kernel.objects and Key(UP, "weft-vx") in world.kernel.objects


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EPERM, errno.ENOENT, errno.EEXIST, errno.ENODEV, errno.EINVAL])
@pytest.mark.parametrize(
    "target",
    [DESIRED, Desired(SEGMENT), by_sleeve(DESIRED), EXPOSED, OVER_IPV6],
    ids=["making", "removing", "moving", "exposing", "over-ipv6"],
)
def test_whichever_operation_fails_the_next_try_converges(number: int, target: Desired) -> None:
    """The n-th, for every n and every sort of refusal; nobody is harmed, and then nothing is left to do."""
    n = 0
    while True:
        n += 1
        world = World()
        if target is not DESIRED:
            world.reach(DESIRED)
        asked = {len(world.kernel.operations) + n: number}

        def fail(count: int, operation: Operation, world: World = world, asked: dict[int, int] = asked) -> int:
            refusal = asked.pop(count, 0)
            if refusal in (errno.ENOENT, errno.ENODEV) and operation.verb == DELETE:
                world.kernel.meddle_unseen(operation.key, None)  # the kernel does not say this of what is there
            return refusal

        world.kernel.fail = fail
        world.reach(target)
        if asked:
            break  # there was no n-th operation
        for _ in range(3):
            world.later(RETRY_LIMIT_S)
        world.assert_holds(target)
        assert dict(world.reconciler.failures) == {} and world.kernel.harm == []
        world.list_all()
        assert world.settle() == []
    assert n > 5


def test_retries_back_off_to_their_limit_and_start_anew_after_success() -> None:
    """0.1 s, doubled each time, never more than 30 s."""
    world = World()
    broken = [True]
    world.kernel.fail = lambda number, op: errno.EPERM if broken[0] and op.key == Key(UP, "vw1") else 0
    world.reach(DESIRED)
    delays = []
    for _ in range(12):
        due = world.reconciler.next_retry()
        assert due is not None
        delays.append(round(due - world.now, 6))
        tried = len(world.kernel.operations)
        assert world.later((due - world.now) * 0.9) == [] and len(world.kernel.operations) == tried
        world.later(due - world.now)
        assert len(world.kernel.operations) == tried + 1
    assert delays[:4] == [0.1, 0.2, 0.4, 0.8] and delays[-1] == RETRY_LIMIT_S
    broken[0] = False
    world.later(RETRY_LIMIT_S)
    assert world.reconciler.next_retry() is None
    broken[0] = True
    world.kernel.meddle(Key(UP, "vw1"), None)
    world.settle()
    assert world.reconciler.failures[Key(UP, "vw1")].delay_s == RETRY_FIRST_S


def test_one_who_keeps_undoing_is_held_off_after_a_burst() -> None:
    """Then once in a window, with a fault that says so."""
    world = World()
    world.reach(DESIRED)
    key = Key(NEIGHBOUR, "weft", ip_address("10.32.0.11").packed)
    repairs = 0
    for _ in range(REPAIR_BURST + 5):
        world.kernel.meddle(key, None)
        repairs += len(world.settle())
    assert repairs == REPAIR_BURST and world.reconciler.repaired == REPAIR_BURST
    assert world.reconciler.failures[key].error.code == "contested"
    world.later(REPAIR_WINDOW_S)
    world.assert_holds(DESIRED)
    assert dict(world.reconciler.failures) == {}


def test_what_was_taken_away_and_is_wanted_again_was_not_fought_for() -> None:
    """A container that is started over and over has an interface of the same name each time."""
    world = World()
    world.reach(DESIRED)
    key = Key(PORT, "vw1")
    for _ in range(REPAIR_BURST + 5):
        world.kernel.meddle(key, None)
        assert world.settle()
        world.reach(replace(DESIRED, ports=()))
        world.reach(DESIRED)
    assert dict(world.reconciler.failures) == {}


def test_what_is_fought_for_is_listed_anew_at_a_pace() -> None:
    """The kernel may be as wanted again, and have said nothing of it."""
    world = World()
    world.reach(DESIRED)
    key = Key(NEIGHBOUR, "weft", ip_address("10.32.0.11").packed)
    for _ in range(REPAIR_BURST + 1):
        world.kernel.meddle(key, None)
        world.settle()
    reconciler = world.reconciler
    reconciler.take_stale()
    looks = 0
    for step in range(40):
        reconciler.retry(100.0 + step / 10)
        looks += "tables" in reconciler.take_stale()
        due_s = reconciler.next_retry()
        assert due_s is not None and due_s <= 100.0 + step / 10 + 1.0
    assert looks == 4


def test_who_puts_it_back_himself_is_not_held_off() -> None:
    """Changed and changed back before we looked, however often."""
    world = World()
    world.reach(DESIRED)
    key = Key(NEIGHBOUR, "weft", ip_address("10.32.0.11").packed)
    for _ in range(REPAIR_BURST):
        world.kernel.meddle(key, None)
        world.settle()
    world.kernel.meddle(key, None)
    world.kernel.meddle(key, mac(11))
    assert world.settle() == [] and dict(world.reconciler.failures) == {}


def test_a_change_of_the_bridge_makes_the_tables_untrusted() -> None:
    """The kernel may have emptied the neighbour table in silence; a new MTU does not do that."""
    world = World()
    world.reach(DESIRED)
    link = world.kernel.objects[Key(LINK, "weft")]
    assert isinstance(link, Bridge)
    world.reconciler.observe(Key(LINK, "weft"), link._replace(mtu=1300))
    assert world.reconciler.take_stale() == frozenset()
    world.kernel.meddle(Key(LINK, "weft"), link._replace(mac=mac(55)))
    world.settle()
    world.assert_holds(DESIRED)


def test_an_event_about_one_object_looks_at_that_object_only() -> None:
    """The plan after it has at most its operations."""
    world = World()
    world.reach(replace(DESIRED, groups=(tuple(endpoint(n) for n in range(10, 250)),)))
    key = Key(NEIGHBOUR, "weft", ip_address("10.32.0.77").packed)
    world.kernel.meddle(key, None)
    for change in world.kernel.wait(0.0).changes:
        world.reconciler.observe(*change)
    assert list(world.reconciler._dirty) == [key]


NUMBERS = st.integers(1, 6)
VERSIONS = st.sampled_from([4, 6])
VIAS = st.sampled_from([VXLAN, SLEEVE, NOWHERE])
DESIREDS = st.builds(
    Desired,
    segment=st.sampled_from(
        [
            SEGMENT,
            SEGMENT6,
            replace(SEGMENT6, mtu=1400),
            replace(SEGMENT6, vxlan_port=None),
            replace(SEGMENT, tap=False),
        ]
    ),
    ports=st.lists(st.builds(port, NUMBERS, st.sampled_from([1000, 1001])), max_size=3).map(
        lambda ports: tuple({port.ifname: port for port in ports}.values())
    ),
    peers=st.lists(st.builds(peer, NUMBERS, VIAS, VERSIONS, VERSIONS), max_size=3).map(tuple),
    groups=st.lists(
        st.lists(st.builds(endpoint, NUMBERS, st.sampled_from([None, 2, 3]), VIAS, VERSIONS), max_size=4).map(tuple),
        max_size=3,
    ).map(tuple),
    settled=st.booleans(),
    exposed=st.lists(
        st.builds(
            Exposed,
            st.sampled_from(["10.32.0.200/16", "10.32.0.201/24", "fd00::200/64", "fd00::200/96"]).map(ip_interface),
            st.booleans(),
        ),
        max_size=3,
        unique_by=lambda each: each.interface,
    ).map(tuple),
)


@given(st.lists(DESIREDS, min_size=1, max_size=5), st.data())
def test_any_sequence_of_wishes_and_meddling_ends_in_the_last_wish(wishes: list[Desired], data: st.DataObject) -> None:
    """And harms nobody on the way, as far as it is our doing."""
    world = World()
    for desired in wishes:
        world.reach(desired)
        assert world.kernel.harm == []
    there = sorted(world.kernel.objects, key=str)
    for key in data.draw(st.lists(st.sampled_from(there), max_size=6, unique=True) if there else st.just([])):
        if key in world.kernel.objects:
            world.kernel.meddle(key, None)
    world.settle()
    last = replace(wishes[-1], settled=True)
    world.reach(last)
    world.assert_holds(last)
    world.list_all()
    assert world.settle() == []


@given(DESIREDS, DESIREDS)
def test_the_plan_is_exactly_the_difference(before: Desired, after: Desired) -> None:
    """Every operation changes something, and no object is touched that already fits."""
    world = World()
    world.reach(replace(before, settled=True))
    fitting = {
        key: value for key, value in expand(after).objects.items()
        if key in world.kernel.objects and fits(value, world.kernel.objects[key])
    }  # fmt: skip
    deleted = {op.key.device for op in world.reach(after) if op.verb == DELETE and op.key.kind == LINK}
    touched = [op for op in world.kernel.operations if op.verb != ANNOUNCE]
    made = len(expand(before).objects)
    for operation in touched[made:]:
        gone_with_its_device = operation.key.device in deleted or operation.value in deleted
        assert operation.key not in fitting or gone_with_its_device or operation.verb == ADD
