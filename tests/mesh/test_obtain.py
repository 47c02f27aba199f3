"""Attach and expose with addresses that are given out: who gets which, what goes back when, and who comes between."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from ipaddress import ip_address, ip_interface
from pathlib import Path
from typing import Any

import pytest

from dataplane.kernel import Fault
from mesh import expose as expose_module
from mesh import requests
from mesh.attach import DOCUMENT
from mesh.attachment import owner_of, with_owners
from mesh.expose import OWNER
from mesh.ipam.wants import Claim, FromSubnet
from mesh.requests import ApiError
from tests.mesh.attach_world import ME, P, World, attach, detach, refused, run, unwish, wants, wish

FIRST = ["10.32.0.1/12", "fd00:32::1/64"]
SECOND = ["10.32.0.2/12", "fd00:32::2/64"]


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setattr(expose_module, "collision", lambda bridge, interface: None)
    return World(tmp_path, monkeypatch)


def expose(world: World, *texts: str, masquerade: bool = True) -> list[str]:
    request = requests.Expose(wants(*texts), masquerade)
    return [str(each.binding) for each in run(world.exposures.expose(request))]


# Who gets which


def test_without_an_address_one_of_each_ip_version_is_given(world: World) -> None:
    """The kernel, the disk and the mesh have them as any other."""
    found = attach(world, "c1")
    assert found.texts() == FIRST
    assert sorted(world.kernel_addresses(found)) == FIRST
    assert world.ipam.addresses("netns:c1") == FIRST
    assert [str(each) for each in next(iter(world.table.of(ME))).bindings] == FIRST
    assert attach(world, "c2").texts() == SECOND


def test_asking_again_for_nothing_prints_what_is_there(world: World) -> None:
    """The allocator is not asked; names may be added."""
    before = attach(world, "c1")
    asked = len(world.ipam.asked)
    assert attach(world, "c1") == before
    assert attach(world, "c1", names=["web"]) == replace(before, names=("web",))
    assert len(world.ipam.asked) == asked
    attach(world, "c2", "192.0.2.1/24")
    assert attach(world, "c2").texts() == ["192.0.2.1/24"]


def test_subnets_and_addresses_may_be_mixed_and_add_up(world: World) -> None:
    """An address outside the range is nobody's to give, and is taken as it is."""
    assert attach(world, "c1", "net:10.32.2.0/24", "192.0.2.1/24", "10.32.9.9/24").texts() == [
        "10.32.2.1/24", "192.0.2.1/24", "10.32.9.9/24",
    ]  # fmt: skip
    assert attach(world, "c1", "net:fd00:32::/64").texts()[3:] == ["fd00:32::1/64"]
    assert attach(world, "c1", "net:10.32.2.0/24").texts()[4:] == []
    assert world.ipam.addresses("netns:c1") == ["10.32.2.1/24", "10.32.9.9/24", "fd00:32::1/64"]


def test_where_nothing_is_given_out_the_error_is_the_allocators(world: World) -> None:
    """Explicit addresses go on working."""
    world.ipam.ranges = ()
    assert "--ipalloc-range none" in refused(world, world.attachments.attach(wish("c1")), "ipam-off")
    assert attach(world, "c1", "10.32.0.1/16").texts() == ["10.32.0.1/16"]


def test_a_claim_that_somebody_holds_is_refused_before_the_allocator_is_asked(world: World) -> None:
    """With the words of old, that say how to free it."""
    attach(world, "c1", "10.32.0.1/16")
    text = refused(world, world.attachments.attach(wish("c2", "10.32.0.1/16")), "address-taken")
    assert "held by c1 on this host" in text and "weft detach 10.32.0.1/16 c1" in text
    world.elsewhere(P, "10.32.0.9")
    world.reachable.add(P)
    asked = len(world.ipam.asked)
    assert "host alpha" in refused(world, world.attachments.attach(wish("c2", "10.32.0.9/16")), "address-taken")
    assert len(world.ipam.asked) == asked


def test_the_host_itself_is_given_an_address_once(world: World) -> None:
    """Then it is printed."""
    assert expose(world) == FIRST
    asked = len(world.ipam.asked)
    assert expose(world) == FIRST and len(world.ipam.asked) == asked
    assert expose(world, "net:10.32.2.0/24", masquerade=False) == [*FIRST, "10.32.2.1/24"]
    assert world.ipam.addresses(OWNER) == sorted([*FIRST, "10.32.2.1/24"])
    run(world.exposures.hide(requests.Hide((ip_interface(FIRST[0]),))))
    assert world.ipam.addresses(OWNER) == sorted([FIRST[1], "10.32.2.1/24"])
    run(world.exposures.hide(requests.Hide(())))
    assert world.ipam.addresses(OWNER) == []


