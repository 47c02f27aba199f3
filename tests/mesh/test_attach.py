"""Attach: what is made, who may have what, and that every step that fails takes the earlier ones back."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

from dataplane.kernel import DELETE, Fault, Operation
from dataplane.objects import GUEST, Guest, Key
from gossip.pages import ROW_MAX_BYTES, TablePager
from mesh import arguments
from mesh import attach as attach_module
from mesh.attachment import Attachment, attachment_from_json
from mesh.endpoints import Endpoint, derive_mac, encode_row
from mesh.requests import ApiError
from tests.mesh.attach_world import ME, P, Q, World, attach, refused, run, wish


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    made = World(tmp_path, monkeypatch)
    yield made
    made.store.close()


# Attach


def test_an_attach_is_on_disk_in_the_kernel_and_told(world: World) -> None:
    """With all that was given, and the MAC that belongs to the first address."""
    done = attach(world, "c1", "10.32.0.1/16", "fd00:32::1/64", labels={"app": "web"}, names=["web"])
    assert done.mac == derive_mac("weft", ip_address("10.32.0.1"))
    assert world.attachments.all() == [done]
    assert [attachment_from_json(row) for row in world.on_disk()] == [done]
    assert list(world.table.of(ME)) == [done.endpoint(ME)]
    assert world.kernel_addresses(done) == {"10.32.0.1/16": done.mac, "fd00:32::1/64": done.mac}
    guest = world.kernel.objects[Key(GUEST, done.ifname)]
    assert isinstance(guest, Guest) and (guest.name, guest.mac) == ("ethwe", done.mac)
    assert done.ifname.startswith("vw") and len(done.ifname) <= 15
    assert (done.labels, done.names, done.id) == ((("app", "web"),), ("web",), "c1")
    assert world.settled == 1, "news of others was waited for before anything was decided"
    assert world.kernel.harm == []


def test_the_same_attach_again_changes_nothing(world: World) -> None:
    """Scripts repeat themselves; the kernel is not asked again."""
    done = attach(world, "c1", "10.32.0.1/16", labels={"app": "web"}, names=["web"])
    before, operations = world.state(), len(world.kernel.operations)
    assert attach(world, "c1", "10.32.0.1/16", labels={"app": "web"}, names=["web"]) == done
    assert attach(world, "/run/netns/c1", "10.32.0.1/16") == done
    assert world.state() == before
    assert len(world.kernel.operations) == operations
    assert len(world.told) == 1


def test_what_is_without_names_is_given_none(world: World) -> None:
    """By either way to give one: nobody would be told."""
    mute = replace(wish("c1", "10.32.0.1/16"), dns=False)
    first = run(world.attachments.attach(mute))
    for giving in (
        world.attachments.attach(wish("c1", "10.32.0.1/16", names=["web"])),
        world.attachments.rename("c1", ["web"], []),
    ):
        with pytest.raises(ApiError, match="--without-dns") as caught:
            run(giving)
        assert caught.value.code == "no-names"
    assert run(world.attachments.attach(mute)) == first and world.attachments.all() == [first]


def test_a_second_attach_adds_addresses_and_merges_labels_and_names(world: World) -> None:
    """The MAC stays: neighbours know it."""
    first = attach(world, "c1", "10.32.0.1/16", labels={"app": "web", "tier": "1"}, names=["web"])
    second = attach(world, "c1", "10.32.0.2/16", "10.32.0.1/16", labels={"tier": "2"}, names=["www", "web"])
    assert [str(binding) for binding in second.bindings] == ["10.32.0.1/16", "10.32.0.2/16"]
    assert second.labels == (("app", "web"), ("tier", "2"))
    assert second.names == ("web", "www")
    assert (second.mac, second.ifname, second.id) == (first.mac, first.ifname, "c1")
    assert world.kernel_addresses(second) == {"10.32.0.1/16": first.mac, "10.32.0.2/16": first.mac}
    assert world.attachments.all() == [second]


def test_a_changed_length_replaces_the_address_where_it_stands(world: World) -> None:
    """Same claim, same place, same MAC; the container has it once."""
    first = attach(world, "c1", "10.32.0.1/24", "10.32.0.2/24")
    second = attach(world, "c1", "10.32.0.1/16")
    assert [str(binding) for binding in second.bindings] == ["10.32.0.1/16", "10.32.0.2/24"]
    assert [binding.claim for binding in second.bindings] == [binding.claim for binding in first.bindings]
    assert second.mac == first.mac
    assert set(world.kernel_addresses(second)) == {"10.32.0.1/16", "10.32.0.2/24"}


def test_two_containers_have_two_interfaces(world: World) -> None:
    """And are listed in the order of their ids."""
    second, first = attach(world, "c2", "10.32.0.2/16"), attach(world, "c1", "10.32.0.1/16")
    assert first.ifname != second.ifname and first.mac != second.mac
    assert world.attachments.all() == [first, second]


def test_an_id_may_be_sixty_four_characters_of_any_script(world: World) -> None:
    """It is on disk and told as it was given."""
    name = "контейнер-容器-" + "ü" * 51
    assert len(name) == 64
    world.add(name, 9)
    done = attach(world, name, "10.32.0.9/16")
    assert done.id == name
    assert [each.id for each in world.table.of(ME)] == [name]
    assert world.launch().all() == [done]


# What is refused


def test_a_target_that_is_none_is_refused(world: World) -> None:
    """With the reason that the search for it gave."""
    assert "does not exist" in refused(world, world.attachments.attach(wish("nowhere", "10.32.0.1/16")), "bad-target")


def test_an_address_of_a_reachable_host_is_refused_with_its_holder(world: World) -> None:
    """Nickname, the endpoint's id, and what to type there."""
    world.elsewhere(P, "10.32.0.1")
    world.reachable = {P}
    text = refused(world, world.attachments.attach(wish("c1", "10.32.0.2/16", "10.32.0.1/16")), "address-taken")
    assert "held by c-3 on host alpha" in text
    assert "weft detach 10.32.0.1/16 c-3" in text


