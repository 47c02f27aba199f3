"""The daemon and the sleeve: in which order what begins, what the worker is told, what the next daemon remembers."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from dataplane.desired import SLEEVE, VXLAN
from dataplane.objects import OFFLOADS, Key, Offloads
from dataplane.offloadprobe import IPV4, IPV6
from dataplane.sleeve.control import SILENT, PeerStatus
from gossip.names import PeerName, format_name
from mesh import probes as probes_module
from mesh import requests
from mesh.daemon import Daemon
from mesh.errors import UserError
from mesh.offloadprober import Subject
from mesh.offloads import Fault
from mesh.store import Store
from tests.mesh.daemons import Stage, ask, document, joined, read, run, until


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stage:
    return Stage(tmp_path, monkeypatch)


def test_a_worker_is_prepared_before_the_kernel_and_started_after_it(stage: Stage) -> None:
    """With a secret on a host that carried plain VXLAN: one in clear ends first, the device goes, then ours starts."""
    host = stage.host("h1")

    async def scenario() -> None:
        async with host.launched():
            assert "weft-vx" in host.sleeves[0].did[1]
        operations = len(host.kernel.operations)
        async with host.launched(passwords=("correct horse battery staple",)) as daemon:
            assert host.sleeves[1].did == [f"prepare after {operations} operations", "start with weft,weft-tap"]
            record = daemon.node.replica.record
            assert len(record.attributes["sleeve_key"]) == 32 and record.attributes["vxlan"] is False
        first, second = host.sleeves
        assert (first.settings.psks, len(second.settings.psks)) == ((), 1)
        assert first.settings.private_key == second.settings.private_key
        assert second.epoch > first.epoch
        assert (first.ended, second.ended) == (False, False), "a worker outlives its daemon"

    run(scenario())


def test_what_the_worker_is_told_to_be_like_is_what_the_user_said(stage: Stage) -> None:
    """Where to listen, and what to do without."""
    host = stage.host("h1", offloads_off=("tap",))

    async def scenario() -> None:
        async with host.launched() as daemon:
            settings = host.sleeves[0].settings
            assert (settings.hosts, settings.port, settings.tap) == ((host.address,), stage.port, "weft-tap")
            assert (settings.offloads_off, settings.name) == (("tap",), daemon.node.name)

    run(scenario())


def test_a_worker_that_does_not_come_up_fails_the_launch_and_leaves_nothing(stage: Stage) -> None:
    """Another program has the UDP port, say."""
    host = stage.host("h1")
    host.refusal = "UDP port 6783 is in use by another program"

    async def scenario() -> None:
        with pytest.raises(UserError, match="UDP port 6783 is in use"):
            async with host.launched():
                raise AssertionError("it started")
        assert host.kernel.objects == {}
        assert host.sleeves[0].ended is True

    run(scenario())


def test_reset_ends_the_worker(stage: Stage) -> None:
    """Before the TAP goes."""
    host = stage.host("h1")

    async def scenario() -> None:
        async with host.launched() as daemon:
            await ask(daemon, requests.Reset())
            await daemon.wait_stopped()
        assert host.sleeves[0].ended is True

    run(scenario())


def test_an_identity_from_before_the_sleeve_gets_its_key(stage: Stage) -> None:
    """On disk before use; the name and the other keys stay."""
    host = stage.host("h1")

    async def scenario() -> None:
        async with host.made() as daemon:
            name = daemon.node.name
        path = stage.path / "h1" / "state"
        old = document(stage, "h1", "identity")
        sleeve = old.pop("sleeve_private")
        with Store(str(path)) as store:
            store.write("identity", old)
        async with host.made() as daemon:
            assert daemon.node.name == name
            new = document(stage, "h1", "identity")
            made = host.sleeves[1].settings.private_key.hex()
            assert new == {**old, "epoch": old["epoch"] + 1, "sleeve_private": made}
            assert made != sleeve
        async with host.made():
            assert host.sleeves[2].settings.private_key == host.sleeves[1].settings.private_key

    run(scenario())


def test_a_narrow_path_narrows_the_network_and_is_remembered(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both hosts', from what one of them found; the next daemon begins with it. One below IPv6's minimum does not."""
    monkeypatch.setattr(probes_module, "SAVE_DELAY_S", 0.01)
    first, second = stage.host("h1"), stage.host("h2")

    def finds(b: Daemon, name: PeerName, size: int) -> None:
        b._probes._measurers[4]._mtus.found = {name: size}
        b._probes._found()

    async def scenario() -> None:
        async with first.launched() as a:
            async with second.launched(peers=(first.address,)) as b:
                await joined(a, b)
                name = a.node.name
                finds(b, name, 1000)
                await asyncio.sleep(0.1)
                assert (await read(b, "connections"))[0]["path_mtu"] == 1000
                assert a._router.mtu == b._router.mtu == 1450
                finds(b, name, 1350)
                await until(lambda: a._router.mtu == b._router.mtu == 1350, "both have shrunk")
                saved = {"faults": {}, "path_mtus": {format_name(name): 1350}, "faults6": {}, "path_mtus6": {}}
                await until(lambda: document(stage, "h2", "vxlan") == saved, "it is on disk")
            async with second.made() as b:
                assert b._router.mtu == b._router.told_mtu == 1350
            async with second.made(vxlan=False) as b:
                assert b._router.told_mtu == 1450
            async with second.made(mtu=1400) as b:
                b._describe()
                assert b.node.replica.peers[b.node.name].attributes["mtu"] == 1400

    run(scenario())


