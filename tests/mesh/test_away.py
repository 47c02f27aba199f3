"""Attachments that are away: what is kept of them, who may have their addresses, and how they are back as they were."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path

import pytest

from dataplane.linux.netns import Namespace
from dataplane.objects import GUEST, LINK, Guest, Key, Veth
from gossip.pages import TablePager
from mesh import attach as attach_module
from mesh.attachment import Attachment, after_boot, attachment_from_json, canonical, ifname_of, too_long_away
from mesh.endpoints import encode_row
from mesh.targets import Place
from tests.mesh.attach_world import ME, P, Q, World, attach, detach, refused, run, wish


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    made = World(tmp_path, monkeypatch)
    yield made
    made.store.close()


def deleted(world: World, target: str, *addresses: str) -> Attachment:
    """A named namespace is attached and deleted again; its attachment before that."""
    done = attach(world, target, *addresses)
    del world.namespaces[target]
    world.reported_gone(done)
    return done


def in_kernel(world: World, attachment: Attachment) -> bool:
    return Key(LINK, attachment.ifname) in world.kernel.objects


# Named namespaces


def test_a_deleted_name_keeps_everything_but_the_interface(world: World) -> None:
    """On disk, in memory and in what others hear; the kernel has nothing left of it."""
    done, stays = attach(world, "c1", "10.32.0.1/16", labels={"app": "web"}), attach(world, "c2", "10.32.0.2/16")
    del world.namespaces["c1"]
    world.reported_gone(done)
    away, other = world.attachments.all()
    assert away.away_since is not None and replace(away, away_since=None) == done
    assert other == stays and world.attachments.here() == [stays]
    assert [attachment_from_json(row) for row in world.on_disk()] == [away, stays]
    assert list(world.table.of(ME)) == [replace(done.endpoint(ME), away=True), stays.endpoint(ME)]
    assert not in_kernel(world, done) and in_kernel(world, stays)
    assert world.kernel_addresses(done) == {}


@pytest.mark.parametrize("inode", [99, 1], ids=["another number", "the same number"])
def test_the_next_of_that_name_is_as_the_last_was(world: World, inode: int) -> None:
    """Interface, MAC, addresses, labels; in the new namespace."""
    done = deleted(world, "c1", "10.32.0.1/16", "fd00:32::1/64")
    world.add("c1", inode)
    world.there_again(c1=Place(world.namespaces["c1"]))
    assert world.attachments.all() == [replace(done, namespace_id=(4, inode))]
    assert [attachment_from_json(row) for row in world.on_disk()] == world.attachments.all()
    assert world.kernel_addresses(done) == {"10.32.0.1/16": done.mac, "fd00:32::1/64": done.mac}
    link, guest = world.kernel.objects[Key(LINK, done.ifname)], world.kernel.objects[Key(GUEST, done.ifname)]
    assert isinstance(link, Veth) and link.namespace == (4, inode)
    assert isinstance(guest, Guest) and (guest.name, guest.mac) == ("ethwe", done.mac)
    assert list(world.table.of(ME)) == [done.endpoint(ME)]
    assert world.kernel.harm == []


def test_a_name_that_leads_elsewhere_before_anybody_noticed_is_followed(world: World) -> None:
    """Deleted and added again in one moment: the old pair goes, the new one is in the new namespace."""
    done = attach(world, "c1", "10.32.0.1/16")
    world.add("c1", 99)
    world.there_again(c1=Place(world.namespaces["c1"]))
    assert world.attachments.all() == [replace(done, namespace_id=(4, 99))]
    link = world.kernel.objects[Key(LINK, done.ifname)]
    assert isinstance(link, Veth) and link.namespace == (4, 99)


def test_an_attach_of_a_name_that_is_back_finds_what_was_kept(world: World) -> None:
    """It need not wait for the watch, and adds to what is there as any attach does."""
    done = deleted(world, "c1", "10.32.0.1/16")
    world.add("c1", 99)
    world.kernel.vanished.clear()
    again = attach(world, "c1", "10.32.0.5/16")
    assert [str(binding) for binding in again.bindings] == ["10.32.0.1/16", "10.32.0.5/16"]
    assert (again.mac, again.ifname, again.namespace_id) == (done.mac, done.ifname, (4, 99))
    assert world.attachments.all() == [again]


def test_an_attach_that_fails_leaves_it_away_as_it_was(world: World) -> None:
    """The new namespace ends in the middle of it."""
    deleted(world, "c1", "10.32.0.1/16")
    world.add("c1", 99)
    refused(world, world.attachments.attach(wish("c1", "10.32.0.5/16")), "namespace-gone")
    assert world.attachments.here() == []


def test_old_news_brings_nothing_back(world: World) -> None:
    """What was found has ended by the time that it is its turn, or is attached under another name, or was detached."""
    done = deleted(world, "c1", "10.32.0.1/16")
    world.there_again(c1=Place(Namespace("/run/netns/c1", (4, 98))))
    assert world.attachments.here() == []
    world.add("c1", 99)
    world.namespaces["also"] = Namespace("/run/netns/also", (4, 99))
    other = attach(world, "also", "10.32.0.9/16")
    world.there_again(c1=Place(world.namespaces["c1"]))
    assert world.attachments.here() == [other]
    del world.namespaces["c1"]
    detach(world, "c1")
    world.add("c1", 98)
    run(world.attachments.come_back({done.ifname: Place(world.namespaces["c1"])}))
    assert world.attachments.all() == [other]


def test_two_names_of_one_namespace_do_not_both_come_back_to_it(world: World) -> None:
    """A container has one interface of ours."""
    deleted(world, "c1", "10.32.0.1/16")
    deleted(world, "c2", "10.32.0.2/16")
    world.add("c1", 99)
    world.add("c2", 99)
    world.there_again(c1=Place(world.namespaces["c1"]), c2=Place(world.namespaces["c2"]))
    (here,) = world.attachments.here()
    assert len(world.attachments.all()) == 2 and world.kernel.harm == []
    assert set(world.kernel_addresses(here)) == set(here.texts())


def test_one_that_took_the_number_is_no_obstacle(world: World) -> None:
    """c2 has ended unnoticed, and the next c1 has its inode number."""
    deleted(world, "c1", "10.32.0.1/16")
    gone = attach(world, "c2", "10.32.0.2/16")
    del world.namespaces["c2"]
    world.add("c1", 2)
    world.there_again(c1=Place(world.namespaces["c1"]))
    assert [each.id for each in world.attachments.here()] == ["c1"]
    assert [each.id for each in world.attachments.all() if each.away_since is not None] == [gone.id]


@pytest.mark.parametrize("step", ["away", "back"])
def test_a_full_disk_puts_it_off(world: World, step: str) -> None:
    """Memory never says what the disk does not."""
    done = attach(world, "c1", "10.32.0.1/16")
    if step == "back":
        del world.namespaces["c1"]
        world.reported_gone(done)
        world.add("c1", 99)
    else:
        del world.namespaces["c1"]
    before, world.disk_full = world.attachments.all(), True
    if step == "back":
        world.there_again(c1=Place(world.namespaces["c1"]))
    else:
        world.reported_gone(done)
    assert world.attachments.all() == before == [attachment_from_json(row) for row in world.on_disk()]
    world.disk_full = False
    if step == "back":
        world.there_again(c1=Place(world.namespaces["c1"]))
    else:
        world.reported_gone(done)
    assert world.attachments.all() != before


# Who may have the addresses


def test_an_address_of_an_away_one_is_not_given_to_another(world: World) -> None:
    """The refusal says that it is away, and what frees it; detaching it does."""
    deleted(world, "c1", "10.32.0.1/16")
    text = refused(world, world.attachments.attach(wish("c2", "10.32.0.1/16")), "address-taken")
    assert "held by c1 on this host, away now" in text and "weft detach 10.32.0.1/16 c1" in text
    assert detach(world, "c1") == ["10.32.0.1/16"]
    assert world.attachments.all() == [] and list(world.table.of(ME)) == []
    assert attach(world, "c2", "10.32.0.1/16").id == "c2"


def test_an_address_of_one_that_is_away_on_another_host_is_not_given_either(world: World) -> None:
    """Its host is in reach and keeps it. The refusal says so, and what to type there."""
    there = replace(world.elsewhere(P, "10.32.0.1"), away=True)
    pager = TablePager()
    pager.put("x", encode_row(there))
    world.table.replace_page(P, 0, pager.body(0))
    world.reachable = {P}
    text = refused(world, world.attachments.attach(wish("c1", "10.32.0.1/16")), "address-taken")
    assert "held by c-3 on host alpha, away there" in text and "weft detach 10.32.0.1/16 c-3" in text


def test_one_address_of_an_away_one_can_be_taken_from_it(world: World) -> None:
    """The others come back."""
    done = deleted(world, "c1", "10.32.0.1/16", "10.32.0.2/16")
    assert detach(world, "c1", "10.32.0.1/16") == ["10.32.0.1/16"]
    attach(world, "c2", "10.32.0.1/16")
    world.add("c1", 99)
    world.there_again(c1=Place(world.namespaces["c1"]))
    assert set(world.kernel_addresses(done)) == {"10.32.0.2/16"}


def test_an_address_lost_to_another_host_while_away_stays_there(world: World) -> None:
    """This host was out of reach for a while: the other's claim is higher."""
    done = deleted(world, "c1", "10.32.0.1/16", "10.32.0.2/16")
    world.elsewhere(Q, "10.32.0.1", claim=2, salt=1)
    world.add("c1", 99)
    world.there_again(c1=Place(world.namespaces["c1"]))
    assert set(world.kernel_addresses(done)) == {"10.32.0.2/16"}
    holder = world.table.holder(ip_address("10.32.0.1"))
    assert holder is not None and holder.owner == Q


