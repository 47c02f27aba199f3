"""The daemon's composition over a fake kernel: what a start and a stop leave behind, and that nothing is half made."""

from __future__ import annotations

import asyncio
import errno
import socket
import time
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path

import pytest

from dataplane.kernel import KernelError, Operation
from dataplane.linux import underlay
from dataplane.linux.underlay import Survey
from dataplane.objects import BRIDGE_FDB, LINK, Key, Vxlan
from gossip.events import Settled
from mesh import arguments, requests
from mesh import handover as handover_module
from mesh import underlay as underlay_module
from mesh.daemon import Daemon
from mesh.endpoints import bridge_mac, derive_mac
from mesh.errors import UserError
from mesh.ipam.ranges import Allocation
from mesh.requests import ApiError
from mesh.store import Store, StoreError
from tests.mesh.daemons import Stage, ask, attach, document, joined, read, run, until

DETACH = requests.Detach("c1", ())


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stage:
    return Stage(tmp_path, monkeypatch)


# A life


def test_a_daemon_serves_and_leaves_the_kernel_as_it_is(stage: Stage) -> None:
    """Bridge and VXLAN device are there while it runs, and afterwards."""
    host = stage.host("h1")

    async def scenario() -> None:
        async with host.launched() as daemon:
            status = await read(daemon, "status")
            assert (status["nickname"], status["peers"], status["warnings"]) == ("h1", 1, [])
            assert set(await read(daemon, "report")) >= {"status", "peers", "counters", "history", "version"}
            await ask(daemon, attach("c1", "10.32.0.1/16"))
            objects = dict(host.kernel.objects)
            assert list(host.kernel.addresses().values()) == [["10.32.0.1/16"]]
        assert host.kernel.objects == objects
        assert host.kernel.is_closed

    run(scenario())


def test_addresses_are_given_shown_and_found_again(stage: Stage) -> None:
    """A host alone makes a ring of its own; what a crash left given and not attached is released at the next start."""
    host = stage.host("h1")

    async def scenario() -> None:
        async with host.launched() as daemon:
            assert (await read(daemon, "status"))["ipam"]["state"] == "idle"
            given = await ask(daemon, requests.Attach("c1", (), "weft", (), ()))
            assert len(given["addresses"]) == 2 and given["addresses"][0] == "10.32.0.1/12"
            status = await read(daemon, "status")
            assert (status["ipam"]["state"], status["ipam"]["range"]) == ("ready", "10.32.0.0/12")
            assert status["warnings"] == []
            assert await ask(daemon, requests.IpamCheck(False)) == []
            export = await ask(daemon, requests.IpamExport())
            entry = {"owner": "netns:c1", "addresses": given["addresses"], "wants": ["net:default"]}
            assert export["entries"] == [entry]
        instead = Allocation(instead="the default range collides with the route 10.0.0.0/8 on this host")
        async with host.launched(ipalloc=instead) as daemon:
            entries = (await read(daemon, "ipam"))["entries"]
            assert [each["owner"] for each in entries if each["state"] == "given"] == ["netns:c1"]
            codes = [each["code"] for each in (await read(daemon, "status"))["warnings"]]
            assert "range-collides" in codes

    run(scenario())


def test_the_next_life_has_the_same_name_targets_and_containers(stage: Stage) -> None:
    """And a later epoch; nothing in the kernel is touched on the way."""
    host = stage.host("h1")

    async def scenario() -> None:
        async with host.launched(peers=("10.9.0.7", "[fd00::7]:7000")) as daemon:
            await ask(daemon, attach("c1", "10.32.0.1/16", "fd00:32::1/64"))
            name, rows, ps = daemon.node.name, await read(daemon, "endpoints"), await read(daemon, "ps")
            epoch = document(stage, "h1", "identity")["epoch"]
        operations = len(host.kernel.operations)
        async with host.launched() as daemon:
            assert daemon.node.name == name
            assert document(stage, "h1", "identity")["epoch"] == epoch + 1
            assert await read(daemon, "endpoints") == rows
            assert await read(daemon, "ps") == ps
            assert [row["target"] for row in await read(daemon, "targets")] == ["10.9.0.7", "[fd00::7]:7000"]
        assert len(host.kernel.operations) == operations

    run(scenario())


