"""What a runtime asked for through CNI ends with its sandbox and with the boot; it never comes back by itself."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path

import pytest

from mesh.attachment import Attachment, Inside, Sandbox
from tests.mesh.attach_world import World, attach, run, wish


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    made = World(tmp_path, monkeypatch)
    yield made
    made.store.close()


def add(world: World, container: str, target: str = "c1", ifname: str = "eth0") -> Attachment:
    asked = wish(f"/run/netns/{target}", f"10.32.0.{len(world.attachments.all()) + 1}/16")
    sandbox = Sandbox("weft", container, ifname)
    return run(world.attachments.attach(replace(asked, sandbox=sandbox, inside=Inside(ifname))))


def test_a_boot_ends_them_and_frees_their_addresses(world: World) -> None:
    pod, named = add(world, "pod"), attach(world, "c2", "10.32.9.9/16")
    world.boot = "another boot"
    del world.namespaces["c1"], world.namespaces["c2"]
    again = world.launch()
    assert [held.id for held in again.all()] == [named.id]
    assert pod.owner not in {held.owner for held in again.all()}


def test_a_daemon_that_starts_again_has_them(world: World) -> None:
    add(world, "pod")
    add(world, "pod", ifname="eth1")
    assert world.launch().all() == world.attachments.all() and len(world.attachments.all()) == 2


def test_a_sandbox_that_goes_without_a_word_is_noticed(world: World) -> None:
    """And one of the same name, made later, is another one."""
    pod = add(world, "pod")
    del world.namespaces["c1"]
    world.kernel.vanished.add(pod.ifname)
    run(world.attachments.vanished(frozenset({pod.ifname})))
    assert world.attachments.all() == [] and world.on_disk() == []
    assert world.table.holder(ip_address("10.32.0.1")) is None
    world.kernel.vanished.clear()
    world.add("c1", 77)
    assert add(world, "pod").namespace_id == (4, 77)