def test_no_more_than_a_limit_are_away(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The longest away is forgotten, and everybody hears it."""
    monkeypatch.setattr(attach_module, "AWAY_MAX", 2)
    clock = iter(range(1000, 2000))
    monkeypatch.setattr(attach_module.time, "time", lambda: next(clock))
    for number in (1, 2, 3):
        world.add(f"n{number}", 50 + number)
        deleted(world, f"n{number}", f"10.32.0.{number}/16")
    assert [each.id for each in world.attachments.all()] == ["n2", "n3"]
    assert sorted(each.id for each in world.table.of(ME)) == ["n2", "n3"]


# Another life, another boot


def test_a_boot_leaves_names_away_and_containers_too(world: World) -> None:
    """Until they are there again; pids are forgotten. Reading changes nothing on disk."""
    world.add_process(4711, 11)
    world.add_container("web", 4712, 12)
    before = [attach(world, "4711", "10.32.0.1/16"), attach(world, "c1", "10.32.0.2/16")]
    before.append(attach(world, "web", "10.32.0.3/16"))
    world.boot = "another boot"
    after = world.launch()
    assert [(each.id, each.away_since is not None) for each in after.all()] == [("c1", True), ("web", True)]
    assert [attachment_from_json(row) for row in world.on_disk()] == sorted(before, key=lambda each: each.ifname)
    world.boot = "this boot"
    assert len(world.launch().here()) == 3


def test_what_was_away_is_away_in_the_next_life(world: World) -> None:
    """Since the same moment, whichever boot it is."""
    deleted(world, "c1", "10.32.0.1/16")
    (away,) = world.attachments.all()
    for boot in ("this boot", "another boot"):
        world.boot = boot
        assert world.launch().all() == [away]


def test_state_of_a_version_that_knew_no_return_is_read(world: World) -> None:
    """Named namespaces come back from it, under the interface name that they had."""
    old = replace(attach(world, "c1", "10.32.0.1/16"), ifname="vw0123456789a").to_json()
    del old["container"], old["away_since"]
    old["namespace"] = "/var/run/netns/c1"
    read = attachment_from_json(old)
    assert (read.ifname, read.namespace, read.comes_back) == ("vw0123456789a", "/run/netns/c1", True)
    assert read.container is None and read.away_since is None


# The value


def test_a_name_is_one_in_either_spelling_and_no_other_path_is() -> None:
    """/var/run is /run; a file elsewhere is nobody's name."""
    for path in ("/run/netns/web", "/var/run/netns/web", "/run/netns/./web", "/run//netns/web"):
        assert canonical(path) == "/run/netns/web"
    for path in ("/proc/4711/ns/net", "/run/netns/deeper/web", "/srv/netns/web"):
        assert canonical(path) == path


def test_the_interface_is_named_after_what_comes_back(world: World) -> None:
    """A name's and a container's stay the same in every namespace; two things never share one."""
    named, other = ("/run/netns/web", (4, 1)), ("/proc/7/ns/net", (4, 1))
    assert ifname_of(*named, None, "weft") == ifname_of(named[0], (4, 2), None, "weft")
    assert ifname_of(*other, "c" * 64, "weft") == ifname_of("/proc/8/ns/net", (4, 2), "c" * 64, "weft")
    assert ifname_of(*other, None, "weft") != ifname_of(other[0], (4, 2), None, "weft")
    names = [ifname_of(*named, None, "weft"), ifname_of(*other, None, "weft"), ifname_of(*other, "c" * 64, "weft")]
    assert len(set(names)) == 3 and all(len(name) <= 15 for name in names)


def test_after_a_boot_nothing_is_there() -> None:
    here = Attachment("web", "vw1", "/run/netns/web", (4, 1), b"\x02" * 6, (), (), (), "weft")
    pid = replace(here, namespace="/proc/7/ns/net")
    away = replace(here, ifname="vw2", away_since=5)
    kept, gone = after_boot([here, pid, away], 100)
    assert kept == [replace(here, away_since=100), away]
    assert [each.namespace for each in gone] == ["/proc/7/ns/net"]


def test_the_longest_away_are_too_many() -> None:
    here = Attachment("web", "vw0", "/run/netns/web", (4, 1), b"\x02" * 6, (), (), (), "weft")
    held = {f"vw{n}": replace(here, ifname=f"vw{n}", away_since=since) for n, since in enumerate([None, 30, 10, 20])}
    assert [each.ifname for each in too_long_away(held, 1)] == ["vw2", "vw3"]
    assert too_long_away(held, 3) == []


# Containers


def test_a_container_is_attached_by_name_id_or_the_beginning_of_one(world: World) -> None:
    """Whichever it is, it is the same container."""
    container = world.add_container("web", 4711, 11)
    done = attach(world, "web", "10.32.0.1/16")
    assert (done.id, done.container, done.namespace) == ("web", container, "/proc/4711/ns/net")
    assert world.kernel_addresses(done) == {"10.32.0.1/16": done.mac}
    for target in (container, container[:12], "4711", "/proc/4711/ns/net"):
        assert attach(world, target, "10.32.0.1/16") == done
    assert list(world.attachments.all()) == [done]


def test_a_pid_in_a_container_is_that_container(world: World) -> None:
    """Where Docker knows it. Where nobody can be asked, or it is somebody else's, it is a pid and no more."""
    container = world.add_container("web", 4711, 11)
    assert attach(world, "4711", "10.32.0.1/16").container == container
    world.add_process(4712, 12, container="f" * 64)
    assert attach(world, "4712", "10.32.0.2/16").container is None
    other = world.add_container("db", 4713, 13)
    world.docker.trouble = "no Docker Engine answers"
    done = attach(world, "4713", "10.32.0.3/16")
    assert done.container is None
    world.docker.trouble = ""
    known = replace(done, container=other, container_name="db")
    assert attach(world, "4713", "10.32.0.3/16") == known, "learnt when it is said again"
    asked = len(world.docker.asked)
    world.add_process(4714, 14)
    attach(world, "4714", "10.32.0.4/16")
    assert len(world.docker.asked) == asked, "a process in no container is nothing to ask Docker about"


def test_a_name_for_a_container_becomes_that_container_and_the_name_another(world: World) -> None:
    """Neither attachment is lost to the other, though both were made by the same word."""
    container = world.add_container("web", 4711, 11)
    world.namespaces["c1"] = Namespace("/run/netns/c1", (4, 11))
    named = attach(world, "c1", "10.32.0.1/16")
    assert named.container is None
    first = attach(world, "web", "10.32.0.1/16")
    assert (first.container, first.ifname, first.mac) == (container, named.ifname, named.mac)
    world.add("c1", 99)
    second = attach(world, "c1", "10.32.0.2/16")
    assert second.ifname != first.ifname
    assert sorted(world.attachments.all(), key=lambda each: each.mac) == sorted(
        [first, second], key=lambda each: each.mac
    )
    assert world.kernel_addresses(first) == {"10.32.0.1/16": first.mac}
    assert world.kernel_addresses(second) == {"10.32.0.2/16": second.mac}


def test_a_process_that_joined_a_container_stands_for_it(world: World) -> None:
    """The path that is kept is that of the container's first process, which lives as long as it."""
    container = world.add_container("web", 4711, 11)
    world.add_process(4800, 11, container)
    done = attach(world, "4800", "10.32.0.1/16")
    assert (done.container, done.namespace) == (container, "/proc/4711/ns/net")


def test_a_container_that_starts_again_is_as_before(world: World) -> None:
    """Another process, another namespace; the same interface, MAC and addresses."""
    container = world.add_container("web", 4711, 11)
    done = attach(world, "web", "10.32.0.1/16")
    world.end_process(4711)
    world.reported_gone(done)
    (away,) = world.attachments.all()
    assert away.away_since is not None and not in_kernel(world, done)
    del world.docker.containers[container]
    world.add_container("web", 4999, 12)
    world.there_again(web=Place(world.namespaces["4999"], container))
    assert world.attachments.all() == [replace(done, namespace="/proc/4999/ns/net", namespace_id=(4, 12))]
    assert world.kernel_addresses(done) == {"10.32.0.1/16": done.mac}


def test_a_removed_container_is_forgotten(world: World) -> None:
    """Its addresses are free; others stay, and saying it twice says nothing."""
    container = world.add_container("web", 4711, 11)
    done, stays = attach(world, "web", "10.32.0.1/16"), attach(world, "c1", "10.32.0.2/16")
    for _ in range(2):
        run(world.attachments.forget(frozenset({container, "e" * 64})))
    assert world.attachments.all() == [stays]
    assert world.told.count((done.ifname, None)) == 1
    attach(world, "c2", "10.32.0.1/16")


@pytest.mark.parametrize("docker", ["answers", "does not"])
def test_a_container_that_is_away_is_detached_by_any_of_its_names(world: World, docker: str) -> None:
    """Without Docker by what it was attached as, or by its id."""
    container = world.add_container("web", 4711, 11)
    for target in ("web", container, container[:6], *(["renamed"] if docker == "answers" else [])):
        done = attach(world, "web", "10.32.0.1/16")
        world.docker.containers[container] = replace(world.docker.containers[container], name="renamed", pid=0)
        namespace = world.namespaces.pop("4711")
        world.reported_gone(done)
        world.docker.trouble = "" if docker == "answers" else "no Docker Engine answers"
        assert detach(world, target) == ["10.32.0.1/16"], target
        assert world.attachments.all() == []
        world.docker.containers[container] = replace(world.docker.containers[container], name="web", pid=4711)
        world.docker.trouble = ""
        world.namespaces["4711"] = namespace
        world.kernel.vanished.clear()


def test_a_name_that_is_both_is_the_namespace(world: World) -> None:
    """And Docker is not even asked."""
    world.add_container("c1", 4711, 11)
    done = attach(world, "c1", "10.32.0.1/16")
    assert (done.namespace, done.container) == ("/run/netns/c1", None)
    assert world.docker.asked == []


def test_what_is_neither_says_where_it_was_looked_for(world: World) -> None:
    """In both places; and why one could not be looked at."""
    text = refused(world, world.attachments.attach(wish("nowhere", "10.32.0.1/16")), "bad-target")
    assert "network namespace 'nowhere' does not exist" in text
    assert "Docker at /run/made-up-docker.sock has no container 'nowhere'" in text and "docker ps" in text
    world.docker.trouble = "no Docker Engine answers at /run/made-up-docker.sock (No such file or directory)"
    text = refused(world, world.attachments.attach(wish("nowhere", "10.32.0.1/16")), "bad-target")
    assert "network namespace 'nowhere' does not exist" in text and world.docker.trouble in text
    asked = len(world.docker.asked)
    for target in ("/run/netns/nowhere", "-x", "a b", "../etc"):
        refused(world, world.attachments.attach(wish(target, "10.32.0.1/16")), "bad-target")
    assert len(world.docker.asked) == asked, "no container can have such a name"


def test_a_container_that_does_not_run_says_so(world: World) -> None:
    world.add_container("web", 0, 0)
    text = refused(world, world.attachments.attach(wish("web", "10.32.0.1/16")), "bad-target")
    assert "container web does not run" in text and "docker start web" in text