def test_reset_leaves_nothing_in_the_kernel(stage: Stage) -> None:
    """Containers' interfaces included. The files are the command's to remove."""
    host = stage.host("h1")

    async def scenario() -> None:
        async with host.launched() as daemon:
            await ask(daemon, attach("c1", "10.32.0.1/16"))
            await ask(daemon, requests.Reset())
            await daemon.wait_stopped()
        assert host.kernel.objects == {}

    run(scenario())


# A start that fails


def test_a_port_in_use_is_one_line(stage: Stage) -> None:
    """A socket of some other program."""
    host = stage.host("h1")

    async def scenario() -> None:
        with socket.socket() as other:
            other.bind((host.address, stage.port))
            other.listen()
            with pytest.raises(UserError, match=f"TCP port {stage.port} is in use by another program"):
                async with host.launched(peers=("new",)):
                    raise AssertionError("it started")
        assert host.kernel.operations == []
        assert document(stage, "h1", "targets") is None, "the next launch would dial what this one was told"

    run(scenario())


def test_an_address_of_another_host_is_one_line(stage: Stage) -> None:
    """Mistyped --host."""
    host = stage.host("h1", host="192.0.2.250")

    async def scenario() -> None:
        with pytest.raises(UserError, match=r"192\.0\.2\.250 is not an address of this host"):
            async with host.launched():
                raise AssertionError("it started")

    run(scenario())


def no_vxlan(number: int, operation: Operation) -> int:
    return errno.EOPNOTSUPP if isinstance(operation.value, Vxlan) else 0


def test_without_vxlan_in_the_kernel_a_first_launch_leaves_nothing(stage: Stage) -> None:
    """The bridge was made before the VXLAN device failed, and is gone again. With --no-vxlan it starts."""
    host = stage.host("h1")
    host.kernel.fail = no_vxlan

    async def scenario() -> None:
        with pytest.raises(UserError, match=r"this kernel has no VXLAN.*--no-vxlan"):
            async with host.launched():
                raise AssertionError("it started")
        assert Key(LINK, "weft") in {operation.key for operation in host.kernel.operations}
        assert host.kernel.objects == {}
        async with host.launched(vxlan=False) as daemon:
            assert Key(LINK, "weft-vx") not in host.kernel.objects
            assert (await read(daemon, "status"))["warnings"] == []

    run(scenario())


def test_a_later_launch_that_fails_leaves_running_containers_alone(stage: Stage) -> None:
    """What an earlier life left in the kernel carries traffic."""
    host = stage.host("h1")

    async def scenario() -> None:
        async with host.launched() as daemon:
            await ask(daemon, attach("c1", "10.32.0.1/16"))
        before = dict(host.kernel.objects)
        host.kernel.meddle(Key(LINK, "weft-vx"), None)
        host.kernel.fail = no_vxlan
        with pytest.raises(UserError):
            async with host.launched():
                raise AssertionError("it started")
        lost = {key for key in before if key not in host.kernel.objects}
        assert lost and all("weft-vx" in (key.device, before[key]) for key in lost)
        host.kernel.fail = lambda number, operation: 0
        async with host.launched():
            assert host.kernel.objects == before

    run(scenario())


