"""Expose and hide as a workflow: who may have an address, what is on disk when, and what is taken back."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Coroutine
from ipaddress import ip_interface
from pathlib import Path
from typing import Any

import pytest

from dataplane.kernel import DELETE, Fault, KernelError, Operation
from dataplane.objects import FORWARDING, GATEWAY, GUEST_ROUTE, HOST_ADDRESS, Gateway, Key, address_item
from mesh import expose as expose_module
from mesh import requests
from mesh.arguments import ADDRESSES_MAX
from mesh.endpoints import EXPOSED_ID, Interface, bridge_mac, decode_row_untrusted, encode_row
from mesh.expose import DOCUMENT
from mesh.requests import ApiError
from tests.mesh.attach_world import ME, P, World, attach, run, wants, wish

A, B = "10.32.0.200/16", "fd00:32::200/64"
OURS = bridge_mac(ME)


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setattr(expose_module, "collision", lambda bridge, interface: None)
    return World(tmp_path, monkeypatch)


def ask(*addresses: str, masquerade: bool = True) -> requests.Expose:
    return requests.Expose(wants(*addresses), masquerade)


def expose(world: World, *addresses: str, masquerade: bool = True) -> list[str]:
    return texts(run(world.exposures.expose(ask(*addresses, masquerade=masquerade))))


def hide(world: World, *addresses: str) -> list[str]:
    return texts(run(world.exposures.hide(requests.Hide(tuple(map(ip_interface, addresses))))))


def texts(held: Any) -> list[str]:
    return [str(each.binding) for each in held]


def on_disk(world: World) -> list[Any]:
    return list((world.store.read(DOCUMENT) or {"exposed": []})["exposed"])


def state(world: World) -> Any:
    """Memory, disk, what the mesh was told, the kernel."""
    return world.exposures.all(), on_disk(world), [encode_row(each) for each in world.table.of(ME)], world.state()


def refused(world: World, work: Coroutine[Any, Any, object], code: str) -> str:
    before = state(world)
    with pytest.raises(ApiError) as caught:
        run(work)
    assert caught.value.code == code, caught.value
    assert state(world) == before and "\n" not in str(caught.value)
    return str(caught.value)


def test_an_exposed_host_is_in_the_kernel_on_disk_and_told_as_one_endpoint(world: World) -> None:
    """With the MAC of its bridge, as others take it."""
    assert expose(world, A, B) == [A, B]
    (endpoint,) = world.table.of(ME)
    assert (endpoint.id, endpoint.mac, [str(each) for each in endpoint.bindings]) == (EXPOSED_ID, OURS, [A, B])
    assert decode_row_untrusted(ME, encode_row(endpoint)) == endpoint
    assert [row["address"] for row in on_disk(world)] == [A, B]
    for text in (A, B):
        assert Key(HOST_ADDRESS, "weft", address_item(ip_interface(text))) in world.kernel.objects
    assert world.kernel.objects[Key(GATEWAY, "weft")] == Gateway(("10.32.0.0/16", "fd00:32::/64"))


def test_it_adds_up_may_be_repeated_and_changes_what_is_said_anew(world: World) -> None:
    """Repeating writes nothing; a length or the masquerade changes; nothing named lists."""
    expose(world, A)
    told = len(world.told)
    assert expose(world, A) == [A] and expose(world) == [A] and len(world.told) == told
    assert expose(world, B, masquerade=False) == [A, B]
    assert [each.masquerade for each in world.exposures.all()] == [True, False]
    assert expose(world, "10.32.0.200/24", masquerade=False) == ["10.32.0.200/24", B]
    assert Key(GATEWAY, "weft") not in world.kernel.objects


def test_hiding_takes_some_or_all_and_may_be_repeated(world: World) -> None:
    """In the end nothing of it is left, and the address is free for a container."""
    expose(world, A, B)
    assert hide(world, "10.32.0.200/8") == [A]
    assert hide(world, A) == []
    assert hide(world) == [B] and hide(world) == []
    assert on_disk(world) == [] and list(world.table.of(ME)) == []
    kinds = {key.kind for key in world.kernel.objects}
    assert not kinds & {HOST_ADDRESS, FORWARDING, GATEWAY, GUEST_ROUTE}
    attach(world, "c1", A)


def test_it_outlives_the_daemon_and_the_boot(world: World) -> None:
    """Claims too."""
    world.elsewhere(P, "10.32.0.200", claim=7)
    expose(world, A, B, masquerade=False)
    before = world.exposures.all()
    assert before[0].binding.claim == 8
    world.boot = "another"
    world.launch()
    assert world.exposures.all() == before


def test_containers_here_get_a_default_route(world: World) -> None:
    """Also one that is attached later."""
    first = attach(world, "c1", "10.32.0.1/16")
    expose(world, A)
    second = attach(world, "c2", "10.32.0.2/16")
    routes = {key.device for key in world.kernel.objects if key.kind == GUEST_ROUTE}
    assert routes == {first.ifname, second.ifname}


def test_an_address_somebody_has_is_refused_with_who_and_how_to_free_it(world: World) -> None:
    """A container here, one there, another host; the other way round too."""
    attach(world, "c1", "10.32.0.1/16")
    text = refused(world, world.exposures.expose(ask("10.32.0.1/16")), "address-taken")
    assert "held by c1 on this host" in text and "weft detach 10.32.0.1/16 c1" in text
    there = world.elsewhere(P, "10.32.0.9")
    world.reachable.add(P)
    text = refused(world, world.exposures.expose(ask("10.32.0.9/16")), "address-taken")
    assert f"held by {there.id} on host alpha" in text and f"weft detach 10.32.0.9/16 {there.id}" in text
    expose(world, A)
    text = refused(world, world.attachments.attach(wish("c2", A)), "address-taken")
    assert "an address of this host itself" in text and f"weft hide {A}" in text


def test_an_address_of_a_host_out_of_reach_is_taken_over(world: World) -> None:
    """With a higher claim, as containers do."""
    world.elsewhere(P, "10.32.0.200", claim=3)
    expose(world, A)
    assert world.exposures.all()[0].binding.claim == 4


def test_what_collides_with_the_host_is_refused_with_what(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was exposed before and goes well is not asked about again."""
    asked: list[str] = []

    def collision(bridge: str, interface: Interface) -> str | None:
        asked.append(f"{bridge} {interface}")
        return "the route 10.40.0.0/16 dev eth1" if str(interface).startswith("10.40") else None

    monkeypatch.setattr(expose_module, "collision", collision)
    expose(world, A)
    text = refused(world, world.exposures.expose(ask(A, "10.40.0.1/24")), "collision")
    assert text.startswith("10.40.0.1/24 collides with the route 10.40.0.0/16 dev eth1 on this host")
    assert asked == [f"weft {A}", "weft 10.40.0.1/24"]

    def broken(bridge: str, interface: Interface) -> str | None:
        raise KernelError(errno.EIO, None, "cannot list the routes of this host: broken")

    monkeypatch.setattr(expose_module, "collision", broken)
    assert "cannot list the routes" in refused(world, world.exposures.expose(ask(B)), "expose-failed")