# Who an owner is


def test_an_owner_is_what_comes_back(world: World) -> None:
    """A name, a container's whole id, or a namespace of this boot."""
    world.add_process(4711, 7)
    id = world.add_container("web", 4712, 8)
    owners = {target: attach(world, target).owner for target in ("c1", "web", "4711")}
    assert owners == {"c1": "netns:c1", "web": f"docker:{id}", "4711": "ns:4:7@this boot"}
    assert sorted(each.owner for each in world.launch().all()) == sorted(owners.values())


def test_an_owner_stays_when_more_is_known_of_it(world: World) -> None:
    """What was attached by a pid and has a name by now has its addresses still, and gives all of them back."""
    world.add_process(4711, 9)
    before = attach(world, "4711")
    world.namespaces["named"] = replace(world.namespaces["4711"], path="/run/netns/named")
    after = attach(world, "named", "net:10.32.2.0/24")
    assert after.owner == before.owner and after.is_named
    detach(world, "named")
    assert world.ipam.given == {}


def test_an_owner_that_is_taken_is_not_shared() -> None:
    assert owner_of("/run/netns/c1", (4, 1), None, "b", {"netns:c1", "netns:c1#1"}) == "netns:c1#2"


def test_attachments_of_an_earlier_version_get_owners(world: World) -> None:
    """The same after each start, until they are saved."""
    kept = [attach(world, "c1", "10.32.0.1/16"), attach(world, "c2", "10.32.0.2/16")]
    document = world.store.read(DOCUMENT)
    assert document is not None
    for row in document["attachments"]:
        del row["owner"]
    world.store.write(DOCUMENT, document)
    assert world.launch().all() == kept
    twins = [replace(each, owner="", namespace="/run/netns/c1", container=None) for each in kept]
    assert [each.owner for each in with_owners(twins, "b")] == ["netns:c1", "netns:c1#1"]


# What is given back


@pytest.mark.parametrize("failure", ["disk", "kernel", "taken", "too-many", "closed"])
@pytest.mark.parametrize("again", [False, True], ids=["first", "re-attach"])
def test_a_failed_attach_gives_back_what_is_new(world: World, failure: str, again: bool) -> None:
    """What it had before stays given."""
    if again:
        attach(world, "c1", "net:fd00:32::/64")
    request, code = wish("c1", "net:10.32.2.0/24"), failure

    async def act() -> None:
        if failure == "disk":
            world.disk_full = True
        elif failure == "kernel":
            world.publish = fail
        elif failure == "taken":
            world.elsewhere(P, "10.32.2.1")
            world.reachable.add(P)
        elif failure == "closed":
            await world.attachments.close()

    publish = world.publish

    async def fail() -> dict[str, Fault]:
        await publish()
        return {each.ifname: Fault("kernel", "it cannot be made") for each in world.attachments.all()}

    if failure == "too-many":
        request = replace(request, names=tuple(f"n{number}" for number in range(20)))
    world.ipam.before_answer = act
    code = {"disk": "not-saved", "kernel": "attach-failed", "taken": "address-taken", "closed": "stopping"}.get(
        failure, failure
    )
    before = world.ipam.addresses("netns:c1")
    with pytest.raises(ApiError) as caught:
        run(world.attachments.attach(request))
    assert caught.value.code == code
    assert world.ipam.addresses("netns:c1") == before == (["fd00:32::1/64"] if again else [])


def test_a_refused_allocation_changes_nothing(world: World) -> None:
    world.ipam.refusal = ApiError("ipam-exhausted", "no address is free")
    assert refused(world, world.attachments.attach(wish("c1")), "ipam-exhausted") == "no address is free"


def test_detach_gives_back_some_or_all(world: World) -> None:
    attach(world, "c1")
    attach(world, "c2")
    assert detach(world, "c1", FIRST[0]) == FIRST[:1]
    assert world.ipam.addresses("netns:c1") == FIRST[1:]
    assert detach(world, "c1") == FIRST[1:]
    assert world.ipam.addresses("netns:c1") == [] and world.ipam.addresses("netns:c2") == SECOND


def test_what_is_away_keeps_its_addresses_and_what_is_gone_does_not(world: World) -> None:
    """A name comes back; a pid does not; a removed container neither."""
    world.add_process(4711, 9)
    id = world.add_container("web", 4712, 10)
    named, pid, web = attach(world, "c1"), attach(world, "4711"), attach(world, "web")
    for name in ("c1", "4711", "4712"):
        del world.namespaces[name]
    world.reported_gone(named, pid, web)
    assert world.ipam.addresses(pid.owner) == []
    assert world.ipam.addresses(named.owner) == named.texts()
    assert world.ipam.addresses(web.owner) == web.texts()
    run(world.attachments.forget(frozenset({id})))
    assert world.ipam.addresses(web.owner) == []
    world.kernel.vanished.clear()
    world.add("c1", 77)
    asked = len(world.ipam.asked)
    assert attach(world, "c1").texts() == named.texts() and len(world.ipam.asked) == asked