def test_an_address_of_a_host_out_of_reach_is_taken_over_with_its_mac(world: World) -> None:
    """By a claim above the old one, so that everybody agrees when the old one comes back."""
    there = world.elsewhere(P, "10.32.0.1", claim=41)
    done = attach(world, "c1", "10.32.0.1/16")
    assert done.bindings[0].claim == 42
    assert done.mac == there.mac
    holder = world.table.holder(ip_address("10.32.0.1"))
    assert holder is not None and holder.owner == ME
    assert world.kernel_addresses(done) == {"10.32.0.1/16": done.mac}


def test_a_reachable_host_that_would_follow_is_asked_too(world: World) -> None:
    """The holder is out of reach, and a second claimant is not: it has the address when the holder expires."""
    world.elsewhere(P, "10.32.0.1", claim=2)
    world.elsewhere(Q, "10.32.0.1", claim=1, salt=1)
    world.reachable = {Q}
    text = refused(world, world.attachments.attach(wish("c1", "10.32.0.1/16")), "address-taken")
    assert "omega" in text


def test_an_address_of_this_host_is_refused_with_its_holder(world: World) -> None:
    """Also when it is asked for beside others, and whatever its length."""
    attach(world, "c1", "10.32.0.1/16")
    for addresses in (["10.32.0.1/16"], ["10.32.0.2/16", "10.32.0.1/24"]):
        text = refused(world, world.attachments.attach(wish("c2", *addresses)), "address-taken")
        assert "held by c1 on this host" in text


def test_an_address_that_was_lost_while_away_is_refused_again(world: World) -> None:
    """Repeating the attach says who has it, instead of that all is well."""
    attach(world, "c1", "10.32.0.1/16")
    world.elsewhere(Q, "10.32.0.1", claim=2, salt=1)
    world.reachable = {Q}
    text = refused(world, world.attachments.attach(wish("c1", "10.32.0.1/16")), "address-taken")
    assert "omega" in text