def test_more_addresses_than_can_be_told_are_refused(world: World) -> None:
    """They add up."""
    expose(world, *(f"10.32.1.{n}/16" for n in range(1, ADDRESSES_MAX + 1)))
    assert "at most 16" in refused(world, world.exposures.expose(ask(A)), "too-many")


@pytest.mark.parametrize("again", [False, True], ids=["first", "more"])
def test_whichever_operation_the_kernel_refuses_all_is_taken_back(world: World, again: bool) -> None:
    """The n-th of those that expose the host, for every n; then nothing of it is left anywhere."""
    if again:
        expose(world, B)
    run(world.publish())
    failing = 0
    while True:
        failing += 1
        start, broken = len(world.kernel.operations), list[Key]()

        def fail(number: int, operation: Operation) -> int:
            if number == start + failing:  # noqa: B023
                broken.append(operation.key)  # noqa: B023
            return errno.EPERM if operation.key in broken and operation.verb != DELETE else 0  # noqa: B023

        before = state(world)
        world.kernel.fail = fail
        try:
            expose(world, A)
        except ApiError as error:
            assert error.code == "expose-failed" and "root" in str(error)
            world.kernel.fail = lambda number, operation: 0
            world.now += 1000.0
            run(world.publish())
            assert state(world) == before
        else:
            break
    assert failing > 2


def test_a_kernel_that_does_not_answer_is_given_up(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Off disk again."""
    monkeypatch.setattr(expose_module, "KERNEL_TIMEOUT_S", 0.01)

    async def silent() -> dict[str, Fault]:
        await asyncio.sleep(60)
        return {}

    world.publish = silent
    assert "try again" in refused(world, world.exposures.expose(ask(A)), "kernel-slow")


def test_what_cannot_be_saved_is_not_done(world: World) -> None:
    """Neither way."""
    expose(world, B)
    world.disk_full = True
    refused(world, world.exposures.expose(ask(A)), "not-saved")
    refused(world, world.exposures.hide(requests.Hide(())), "not-saved")


def test_a_disk_that_fills_up_in_between_costs_only_itself(world: World) -> None:
    """Memory and kernel are right, and the next change writes all of it."""
    expose(world, B)
    publish, before = world.publish, world.exposures.all()

    async def fills_up() -> dict[str, Fault]:
        world.disk_full = True
        return await publish() | {"weft": Fault("kernel", "cannot make it")}

    world.publish = fills_up
    with pytest.raises(ApiError):
        expose(world, A)
    world.publish, world.disk_full = publish, False
    assert world.exposures.all() == before
    assert hide(world) == [B] and on_disk(world) == []


def test_a_table_that_is_full_takes_it_back(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Telling is the last step."""
    run(world.publish())

    def full(key: str, row: bytes) -> set[int]:
        raise ValueError("the table is full")

    monkeypatch.setattr(world.pager, "put", full)
    assert "the table is full" in refused(world, world.exposures.expose(ask(A)), "too-many")


def test_nothing_begins_when_the_daemon_stops(world: World) -> None:
    """And an attach that waits for an expose never takes the same address."""

    async def both() -> list[BaseException | object]:
        return await asyncio.gather(
            world.exposures.expose(ask(A)), world.attachments.attach(wish("c1", A)), return_exceptions=True
        )

    done = run(both())
    assert isinstance(done[1], ApiError) and done[1].code == "address-taken"
    run(world.attachments.close())
    refused(world, world.exposures.expose(ask(B)), "stopping")
    refused(world, world.exposures.hide(requests.Hide(())), "stopping")
