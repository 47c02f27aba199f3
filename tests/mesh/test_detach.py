"""What becomes of attachments: detached, gone with their namespace, wanted twice at once, brought back by a launch."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path

import pytest

from dataplane.kernel import Fault
from dataplane.objects import BRIDGE_FDB, GUEST, GUEST_ADDRESS, LINK, NEIGHBOUR, Guest, Key
from mesh import attach as attach_module
from mesh.attachment import Attachment, attachment_from_json
from mesh.endpoints import derive_mac
from mesh.requests import ApiError
from tests.mesh.attach_world import ME, P, Q, World, attach, detach, refused, run, unwish, wish


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    made = World(tmp_path, monkeypatch)
    yield made
    made.store.close()


# Namespaces that end


def test_what_was_attached_to_a_process_that_ended_is_dropped(world: World) -> None:
    """Addresses are free again, and everybody hears it."""
    world.add_process(4711, 11)
    done, stays = attach(world, "4711", "10.32.0.1/16"), attach(world, "c2", "10.32.0.2/16")
    world.end_process(4711)
    world.kernel.vanished.add(done.ifname)
    run(world.attachments.vanished(frozenset({done.ifname, "vwother"})))
    assert world.attachments.all() == [stays]
    assert [row["id"] for row in world.on_disk()] == ["c2"]
    assert world.told[-1] == (done.ifname, None)
    assert Key(LINK, done.ifname) not in world.kernel.objects


def test_a_namespace_that_is_there_after_all_is_not_dropped(world: World) -> None:
    """The report was old news when its turn came."""
    done = attach(world, "c1", "10.32.0.1/16")
    run(world.attachments.vanished(frozenset({done.ifname})))
    assert world.attachments.all() == [done]


def test_with_a_full_disk_a_vanished_namespace_stays_until_later(world: World) -> None:
    """Believing what is not on disk would bring it back at the next launch."""
    world.add_process(4711, 11)
    done = attach(world, "4711", "10.32.0.1/16")
    world.end_process(4711)
    world.disk_full = True
    run(world.attachments.vanished(frozenset({done.ifname})))
    assert world.attachments.all() == [done]
    world.disk_full = False
    run(world.attachments.vanished(frozenset({done.ifname})))
    assert world.attachments.all() == []


def test_a_namespace_with_the_number_of_one_that_ended_is_another(world: World) -> None:
    """The kernel gives inode numbers again at once. The new container does not get the old one's addresses."""
    world.add_process(4711, 11)
    old = attach(world, "4711", "10.32.0.1/16", labels={"app": "old"})
    world.end_process(4711)
    world.add("c9", 11)
    new = attach(world, "c9", "10.32.0.9/16")
    assert world.attachments.all() == [new]
    assert (new.id, new.namespace, new.labels) == ("c9", "/run/netns/c9", ())
    assert set(world.kernel_addresses(new)) == {"10.32.0.9/16"}
    assert new.mac != old.mac
    assert world.table.holder(ip_address("10.32.0.1")) is None


def test_what_is_attached_to_a_process_ends_with_the_boot(world: World) -> None:
    """Namespaces of another boot bear other names under the same numbers."""
    world.add_process(4711, 11)
    attach(world, "4711", "10.32.0.1/16")
    world.boot = "another boot"
    assert world.launch().all() == []
    assert len(world.on_disk()) == 1, "reading changes nothing"
    world.boot = "this boot"
    assert len(world.launch().all()) == 1


# Detach


def test_detaching_everything_removes_the_interface(world: World) -> None:
    """From the kernel, the disk and the mesh."""
    run(world.publish())
    before = world.state()
    done = attach(world, "c1", "10.32.0.1/16", "fd00:32::1/64")
    assert detach(world, "c1") == ["10.32.0.1/16", "fd00:32::1/64"]
    assert world.told[-1] == (done.ifname, None)
    assert world.state() == before


def test_detaching_one_address_leaves_the_rest(world: World) -> None:
    """With the same MAC, even where it was made from the one that goes."""
    done = attach(world, "c1", "10.32.0.1/16", "10.32.0.2/16", labels={"app": "web"})
    assert detach(world, "c1", "10.32.0.1/24") == ["10.32.0.1/16"], "an address is found whatever length is given"
    (rest,) = world.attachments.all()
    assert rest == replace(done, bindings=done.bindings[1:])
    assert world.kernel_addresses(rest) == {"10.32.0.2/16": done.mac}
    assert world.table.holder(ip_address("10.32.0.1")) is None
    assert detach(world, "c1", "10.32.0.2/16") == ["10.32.0.2/16"]
    assert world.attachments.all() == []


