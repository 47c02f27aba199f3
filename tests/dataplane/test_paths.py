"""Two paths to every peer: moving between the VXLAN device and the sleeve's TAP, and doing without either."""

from __future__ import annotations

import errno
from dataclasses import replace

from dataplane.desired import SLEEVE, Desired
from dataplane.kernel import ADD, ANNOUNCE, DELETE, REPLACE, Operation
from dataplane.objects import BRIDGE_FDB, FLOOD, LINK, PORT, VXLAN_FDB, Key, OtherLink, Tap, Value
from dataplane.reconcile import RETRY_LIMIT_S
from tests.dataplane.world import DESIRED, SEGMENT, SEGMENT6, World, by_sleeve, endpoint, mac, peer, underlay

BY_VXLAN = Desired(SEGMENT, peers=(peer(2), peer(3)), endpoints=(endpoint(11), endpoint(12, 3)))
MOVED = replace(BY_VXLAN, peers=(peer(2, SLEEVE), peer(3)), endpoints=(endpoint(11, 2, SLEEVE), endpoint(12, 3)))
BRIDGE_OF_2 = Key(BRIDGE_FDB, "weft", peer(2).bridge_mac)
CONTAINER_OF_2 = Key(BRIDGE_FDB, "weft", mac(11))
OVER_IPV4 = Desired(SEGMENT6, peers=(peer(2, spare=6), peer(3)), endpoints=(endpoint(11), endpoint(12, 3)))
OVER_IPV6 = replace(OVER_IPV4, peers=(peer(2, version=6, spare=4), peer(3)),
                    endpoints=(endpoint(11, version=6), endpoint(12, 3)))  # fmt: skip
FLOOD_TO_2 = Key(FLOOD, "weft-vx", bytes((10, 9, 0, 2)))


def changes(operations: list[Operation]) -> list[tuple[str, Key, Value | None]]:
    return [(op.verb, op.key, op.value) for op in operations if op.verb != ANNOUNCE]


def test_a_move_is_one_replacement_for_each_mac_there_and_back() -> None:
    """No entry is missing at any moment, nothing else is touched, and broadcasts change over after the frames."""
    world = World()
    world.reach(BY_VXLAN)
    there = changes(world.reach(MOVED))
    assert set(there[:2]) == {(REPLACE, BRIDGE_OF_2, "weft-tap"), (REPLACE, CONTAINER_OF_2, "weft-tap")}
    assert there[2:] == [(DELETE, FLOOD_TO_2, None)]
    back = changes(world.reach(BY_VXLAN))
    assert set(back[:2]) == {(REPLACE, BRIDGE_OF_2, "weft-vx"), (REPLACE, CONTAINER_OF_2, "weft-vx")}
    assert back[2:] == [(ADD, FLOOD_TO_2, True)]
    assert world.kernel.harm == []


def test_a_move_between_the_ip_versions_is_entry_then_bridge_then_broadcasts_then_the_old_entry() -> None:
    """There and back; the peer's own entries stay, for probes, and at no moment is it in both flood lists."""
    world = World()
    world.reach(OVER_IPV4)
    items = {version: underlay(2, version).packed for version in (4, 6)}
    first, second = ("weft-vx", 4), ("weft-vx6", 6)
    for wanted, old, new in ((OVER_IPV6, first, second), (OVER_IPV4, second, first)):
        operations = changes(world.reach(wanted))
        assert operations[0] == (ADD, Key(VXLAN_FDB, new[0], mac(11)), items[new[1]])
        assert set(operations[1:3]) == {(REPLACE, BRIDGE_OF_2, new[0]), (REPLACE, CONTAINER_OF_2, new[0])}
        assert operations[3:] == [
            (DELETE, Key(FLOOD, old[0], items[old[1]]), None),
            (ADD, Key(FLOOD, new[0], items[new[1]]), True),
            (DELETE, Key(VXLAN_FDB, old[0], mac(11)), None),
        ]
        world.assert_holds(wanted)
    assert world.kernel.harm == []


def test_a_device_for_ipv6_that_cannot_be_made_leaves_frames_on_the_old_way() -> None:
    """One fault; and everything moves by itself once it can be made."""
    world = World()
    world.reach(replace(OVER_IPV4, segment=SEGMENT))
    broken = [True]
    world.kernel.fail = lambda number, op: errno.EAFNOSUPPORT if broken[0] and op.key == Key(LINK, "weft-vx6") else 0
    world.reach(OVER_IPV6)
    assert list(world.reconciler.failures) == [Key(LINK, "weft-vx6")]
    assert world.kernel.objects[CONTAINER_OF_2] == "weft-vx"
    assert Key(VXLAN_FDB, "weft-vx", mac(11)) in world.kernel.objects
    broken[0] = False
    world.later(RETRY_LIMIT_S)
    world.assert_holds(OVER_IPV6)
    assert world.kernel.harm == [] and dict(world.reconciler.failures) == {}