def test_a_peer_that_vxlan_does_not_reach_moves_and_is_remembered(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next daemon begins with the sleeve, not with some seconds of silence."""
    monkeypatch.setattr(probes_module, "SAVE_DELAY_S", 0.01)
    first, second = stage.host("h1"), stage.host("h2")

    async def scenario() -> None:
        async with first.launched() as a:
            async with second.launched(peers=(first.address,)) as b:
                await joined(a, b)
                name = a.node.name
                assert [(row["path"], row["reason"]) for row in await read(b, "connections")] == [("vxlan", "best")]
                await until(lambda: second.sleeves[0].told[name].peer.flood is False, "the worker knows it")
                b._probes._probers.each[4]._health.verdicts = {name: "vxlan-silent"}
                b._probes._judged()
                await until(lambda: second.sleeves[0].told[name].peer.flood, "broadcasts go by the sleeve")
                rows = await read(b, "connections")
                assert [(row["path"], row["reason"]) for row in rows] == [("sleeve", "vxlan-silent")]
                faults = {
                    "faults": {rows[0]["peer"]: "vxlan-silent"}, "path_mtus": {}, "faults6": {}, "path_mtus6": {},
                }  # fmt: skip
                await until(lambda: document(stage, "h2", "vxlan") == faults, "it is on disk")
            async with second.launched() as b:
                await joined(a, b)
                rows = await read(b, "connections")
                assert [(row["path"], row["reason"]) for row in rows] == [("sleeve", "vxlan-silent")]
                second.sleeves[1].peers = {
                    name: PeerStatus(name, SILENT, None, False, "none", 0.0, None, 0.0, 1, 0, ())
                }
                second.sleeves[1].on_news()
                await until(lambda: b._router.paths[name].kind == "none", "the path follows")
                assert (await read(b, "connections"))[0]["path"] == "none"
                assert [row["code"] for row in (await read(b, "status"))["warnings"]] == ["sleeve-silent"]
                assert (await read(b, "report"))["counters"]["sleeve"]["started"] == 1

    run(scenario())


def test_what_the_user_switches_off_goes_to_whom_it_concerns(stage: Stage) -> None:
    """Some of it to the worker, some to the VXLAN device."""
    host = stage.host("h1", offloads_off=("udp-gro", "vxlan-segment"))

    async def scenario() -> None:
        async with host.launched():
            assert host.sleeves[0].settings.offloads_off == ("udp-gro",)
            assert host.kernel.objects[Key(OFFLOADS, "weft-vx")] == Offloads(("vxlan-segment",))

    run(scenario())


def test_offloads_that_lie_are_off_at_once_said_and_remembered(stage: Stage) -> None:
    """On both paths, also in the next life; not under another kernel, which may do better."""
    first, second = stage.host("h1"), stage.host("h2")

    async def scenario() -> None:
        async with first.launched() as a, second.launched(peers=(first.address,)) as b:
            await joined(a, b)
            name = a.node.name
            (device,) = b._offloads._devices.values()
            offloads = b._offloads._offloads
            offloads[Subject(VXLAN, IPV4)].faults = (Fault(device, "vxlan-checksum", name),)
            offloads[Subject(SLEEVE, IPV6)].faults = (Fault("weft-tap", "tap", name),)
            b._refresh()
            row = Key(OFFLOADS, "weft-vx")
            await until(lambda: second.kernel.objects[row] == Offloads(("vxlan-checksum",)), "the kernel has it")
            assert second.sleeves[0].reconfigured[-1].offloads_off == ("tap",)
            assert [row["offloads_off"] for row in await read(b, "connections")] == [["vxlan-checksum"]]
            warnings = (await read(b, "status"))["warnings"]
            assert [each["code"] for each in warnings] == ["offload-lies", "offload-lies"]
            assert "h1" in warnings[0]["text"] and "eth0" in warnings[0]["text"]
            await until(lambda: document(stage, "h2", "offloads") is not None, "it is on disk")
            rows = document(stage, "h2", "offloads")["faults"]
            assert [each["offload"] for each in rows] == ["vxlan-checksum", "tap"]
        async with second.launched() as b:
            assert second.kernel.objects[row] == Offloads(("vxlan-checksum",))
            assert second.sleeves[1].settings.offloads_off == ("tap",)
        path = stage.path / "h2" / "state"
        with Store(str(path)) as store:
            store.write("offloads", {**document(stage, "h2", "offloads"), "release": "1.2.3"})
        async with second.launched() as b:
            assert second.kernel.objects[row] == Offloads(())
            assert second.sleeves[2].settings.offloads_off == ()
            assert (await read(b, "status"))["warnings"] == []

    run(scenario())


def test_a_later_epoch_is_for_the_worker_too(stage: Stage) -> None:
    """The disk was restored from a copy: its handshakes would be taken for old ones."""
    host = stage.host("h1")

    async def scenario() -> None:
        async with host.launched() as daemon:
            await daemon._store_epoch(40)
            assert host.sleeves[0].renewed == [40]
            assert document(stage, "h1", "identity")["epoch"] == 40

    run(scenario())