def test_the_mac_of_a_first_address_that_went_stays_in_use(world: World) -> None:
    """Whoever attaches that address next gets another one."""
    first = attach(world, "c1", "10.32.0.1/16", "10.32.0.2/16")
    detach(world, "c1", "10.32.0.1/16")
    second = attach(world, "c2", "10.32.0.1/16")
    assert second.mac == derive_mac("weft", ip_address("10.32.0.1"), 1) != first.mac


def test_an_address_that_is_not_there_is_named(world: World) -> None:
    """With what is there, and nothing is taken."""
    attach(world, "c1", "10.32.0.1/16")
    work = world.attachments.detach(unwish("c1", "10.32.0.1/16", "10.32.0.9/16"))
    text = refused(world, work, "not-attached")
    assert "does not have 10.32.0.9; it has 10.32.0.1/16" in text


def test_what_is_not_attached_cannot_be_detached(world: World) -> None:
    """The line names what is."""
    assert "(attached: nothing is)" in refused(world, world.attachments.detach(unwish("c1")), "not-attached")
    attach(world, "c1", "10.32.0.1/16")
    assert "(attached: c1)" in refused(world, world.attachments.detach(unwish("c2")), "not-attached")


def test_a_namespace_that_is_gone_can_be_detached_by_its_name(world: World) -> None:
    """Or by its path, or where another namespace bears the name by now."""
    for target, successor in (("c1", False), ("/run/netns/c1", False), ("c1", True)):
        attach(world, "c1", "10.32.0.1/16")
        del world.namespaces["c1"]
        if successor:
            world.add("c1", 99)
        assert detach(world, target) == ["10.32.0.1/16"]
        assert world.attachments.all() == []
        world.add("c1", 1)


def test_a_detach_that_cannot_be_saved_changes_nothing(world: World) -> None:
    """It would come back at the next launch."""
    attach(world, "c1", "10.32.0.1/16")
    world.disk_full = True
    refused(world, world.attachments.detach(unwish("c1")), "not-saved")


