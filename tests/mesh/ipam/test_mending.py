"""What is given and what is attached become one again, whatever a crash or a lost journal has left."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from ipaddress import ip_interface
from pathlib import Path
from typing import Any

import pytest

from mesh import expose as expose_module
from mesh import requests
from mesh.endpoints import Interface
from mesh.expose import OWNER
from mesh.ipam import mending as mending_module
from mesh.ipam.mending import Mending
from mesh.ipam.wants import Claim, FromSubnet, Want
from mesh.requests import ApiError
from tests.mesh.attach_world import World, attach, run, wish
from tests.mesh.ipam.test_service import running

FIRST = ["10.32.0.1/12", "fd00:32::1/64"]


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setattr(expose_module, "collision", lambda bridge, interface: None)
    return World(tmp_path, monkeypatch)


def mending(world: World) -> Mending:
    return Mending(world.attachments, world.exposures, dict)


def test_at_start_owners_that_are_not_there_lose_what_they_were_given(world: World) -> None:
    """A crash between giving and saving leaks nothing."""
    attach(world, "c1")
    run(world.exposures.expose(requests.Expose((FromSubnet(None),), True)))
    run(world.ipam.obtain("netns:crashed", (FromSubnet(None),)))
    run(mending(world).begin())
    assert world.ipam.kept == [{"netns:c1", OWNER}]
    assert world.ipam.addresses("netns:crashed") == [] and world.ipam.addresses("netns:c1") == FIRST


def test_what_is_attached_and_not_given_is_claimed_again(world: World) -> None:
    """Of the host itself too; what lies outside the ranges is nobody's to claim."""
    attach(world, "c1", "10.32.0.5/16", "192.0.2.1/24")
    attach(world, "c2")
    run(world.exposures.expose(requests.Expose((FromSubnet(None),), True)))
    exposed = world.ipam.addresses(OWNER)
    world.ipam.given.clear()
    assert run(mending(world).mend())
    assert world.ipam.addresses("netns:c1") == ["10.32.0.5/16"]
    assert world.ipam.addresses("netns:c2") == FIRST
    assert world.ipam.addresses(OWNER) == exposed


def test_what_is_given_and_not_attached_is_released(world: World) -> None:
    """Although its owner has others: a crash may have been between the two."""
    attach(world, "c1")
    run(world.ipam.obtain("netns:c1", wish("c1", "net:10.32.2.0/24").addresses))
    assert run(mending(world).mend())
    assert world.ipam.addresses("netns:c1") == FIRST


def test_an_attach_under_way_is_not_robbed(world: World) -> None:
    """What it was given and has not saved yet looks like a leak; it asks again."""

    async def between() -> None:
        await mending(world).mend()

    world.ipam.before_answer = between
    found = attach(world, "c1")
    assert found.texts() == world.ipam.addresses("netns:c1") == FIRST


def test_nor_by_a_repair(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the real allocator: what is released rests, and is somebody else's a minute later."""

    async def scenario() -> None:
        async with running(tmp_path / "ipam") as ipam:
            monkeypatch.setattr(world, "ipam", ipam)
            attachments = world.launch()
            repairing, obtain = Mending(attachments, world.exposures, dict), ipam.obtain

            async def then_repaired(owner: str, wants: tuple[Want, ...]) -> tuple[Interface, ...]:
                given = await obtain(owner, wants)
                monkeypatch.setattr(ipam, "obtain", obtain)
                assert [row["repaired"] for row in await repairing.check(True)] == [True]
                return given

            monkeypatch.setattr(ipam, "obtain", then_repaired)
            found = await attachments.attach(wish("c1"))
            assert await repairing.check(False) == []
            assert [each.addresses for each in ipam.member.holdings.given.values()] == [tuple(found.texts())]

    asyncio.run(scenario())


def test_a_repair_goes_by_what_is_attached_by_then(world: World) -> None:
    """What was found first may take seconds; what was found last may have been attached or detached meanwhile."""
    attach(world, "c1")
    world.ipam.given.clear()
    run(world.ipam.obtain("netns:c2", (Claim(ip_interface("10.32.0.5/12")),)))
    repairing = mending(world)

    async def scenario() -> list[dict[str, Any]]:
        async def between() -> None:
            await world.attachments.attach(wish("c2", "10.32.0.5/12"))
            await world.attachments.detach(requests.Detach("c1", ()))

        check = world.ipam.check

        async def slow(attached: Mapping[Interface, str], repair: bool) -> list[dict[str, Any]]:
            found = await check(attached, repair)
            world.ipam.check = check  # type: ignore[method-assign]
            await between()
            return found

        world.ipam.check = slow  # type: ignore[method-assign]
        return await repairing.check(True)

    found = run(scenario())
    assert len(found) == 3 and all(row["repaired"] for row in found)
    assert world.ipam.addresses("netns:c2") == ["10.32.0.5/12"] and world.ipam.addresses("netns:c1") == []


def test_a_repair_says_what_could_not_be_done(world: World) -> None:
    attach(world, "c1")
    world.ipam.given.clear()
    world.ipam.refusal = ApiError("ipam-waiting", "no address: waited 12 s for votes")
    found = run(mending(world).check(True))
    assert [(row["repaired"], row["why"]) for row in found] == 2 * [(False, "no address: waited 12 s for votes")]


def test_what_cannot_be_claimed_now_is_tried_again(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mending_module, "RETRY_MIN_S", 0.01)
    attach(world, "c1")
    world.ipam.given.clear()
    world.ipam.refusal = ApiError("ipam-waiting", "no address: waited 12 s for votes")

    async def votes_come() -> None:
        running = asyncio.ensure_future(mending(world).run())
        await asyncio.sleep(0.05)
        assert not running.done()
        world.ipam.refusal = None
        await asyncio.wait_for(running, 5.0)

    run(votes_come())
    assert world.ipam.addresses("netns:c1") == FIRST


def test_a_check_says_what_differs_and_repairs_when_told(world: World) -> None:
    attach(world, "c1")
    world.ipam.given.clear()
    found = run(mending(world).check(False))
    assert [(row["address"], row["owner"]) for row in found] == [(text, "netns:c1") for text in FIRST]
    assert world.ipam.given == {}
    run(mending(world).check(True))
    assert world.ipam.addresses("netns:c1") == FIRST
    assert run(mending(world).check(False)) == []