def test_a_kernel_that_does_not_answer_is_one_line(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """And what it does after all is taken back."""
    monkeypatch.setattr(handover_module, "REPORT_LIMIT_S", 0.1)
    host = stage.host("h1")
    host.kernel.running.clear()

    async def scenario() -> None:
        with pytest.raises(UserError, match="the kernel did not answer within"):
            async with host.made() as daemon:
                try:
                    await daemon.start()
                finally:
                    host.kernel.running.set()
        assert host.kernel.objects == {}

    run(scenario())


def test_a_start_that_is_cut_short_leaves_nothing(stage: Stage) -> None:
    """SIGTERM while the kernel is at it."""
    host = stage.host("h1")
    host.kernel.running.clear()

    async def scenario() -> None:
        async with host.made() as daemon:
            starting = asyncio.ensure_future(daemon.start())
            await until(host.kernel.is_asked.is_set, "the kernel is asked for something")
            starting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await starting
            host.kernel.running.set()
        assert host.kernel.objects == {}
        assert host.kernel.is_closed

    run(scenario())


@pytest.mark.parametrize("name", ["identity", "targets", "attachments"])
@pytest.mark.parametrize(
    "content",
    [b"", b"{", b'{"format": 1, "sha256": "00", "payload": {}}', b"\xff" * 100],
    ids=["empty", "cut", "wrong checksum", "garbage"],
)
def test_a_corrupt_document_is_refused_and_left_as_it_is(stage: Stage, name: str, content: bytes) -> None:
    """Also targets that this launch would replace. Nothing was begun."""
    host = stage.host("h1")

    async def scenario() -> None:
        async with host.launched(peers=("old",)) as daemon:
            await ask(daemon, attach("c1", "10.32.0.1/16"))
        objects, operations = dict(host.kernel.objects), len(host.kernel.operations)
        path = stage.path / "h1" / "state" / f"{name}.weft"
        path.write_bytes(content)
        for peers in (None, ("new",)):
            with pytest.raises(StoreError, match=f"{name}.weft.*left as it is.*weft reset") as caught:
                async with host.made(peers=peers):
                    raise AssertionError("it was made")
            assert "\n" not in str(caught.value)
        assert path.read_bytes() == content
        assert (host.kernel.objects, len(host.kernel.operations)) == (objects, operations)

    run(scenario())


def test_a_full_disk_at_launch_is_one_line(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """The identity cannot be kept: a name that is forgotten with the process must not be told to anybody."""
    host = stage.host("h1")

    def full(self: Store, name: str, payload: object) -> None:
        raise StoreError(f"cannot save {name} (No space left on device)")

    monkeypatch.setattr(Store, "write", full)

    async def scenario() -> None:
        with pytest.raises(StoreError, match="No space left"):
            async with host.made():
                raise AssertionError("it was made")
        assert host.kernel.operations == []

    run(scenario())


# A stop in the middle


def test_a_stop_takes_an_attach_under_way_back(stage: Stage) -> None:
    """Whoever asked cannot be answered any more, so nothing of it stays for the next launch."""
    host = stage.host("h1")

    async def scenario() -> None:
        async with host.made() as daemon:
            await daemon.start()
            await ask(daemon, attach("c2", "10.32.0.2/16"))
            host.kernel.running.clear()
            host.kernel.is_asked.clear()
            attaching = asyncio.ensure_future(ask(daemon, attach("c1", "10.32.0.1/16")))
            await until(host.kernel.is_asked.is_set, "the kernel is asked for the port")
            assert len(document(stage, "h1", "attachments")["attachments"]) == 2
            attaching.cancel()  # the API cuts off who is not answered in time
            asyncio.get_running_loop().call_later(0.2, host.kernel.running.set)
        assert [row["id"] for row in document(stage, "h1", "attachments")["attachments"]] == ["c2"]
        async with host.launched():
            assert list(host.kernel.addresses().values()) == [["10.32.0.2/16"]]

    run(scenario())


def test_a_caller_that_goes_away_does_not_cut_an_attach_in_half(stage: Stage) -> None:
    """It is finished without anybody to tell."""
    host = stage.host("h1")

    async def scenario() -> None:
        async with host.launched() as daemon:
            host.kernel.running.clear()
            host.kernel.is_asked.clear()
            attaching = asyncio.ensure_future(ask(daemon, attach("c1", "10.32.0.1/16")))
            await until(host.kernel.is_asked.is_set, "the kernel is asked for the port")
            attaching.cancel()
            host.kernel.running.set()
            await until(lambda: len(daemon._router.table) == 1, "the endpoint is told")
            assert [row["id"] for row in await read(daemon, "ps")] == ["c1"]

    run(scenario())


def test_after_a_stop_began_nothing_new_is_begun(stage: Stage) -> None:
    """A request that was in the queue is told why."""
    host = stage.host("h1")

    async def scenario() -> None:
        async with host.launched() as daemon:
            await daemon.close()
            for request in (attach("c1", "10.32.0.1/16"), DETACH):
                with pytest.raises(ApiError) as caught:
                    await ask(daemon, request)
                assert caught.value.code == "stopping"

    run(scenario())


# Targets


def test_connects_at_once_are_all_remembered(stage: Stage) -> None:
    """Each is added to what the others added; the file holds all of them, whole."""
    host = stage.host("h1")

    async def scenario() -> None:
        async with host.launched(peers=()) as daemon:
            names = [f"10.9.0.{number}" for number in range(1, 31)]
            await asyncio.gather(*(ask(daemon, requests.Connect((name,), False)) for name in names))
            assert document(stage, "h1", "targets") == {"targets": names}
            await ask(daemon, requests.Forget(tuple(names[5:])))
            await ask(daemon, requests.Connect((names[0], "new"), False))
            assert document(stage, "h1", "targets") == {"targets": [*names[:5], "new"]}
            await ask(daemon, requests.Connect(("only",), True))
            assert document(stage, "h1", "targets") == {"targets": ["only"]}
            assert [row["target"] for row in await read(daemon, "targets")] == ["only"]

    run(scenario())


def test_one_document_written_many_times_at_once_is_whole(stage: Stage) -> None:
    """Two later epochs heard of in one moment, say. The order is that of asking."""
    host = stage.host("h1")

    async def scenario() -> None:
        async with host.launched() as daemon:
            await asyncio.gather(*(daemon._write("targets", {"targets": ["x" * 100 * n]}) for n in range(40)))
            assert document(stage, "h1", "targets") == {"targets": ["x" * 3900]}

    run(scenario())


def test_targets_are_bounded(stage: Stage) -> None:
    """However many commands they come in."""
    host = stage.host("h1")

    async def scenario() -> None:
        most = tuple(f"10.9.{number // 200}.{number % 200 + 1}" for number in range(arguments.PEERS_MAX))
        async with host.launched(peers=most) as daemon:
            with pytest.raises(ApiError, match=f"at most {arguments.PEERS_MAX}"):
                await ask(daemon, requests.Connect(("one-more",), False))
            await ask(daemon, requests.Connect((most[0],), False))
            assert len(await read(daemon, "targets")) == arguments.PEERS_MAX

    run(scenario())


def test_an_unknown_target_cannot_be_forgotten(stage: Stage) -> None:
    """The line names those that there are."""
    host = stage.host("h1")

    async def scenario() -> None:
        async with host.launched(peers=("10.9.0.7",)) as daemon:
            with pytest.raises(ApiError, match=r"10\.9\.0\.8 is not a target \(targets: 10\.9\.0\.7\)"):
                await ask(daemon, requests.Forget(("10.9.0.7", "10.9.0.8")))
            assert document(stage, "h1", "targets") == {"targets": ["10.9.0.7"]}

    run(scenario())


def test_targets_that_cannot_be_saved_are_not_taken(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """They would be forgotten at the next launch."""
    host = stage.host("h1")

    def full(self: Store, name: str, payload: object) -> None:
        raise StoreError(f"cannot save {name} (No space left on device)")

    async def scenario() -> None:
        async with host.launched(peers=("old",)) as daemon:
            monkeypatch.setattr(Store, "write", full)
            for request in (requests.Connect(("new",), False), requests.Forget(("old",))):
                with pytest.raises(ApiError) as caught:
                    await ask(daemon, request)
                assert caught.value.code == "not-saved"
            assert [row["target"] for row in await read(daemon, "targets")] == ["old"]

    run(scenario())


# From events to the kernel


def test_a_burst_of_news_is_one_desired_state_and_no_news_is_none(stage: Stage) -> None:
    """What changes nothing is not published again."""
    host = stage.host("h1")

    async def scenario() -> None:
        async with host.launched() as daemon:
            engine = daemon._handover._engine
            assert engine is not None
            published = engine._published
            for _ in range(100):
                daemon._on_event(Settled())
            await asyncio.sleep(0.05)
            assert engine._published == published
            daemon.node.settled = True
            for _ in range(100):
                daemon._on_event(Settled())
            await asyncio.sleep(0.05)
            assert engine._published == published + 1

    run(scenario())


def test_what_the_host_is_like_is_looked_at_again_and_again(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """A narrower underlay shrinks the network at once. Without addresses for a moment, or without an answer of the
    kernel, everything stays as it was."""
    monkeypatch.setattr(underlay_module, "SURVEY_INTERVAL_S", 0.01)
    host = stage.host("h1", advertise=())
    wide = replace(host.survey.addresses[0], address=ip_address(host.address), mtu=9000)
    host.survey = Survey((wide,), None)

    async def mtu(daemon: Daemon) -> tuple[int, object]:
        record = daemon.node.replica.record
        assert record.addresses == (f"{wide.address}:{stage.port}",)
        return (await read(daemon, "status"))["mtu"], record.attributes["mtu"]

    async def scenario() -> None:
        async with host.launched() as daemon:
            assert await mtu(daemon) == (8950, 8950)
            for survey in (lambda bridge: Survey((), 8950), failing):
                monkeypatch.setattr(underlay, "survey", survey)
                await asyncio.sleep(0.1)
                assert await mtu(daemon) == (8950, 8950)
            monkeypatch.setattr(underlay, "survey", lambda bridge: Survey((replace(wide, mtu=1500),), 8950))
            await until(lambda: daemon._router.mtu == 1450, "it has shrunk")
            monkeypatch.setattr(underlay, "survey", lambda bridge: Survey((wide,), 1450))
            await until(lambda: daemon.node.replica.record.attributes["mtu"] == 8950, "it says that it could take more")
            assert (await read(daemon, "status"))["mtu"] == 1450

    run(scenario())


def failing(bridge: str) -> Survey:
    raise KernelError(errno.ENOBUFS, None, "cannot list the addresses of this host: No buffer space available")


def test_a_ping_needs_a_peer_with_a_path(stage: Stage) -> None:
    """Neither strangers nor ourselves."""
    host = stage.host("h1")

    async def scenario() -> None:
        async with host.launched() as daemon:
            for peer in ("h9", "h1", "00:00:00:00:00:00:00:00"):
                with pytest.raises(ApiError, match=rf"no other peer is called {peer} \(known: there are none\)"):
                    await ask(daemon, requests.Ping(peer, 1, 1.0))

    run(scenario())


# Two hosts


def test_an_address_attached_twice_at_once_is_settled_on_both(stage: Stage) -> None:
    """Neither had heard of the other: one container has it, the other's host leads there, the MACs are two."""
    first, second = stage.host("h1"), stage.host("h2")

    async def scenario() -> None:
        async with first.launched() as a, second.launched(peers=(first.address,)) as b:
            await joined(a, b)
            await asyncio.gather(ask(a, attach("c1", "10.32.0.1/16")), ask(b, attach("c2", "10.32.0.1/16")))
            winner, loser = sorted((a, b), key=lambda each: each.node.name)
            kernels = {id(a): first.kernel, id(b): second.kernel}
            won, lost = kernels[id(winner)], kernels[id(loser)]
            mac = derive_mac("weft", ip_address("10.32.0.1"))
            other = derive_mac("weft", ip_address("10.32.0.1"), 1)
            await until(lambda: lost.addresses() == {}, "the loser's container is without the address")
            await until(lambda: [e.mac for e in winner._router.table.of(loser.node.name)] == [other], "its MAC is told")
            assert list(won.addresses().values()) == [["10.32.0.1/16"]]
            assert won.neighbour("10.32.0.1") == lost.neighbour("10.32.0.1") == mac
            assert (await read(winner, "ps"))[0]["mac"] == mac.hex(":")
            assert (await read(loser, "ps"))[0]["mac"] == other.hex(":")
            codes = {each: [w["code"] for w in (await read(each, "status"))["warnings"]] for each in (winner, loser)}
            assert codes == {winner: [], loser: ["address-conflict"]}
            for daemon in (a, b):
                conflicts = {row["peer"]: row["conflict"] for row in await read(daemon, "endpoints")}
                assert sum(text is not None for text in conflicts.values()) == 1
            # The winner lets go, and the loser's container has it at once.
            await ask(winner, requests.Detach("c1" if winner is a else "c2", ()))
            await until(lambda: list(lost.addresses().values()) == [["10.32.0.1/16"]], "it has the address back")
            await until(lambda: won.neighbour("10.32.0.1") == other, "and frames lead there")

    run(scenario())


def test_an_address_taken_while_we_were_away_stays_where_it_is(stage: Stage) -> None:
    """Our container comes back with the launch and is without it, on every host; the other one has kept the MAC."""
    first, second = stage.host("h1"), stage.host("h2")

    async def scenario() -> None:
        async with second.launched() as b:
            async with first.launched(peers=(second.address,)) as a:
                await joined(a, b)
                mac = (await ask(a, attach("c1", "10.32.0.1/16", "10.32.0.5/16")))["mac"]
                await until(lambda: len(b._router.table) == 1, "it is heard of")
                with pytest.raises(ApiError, match="held by c1 on host h1"):
                    await ask(b, attach("c2", "10.32.0.1/16"))
            await until(lambda: not b.node.replica.reachable, "h1 is away")
            taken = await ask(b, attach("c2", "10.32.0.1/16"))
            assert taken["mac"] == mac
            async with first.launched() as a:
                await joined(a, b)
                await until(lambda: list(first.kernel.addresses().values()) == [["10.32.0.5/16"]], "it is taken off")
                await until(lambda: (a._attachments.all()[0].mac.hex(":")) != mac, "it has a MAC of its own")
                taken_mac = bytes.fromhex(mac.replace(":", ""))
                assert first.kernel.neighbour("10.32.0.1") == second.kernel.neighbour("10.32.0.1") == taken_mac
                own = a._attachments.all()[0].mac
                await until(lambda: second.kernel.neighbour("10.32.0.5") == own, "the rest of it is reached")
                assert [w["code"] for w in (await read(a, "status"))["warnings"]] == ["address-conflict"]

    run(scenario())


def test_with_a_password_the_kernel_gets_no_vxlan_device_and_no_destination(stage: Stage) -> None:
    """Two hosts that know each other; containers of the other are behind the TAP."""
    first = stage.host("h1", passwords=("correct horse battery staple",))
    second = stage.host("h2", passwords=("correct horse battery staple",))

    async def scenario() -> None:
        async with first.launched() as a, second.launched(peers=(first.address,)) as b:
            await joined(a, b)
            await ask(a, attach("c1", "10.32.0.1/16"))
            await until(lambda: second.kernel.neighbour("10.32.0.1") is not None, "the endpoint is heard of")
            for host in (first, second):
                assert not any(key.device.startswith("weft-vx") for key in host.kernel.objects)
                assert not any(operation.key.device.startswith("weft-vx") for operation in host.kernel.operations)
            rows = await read(b, "connections")
            assert [(row["path"], row["reason"]) for row in rows] == [("sleeve", "no-wireguard")]
            assert rows[0]["encrypted"] is True
            mac = derive_mac("weft", ip_address("10.32.0.1"))
            assert second.kernel.objects[Key(BRIDGE_FDB, "weft", mac)] == "weft-tap"
            assert second.sleeves[0].told[a.node.name].whole().macs == (bridge_mac(a.node.name), mac)
            assert len(second.sleeves[0].settings.psks) == 1
            assert not any((*b._probes.verdicts.values(), *b._router.probed.values()))

    run(scenario())


def test_a_new_container_is_in_the_other_kernel_soon_after_attach_returns(stage: Stage) -> None:
    """Far within the fifth of a second that users are promised."""
    first, second = stage.host("h1"), stage.host("h2")

    async def scenario() -> None:
        async with first.launched() as a, second.launched(peers=(first.address,)) as b:
            await joined(a, b)
            waits = []
            for number in range(1, 6):
                await ask(a, attach("c1", f"10.32.0.{number}/16"))
                begun = time.monotonic()
                while second.kernel.neighbour(f"10.32.0.{number}") is None:
                    await asyncio.sleep(0.001)
                waits.append(time.monotonic() - begun)
            assert sorted(waits)[2] < 0.15, waits

    run(scenario())