def test_a_destination_that_becomes_known_or_lost_in_the_sleeve_moves_nobody() -> None:
    """It is entered for later, and withdrawn; on the way to VXLAN it comes first, on the way back it goes last."""
    unknown = replace(BY_VXLAN, endpoints=(endpoint(11, None, SLEEVE),))
    world = World()
    world.reach(unknown)
    entry = Key(VXLAN_FDB, "weft-vx", mac(11))
    known = replace(unknown, endpoints=(endpoint(11, 2, SLEEVE),))
    assert changes(world.reach(known)) == [(ADD, entry, bytes((10, 9, 0, 2)))]
    assert changes(world.reach(unknown)) == [(DELETE, entry, None)]
    straight = replace(unknown, endpoints=(endpoint(11),))
    assert [key for _, key, _ in changes(world.reach(straight))] == [entry, CONTAINER_OF_2]
    assert [key for _, key, _ in changes(world.reach(unknown))] == [CONTAINER_OF_2, entry]
    assert world.kernel.harm == []


def test_a_tap_that_was_removed_comes_back_with_all_that_was_behind_it() -> None:
    """The VXLAN entries need not be touched for that."""
    world = World()
    world.reach(by_sleeve(DESIRED))
    world.kernel.meddle(Key(LINK, "weft-tap"), None)
    assert BRIDGE_OF_2 not in world.kernel.objects
    assert not [op for op in world.settle() if op.key.kind == VXLAN_FDB]
    world.assert_holds(by_sleeve(DESIRED))


def test_a_tap_that_cannot_be_made_is_one_fault_and_leaves_the_entries_where_they_were() -> None:
    """What is new waits, and is dropped meanwhile; as soon as there is a TAP, everything is behind it."""
    world = World()
    world.reach(replace(BY_VXLAN, segment=replace(SEGMENT, tap=False)))
    broken = [True]
    world.kernel.fail = lambda number, op: errno.ENOENT if broken[0] and op.key == Key(LINK, "weft-tap") else 0
    wanted = replace(MOVED, endpoints=(*MOVED.endpoints, endpoint(14, 2, SLEEVE)))
    world.reach(wanted)
    world.later(RETRY_LIMIT_S)
    assert list(world.reconciler.failures) == [Key(LINK, "weft-tap")]
    assert world.kernel.objects[CONTAINER_OF_2] == "weft-vx"
    assert Key(BRIDGE_FDB, "weft", mac(14)) not in world.kernel.objects
    broken[0] = False
    world.later(RETRY_LIMIT_S)
    world.assert_holds(wanted)
    assert world.kernel.harm == [] and dict(world.reconciler.failures) == {}


def test_a_device_of_another_sort_where_the_tap_should_be_leaves_vxlan_alone() -> None:
    """One fault; what needs no TAP is complete."""
    world = World({Key(LINK, "weft-tap"): OtherLink("dummy")})
    world.reach(MOVED)
    assert [failure.error.code for failure in world.reconciler.failures.values()] == ["name-taken"]
    assert world.kernel.objects[Key(BRIDGE_FDB, "weft", mac(12))] == "weft-vx"
    assert not [op for op in world.kernel.operations if op.key.device == "weft-tap"]
    world.kernel.meddle(Key(LINK, "weft-tap"), None)
    world.settle()
    world.later(RETRY_LIMIT_S)
    world.assert_holds(MOVED)


def test_with_a_secret_the_plain_device_goes_before_anything_is_moved() -> None:
    """Also over a host that carried plain VXLAN; nothing of it is left, and the containers are behind the TAP."""
    for before, devices in ((BY_VXLAN, {"weft-vx"}), (OVER_IPV6, {"weft-vx", "weft-vx6"})):
        world = World()
        world.reach(before)
        sealed = replace(by_sleeve(before), segment=replace(before.segment, vxlan_port=None))
        operations = world.reach(replace(sealed, settled=False))[: len(devices)]
        assert {(op.verb, op.key) for op in operations} == {(DELETE, Key(LINK, name)) for name in devices}
        world.reach(sealed)
        world.assert_holds(sealed)


def test_while_unsettled_what_an_earlier_life_put_behind_the_tap_stays() -> None:
    """Other hosts' containers are not cut off because their hosts have not been heard yet."""
    world = World()
    world.reach(by_sleeve(BY_VXLAN))
    bare = Desired(SEGMENT, settled=False)
    assert changes(world.reach(bare)) == []
    assert world.kernel.objects[CONTAINER_OF_2] == "weft-tap"
    world.reach(replace(bare, settled=True))
    world.assert_holds(Desired(SEGMENT))


def test_the_remains_of_a_renamed_tap_are_removed_and_a_new_one_made() -> None:
    """As the kernel tells it: the name went, another one came."""
    world = World()
    world.reach(by_sleeve(BY_VXLAN))
    world.kernel.meddle(Key(LINK, "weft-tap"), None)
    world.kernel.meddle(Key(LINK, "foo"), Tap(1450))
    world.kernel.meddle(Key(PORT, "foo"), world.kernel.objects[Key(PORT, "weft-vx")])
    world.settle()
    world.assert_holds(by_sleeve(BY_VXLAN))