def test_a_detach_does_not_depend_on_a_quick_kernel(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The address is free for others from the moment they hear it; the kernel follows when it can."""
    attach(world, "c1", "10.32.0.1/16")
    monkeypatch.setattr(attach_module, "KERNEL_TIMEOUT_S", 0.01)

    async def silent() -> dict[str, Fault]:
        await asyncio.sleep(60)
        return {}

    publish, world.publish = world.publish, silent
    assert detach(world, "c1") == ["10.32.0.1/16"]
    assert list(world.table.of(ME)) == []
    run(publish())
    assert not any(key.kind == GUEST_ADDRESS for key in world.kernel.objects)


# At the same time


def test_one_address_wanted_twice_at_once_is_given_once(world: World) -> None:
    """One change at a time; the second is told who was first."""

    async def both() -> Sequence[object]:
        wishes = (wish("c1", "10.32.0.1/16"), wish("c2", "10.32.0.1/16"))
        return await asyncio.gather(*map(world.attachments.attach, wishes), return_exceptions=True)

    first, second = run(both())
    assert isinstance(first, Attachment)
    assert isinstance(second, ApiError) and second.code == "address-taken" and "c1" in str(second)
    assert world.attachments.all() == [first]


def test_the_same_attach_twice_at_once_is_one(world: World) -> None:
    """Both callers get the same answer."""

    async def both() -> list[Attachment]:
        return await asyncio.gather(*(world.attachments.attach(wish("c1", "10.32.0.1/16")) for _ in range(2)))

    assert len(set(run(both()))) == 1
    assert len(world.told) == 1


def test_many_changes_at_once_end_as_if_one_after_another(world: World) -> None:
    """Twenty containers attached, half of them detached again, all asked for in one moment."""
    for number in range(20):
        world.add(f"m{number}", 100 + number)

    async def one(number: int) -> None:
        await world.attachments.attach(wish(f"m{number}", f"10.32.2.{number}/16"))
        if number % 2:
            await world.attachments.detach(unwish(f"m{number}"))

    async def storm() -> None:
        await asyncio.gather(*map(one, range(20)))

    run(storm())
    expected = sorted(f"m{number}" for number in range(0, 20, 2))
    assert [each.id for each in world.attachments.all()] == expected
    assert sorted(row["id"] for row in world.on_disk()) == expected
    assert sorted(each.id for each in world.table.of(ME)) == expected
    assert world.kernel.harm == []


def test_when_the_daemon_ends_the_change_under_way_is_finished_and_no_other_begun(world: World) -> None:
    """Whoever waits in the queue is told why."""
    release = asyncio.Event()
    publish = world.publish

    async def held_up() -> dict[str, Fault]:
        await release.wait()
        return await publish()

    world.publish = held_up

    async def ends() -> Sequence[object]:
        first = asyncio.ensure_future(world.attachments.attach(wish("c1", "10.32.0.1/16")))
        await asyncio.sleep(0.01)
        second = asyncio.ensure_future(world.attachments.attach(wish("c2", "10.32.0.2/16")))
        third = asyncio.ensure_future(world.attachments.detach(unwish("c1")))
        await asyncio.sleep(0.01)
        closing = asyncio.ensure_future(world.attachments.close())
        await asyncio.sleep(0.01)
        assert not closing.done()
        release.set()
        await closing
        return await asyncio.gather(first, second, third, return_exceptions=True)

    first, *others = run(ends())
    assert isinstance(first, Attachment)
    assert [isinstance(other, ApiError) and other.code for other in others] == ["stopping", "stopping"]
    assert world.attachments.all() == [first]


# Another life


def test_the_next_life_of_the_daemon_has_the_same(world: World) -> None:
    """Everything comes back from disk as it was."""
    attach(world, "c1", "10.32.0.1/16", "fd00:32::1/64", labels={"app": "wéb", "x": ""}, names=["web", "www.weft"])
    attach(world, "c2", "10.32.0.2/16")
    detach(world, "c1", "10.32.0.1/16")
    assert world.launch().all() == world.attachments.all()


def test_what_was_lost_while_away_gets_a_mac_of_its_own(world: World) -> None:
    """Another host took address and MAC over. Frames to that MAC are the other one's now, also from here."""
    done = attach(world, "c1", "10.32.0.1/16", "10.32.0.2/16")
    taken = world.elsewhere(Q, "10.32.0.1", claim=2)
    assert taken.mac == done.mac
    run(world.attachments.give_way(frozenset({done.mac})))
    (after,) = world.attachments.all()
    assert after == replace(done, mac=derive_mac("weft", ip_address("10.32.0.1"), 1))
    assert [attachment_from_json(row) for row in world.on_disk()] == [after]
    assert [each.mac for each in world.table.of(ME)] == [after.mac]
    objects = world.kernel.objects
    assert world.kernel_addresses(after) == {"10.32.0.2/16": after.mac}
    assert objects[Key(NEIGHBOUR, "weft", ip_address("10.32.0.1").packed)] == taken.mac
    assert objects[Key(BRIDGE_FDB, "weft", taken.mac)] == "weft-vx"
    assert objects[Key(BRIDGE_FDB, "weft", after.mac)] == after.ifname
    guest = objects[Key(GUEST, after.ifname)]
    assert isinstance(guest, Guest) and guest.mac == after.mac


def test_the_new_mac_is_nobodys(world: World) -> None:
    """Not even that of a host out of reach: it would come back and have to give way in its turn."""
    done = attach(world, "c1", "10.32.0.1/16")
    world.elsewhere(Q, "10.32.0.1", claim=2)
    world.elsewhere(P, "10.32.0.1", claim=1, salt=1)
    run(world.attachments.give_way(frozenset({done.mac})))
    assert world.attachments.all()[0].mac == derive_mac("weft", ip_address("10.32.0.1"), 2)


def test_giving_way_twice_or_for_nothing_changes_nothing(world: World) -> None:
    """The daemon asks at every change until it is done."""
    done = attach(world, "c1", "10.32.0.1/16")
    world.elsewhere(Q, "10.32.0.1", claim=2)
    run(world.attachments.give_way(frozenset({b"\x02" * 6})))
    assert world.attachments.all() == [done]
    for _ in range(2):
        run(world.attachments.give_way(frozenset({done.mac})))
    assert len(world.told) == 2


def test_giving_way_needs_a_disk(world: World) -> None:
    """Nothing changes until there is room; the daemon does not end over it."""
    done = attach(world, "c1", "10.32.0.1/16")
    world.elsewhere(Q, "10.32.0.1", claim=2)
    world.disk_full = True
    run(world.attachments.give_way(frozenset({done.mac})))
    assert world.attachments.all() == [done]