def test_a_stranger_with_an_old_number_gets_addresses_of_its_own(world: World) -> None:
    """The kernel has given the number of a namespace that ended to another one."""
    world.add_process(4711, 9)
    old = attach(world, "4711", "net:10.32.2.0/24")
    del world.namespaces["4711"]
    world.add("new", 9)
    new = attach(world, "new")
    assert new.owner == "netns:new" and new.texts() == FIRST
    assert world.ipam.addresses(old.owner) == []


def test_a_disk_that_refuses_a_release_holds_up_nobody(world: World) -> None:
    attach(world, "c1")

    async def refuse(*_: Any) -> None:
        raise ApiError("not-saved", "no space")

    world.ipam.release_all = refuse  # type: ignore[method-assign]
    assert detach(world, "c1") == FIRST


# Who comes between


def at_once(*work: Any) -> list[Any]:
    async def all_of_it() -> list[Any]:
        return list(await asyncio.gather(*work, return_exceptions=True))

    return run(all_of_it())


def test_two_attaches_of_one_container_at_once_share_what_is_given(world: World) -> None:
    first, second = at_once(world.attachments.attach(wish("c1")), world.attachments.attach(wish("c1")))
    assert first == second == world.attachments.all()[0]
    assert world.ipam.addresses("netns:c1") == first.texts() == FIRST


def test_one_of_two_that_fails_takes_nothing_from_the_other(world: World) -> None:
    bad = replace(wish("c1", "net:default"), names=tuple(f"n{number}" for number in range(20)))
    for work in ([bad, wish("c1")], [wish("c1"), bad]):
        results = at_once(*map(world.attachments.attach, work))
        assert sorted(isinstance(each, ApiError) for each in results) == [False, True]
        (found,) = world.attachments.all()
        assert world.ipam.addresses("netns:c1") == sorted(found.texts()) == FIRST
        detach(world, "c1")
        assert world.ipam.given == {}


def test_a_detach_after_the_answer_makes_the_attach_ask_again(world: World) -> None:
    """Else it would use what is not given any more."""
    attach(world, "c1", "net:default")

    async def between() -> None:
        await world.attachments.detach(unwish("c1"))

    world.ipam.before_answer = between
    found = attach(world, "c1", "net:default")
    assert found.texts() == world.ipam.addresses("netns:c1") == FIRST


def test_an_attach_that_is_always_overtaken_gives_up(world: World) -> None:
    async def overtake() -> None:
        await world.attachments.keeper.release("netns:c1", {ip_address("10.32.0.77")})
        world.ipam.before_answer = overtake

    world.ipam.before_answer = overtake
    with pytest.raises(ApiError) as caught:
        attach(world, "c1")
    assert caught.value.code == "busy"
    assert world.ipam.given == {} and world.attachments.all() == []


def test_an_expose_and_a_hide_at_once_leave_what_is_exposed_given(world: World) -> None:
    expose(world)

    async def between() -> None:
        await world.exposures.hide(requests.Hide(()))

    world.ipam.before_answer = between
    assert expose(world, "net:default") == world.ipam.addresses(OWNER) == FIRST


@pytest.mark.parametrize("failure", ["collision", "disk"])
def test_a_failed_expose_gives_back_what_is_new(world: World, failure: str, monkeypatch: pytest.MonkeyPatch) -> None:
    expose(world, "net:fd00:32::/64")

    async def act() -> None:
        world.disk_full = failure == "disk"
        if failure == "collision":
            monkeypatch.setattr(expose_module, "collision", lambda *_: "the route 10.0.0.0/8 dev eth0")

    world.ipam.before_answer = act
    with pytest.raises(ApiError):
        expose(world, "net:10.32.2.0/24")
    assert world.ipam.addresses(OWNER) == ["fd00:32::1/64"]


def test_wants_are_values() -> None:
    """An owner finds its addresses again by them."""
    same: list[tuple[Callable[[], Any], str]] = [
        (lambda: FromSubnet(None), "net:default"),
        (lambda: Claim(ip_interface("10.0.0.1/24")), "ip:10.0.0.1/24"),
    ]
    for make, text in same:
        assert make() == make() and hash(make()) == hash(make()) and str(make()) == text