def test_a_mac_in_use_elsewhere_is_not_used_again(world: World) -> None:
    """Its endpoint was attached with this address first and has others by now."""
    moved = replace(world.elsewhere(P, "10.32.0.7"), mac=derive_mac("weft", ip_address("10.32.0.1")))
    pager = TablePager()
    pager.put("x", encode_row(moved))
    world.table.replace_page(P, 0, pager.body(0))
    world.reachable = {P}
    assert attach(world, "c1", "10.32.0.1/16").mac == derive_mac("weft", ip_address("10.32.0.1"), 1)


def test_without_any_free_mac_it_is_refused(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The search is bounded."""
    monkeypatch.setattr(attach_module, "MAC_TRIES", 1)
    world.elsewhere(P, "10.32.0.1")
    world.reachable = {P}
    world.table.forget(P)
    moved = Endpoint(P, "c", derive_mac("weft", ip_address("10.32.0.1")), ())
    pager = TablePager()
    pager.put("x", encode_row(moved))
    world.table.replace_page(P, 0, pager.body(0))
    refused(world, world.attachments.attach(wish("c1", "10.32.0.1/16")), "no-mac")


@pytest.mark.parametrize("what", ["addresses", "names", "labels"])
def test_attaching_again_and_again_ends_at_a_limit(world: World, what: str) -> None:
    """What others would not take must not get as far as the kernel."""
    most = {"addresses": arguments.ADDRESSES_MAX, "names": arguments.NAMES_MAX, "labels": arguments.LABELS_MAX}[what]

    def one_more(number: int) -> Any:
        address = f"10.32.1.{number}/16" if what == "addresses" else "10.32.1.0/16"
        names = [f"n{number}"] if what == "names" else []
        return wish("c1", address, names=names, labels={f"l{number}": ""} if what == "labels" else {})

    for number in range(most):
        run(world.attachments.attach(one_more(number)))
    assert f"would have {most + 1} {what}; at most {most}" in refused(
        world, world.attachments.attach(one_more(most)), "too-many"
    )


def test_what_does_not_fit_in_a_row_is_refused_before_the_kernel_is_asked(world: World) -> None:
    """Labels of sixteen times 128 characters of four bytes each."""
    labels = {f"{n:03}" + "k" * 125: "\U0001f9f6" * 128 for n in range(arguments.LABELS_MAX)}
    text = refused(world, world.attachments.attach(wish("c1", "10.32.0.1/16", labels=labels)), "too-many")
    assert str(ROW_MAX_BYTES) in text
    assert world.kernel.operations == []


def test_what_others_would_not_decode_is_refused_before_the_kernel_is_asked(world: World) -> None:
    """A path of more than 512 bytes; an address that no container can have and that got by all other checks."""
    world.add("d/" * 300, 9)
    refused(world, world.attachments.attach(wish("d/" * 300, "10.32.0.1/16")), "bad-request")
    for address in ("::ffff:10.32.0.1/96", "255.255.255.255/32"):
        refused(world, world.attachments.attach(wish("c1", address)), "bad-request")
    assert world.kernel.operations == []


# Steps that fail


@pytest.mark.parametrize("again", [False, True], ids=["first", "re-attach"])
def test_a_full_disk_refuses_and_nothing_was_begun(world: World, again: bool) -> None:
    """The kernel was not asked and nobody was told."""
    if again:
        attach(world, "c1", "10.32.0.1/16")
    operations = len(world.kernel.operations)
    world.disk_full = True
    text = refused(world, world.attachments.attach(wish("c1", "10.32.0.2/16")), "not-saved")
    assert "No space left" in text
    assert len(world.kernel.operations) == operations


@pytest.mark.parametrize("again", [False, True], ids=["first", "re-attach"])
def test_whichever_kernel_operation_fails_everything_is_as_before(world: World, again: bool) -> None:
    """Every one of them in turn; the fault's line is what the caller gets."""
    attach(world, "c2", "10.32.0.2/16")
    if again:
        attach(world, "c1", "10.32.0.1/16")
    failing = 0
    while True:
        failing += 1
        start = len(world.kernel.operations)
        broken: list[Key] = []

        def fail(number: int, operation: Operation) -> int:
            if number == start + failing:  # noqa: B023
                broken.append(operation.key)  # noqa: B023
            return errno.EPERM if operation.key in broken and operation.verb != DELETE else 0  # noqa: B023

        before = world.state()
        world.kernel.fail = fail
        try:
            attach(world, "c1", "10.32.0.3/16", "fd00:32::3/64")
        except ApiError as error:
            assert error.code == "attach-failed"
            assert "root" in str(error) or "cannot" in str(error)
            world.kernel.fail = lambda number, operation: 0
            world.now += 1000.0
            run(world.publish())
            assert world.state() == before
        else:
            break
    assert failing > (3 if again else 8), "the failing operation moved through the whole attach"
    assert world.kernel.harm == []


@pytest.mark.parametrize("again", [False, True], ids=["first", "re-attach"])
def test_a_kernel_that_does_not_answer_is_given_up(world: World, again: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Off disk, out of memory, and what was asked of the kernel is asked back."""
    if again:
        attach(world, "c1", "10.32.0.1/16")
    before = world.state()
    monkeypatch.setattr(attach_module, "KERNEL_TIMEOUT_S", 0.01)
    published: list[list[Attachment]] = []

    async def silent() -> dict[str, Fault]:
        published.append(world.attachments.all())
        await asyncio.sleep(60)
        return {}

    world.publish = silent
    text = refused(world, world.attachments.attach(wish("c1", "10.32.0.2/16")), "kernel-slow")
    assert "try again" in text
    assert world.state() == before
    assert published[-1] == before[0]


@pytest.mark.parametrize("failure", ["fault", "slow"])
def test_a_disk_that_fills_up_in_between_costs_only_itself(
    world: World, failure: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Taking back cannot be saved either: memory and kernel are right, and the next change writes all of it."""
    attach(world, "c2", "10.32.0.2/16")
    memory, _, told, kernel, _ = world.state()
    publish = world.publish

    async def fills_up() -> dict[str, Fault]:
        world.disk_full = True
        faults = await publish()
        if failure == "slow":
            raise TimeoutError
        return faults | {name: Fault("kernel", "cannot make it") for name in self_made()}

    def self_made() -> list[str]:
        return [each.ifname for each in world.attachments.all() if each.id == "c1"]

    world.publish = fills_up
    with pytest.raises(ApiError):
        attach(world, "c1", "10.32.0.1/16")
    world.publish, world.disk_full = publish, False
    assert (world.attachments.all(), world.state()[2], world.state()[3]) == (memory, told, kernel)
    assert len(world.on_disk()) == 2
    attach(world, "c2", "10.32.0.3/16")
    assert [row["id"] for row in world.on_disk()] == ["c2"]


def test_a_table_that_is_full_takes_the_attach_back(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Telling is the last step."""

    def full(key: str, row: bytes) -> set[int]:
        raise ValueError("the table is full: 4096 pages of 8192 bytes")

    run(world.publish())
    monkeypatch.setattr(world.pager, "put", full)
    text = refused(world, world.attachments.attach(wish("c1", "10.32.0.1/16")), "too-many")
    assert "the table is full" in text


def test_a_namespace_that_vanishes_between_the_steps_is_taken_back(world: World) -> None:
    """By the attach itself; the daemon that hears of the fault finds nothing to do any more."""
    run(world.publish())
    before = world.state()

    async def both() -> None:
        ifname: list[str] = []
        publish = world.publish

        async def vanishes() -> dict[str, Fault]:
            ifname.extend(each.ifname for each in world.attachments.all())
            world.kernel.vanished.update(ifname)
            world.namespaces.pop("c1", None)
            return await publish()

        world.publish = vanishes
        attaching = asyncio.ensure_future(world.attachments.attach(wish("c1", "10.32.0.1/16")))
        await asyncio.sleep(0.01)
        await world.attachments.vanished(frozenset(ifname))
        with pytest.raises(ApiError, match="gone") as caught:
            await attaching
        assert caught.value.code == "namespace-gone"

    run(both())
    assert world.state() == before
