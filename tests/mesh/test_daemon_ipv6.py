"""The daemon on hosts with IPv6: which devices it wants, what MTU and which addresses it tells, what it remembers."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest

from dataplane.linux import underlay
from dataplane.linux.underlay import Survey, UnderlayAddress
from dataplane.objects import LINK, Key
from gossip.names import format_name
from mesh import probes as probes_module
from mesh import underlay as underlay_module
from mesh.daemon import Daemon
from tests.mesh.daemons import Stage, document, joined, read, run, until

V4 = UnderlayAddress(ip_address("192.0.2.2"), ip_network("192.0.2.0/24"), "eth0", 1500)
V6 = UnderlayAddress(ip_address("2001:db8::2"), ip_network("2001:db8::/64"), "eth0", 1500)
LINK_LOCAL = UnderlayAddress(ip_address("fe80::2%3"), ip_network("fe80::/64"), "eth0", 1400)
ONLY_V4, ONLY_V6 = Survey((V4,), None), Survey((V6,), None)


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stage:
    return Stage(tmp_path, monkeypatch)


def told_mtu(daemon: Daemon) -> Any:
    return daemon.node.replica.record.attributes["mtu"]


@pytest.mark.parametrize(
    ("survey", "advertise", "mtu", "devices"),
    [
        (ONLY_V4, (), 1450, {"weft-vx"}),
        (ONLY_V6, (), 1430, {"weft-vx", "weft-vx6"}),
        (Survey((V4, V6), None), (), 1450, {"weft-vx", "weft-vx6"}),
        (Survey((V4, V6), None), ("2001:db8::2",), 1430, {"weft-vx", "weft-vx6"}),
        (Survey((V4,), None, (LINK_LOCAL,)), (), 1450, {"weft-vx", "weft-vx6"}),
        (Survey((), None, (LINK_LOCAL,)), (), 1330, {"weft-vx", "weft-vx6"}),
        (Survey((), None), (), 1450, {"weft-vx"}),
    ],
    ids=["v4", "v6", "both", "v6-told", "v4-and-link-local", "link-local", "nothing-yet"],
)
def test_what_the_underlay_is_like_decides_on_the_devices_and_the_mtu(
    stage: Stage, survey: Survey, advertise: tuple[str, ...], mtu: int, devices: set[str]
) -> None:
    """IPv6 takes twenty bytes more; where IPv4 is there too, only once it is used."""
    host = stage.host("h1", advertise=advertise)
    host.survey = survey

    async def scenario() -> None:
        async with host.launched() as daemon:
            assert told_mtu(daemon) == mtu
            made = {key.device for key in host.kernel.objects if key.kind == LINK}
            assert made - {"weft", "weft-tap"} == devices

    run(scenario())


def test_a_device_for_ipv6_comes_with_the_first_address_and_stays(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An address that is lost for a while is no reason to remove what is behind the device."""
    monkeypatch.setattr(underlay_module, "SURVEY_INTERVAL_S", 0.01)
    host = stage.host("h1")
    host.survey = ONLY_V4
    device = Key(LINK, "weft-vx6")

    async def scenario() -> None:
        async with host.launched() as daemon:
            assert device not in host.kernel.objects
            monkeypatch.setattr(underlay, "survey", lambda bridge: Survey((V4, V6), None))
            await until(lambda: device in host.kernel.objects, "it was made")
            monkeypatch.setattr(underlay, "survey", lambda bridge: ONLY_V4)
            await until(lambda: daemon._underlay.survey == ONLY_V4, "the address was lost")
            await daemon._publish()
            assert device in host.kernel.objects

    run(scenario())


def test_link_local_addresses_are_told_to_nobody(stage: Stage) -> None:
    """Found or given."""
    for number, address in enumerate(("", "fe80::2%3")):
        host = stage.host(f"h{number}", advertise=(), host=address)
        host.survey = Survey((), None, (LINK_LOCAL,))

        async def scenario(host: Any = host) -> None:
            async with host.made() as daemon:
                daemon._describe()
                assert daemon.node.replica.record.addresses == ()

        run(scenario())


def test_the_mtu_told_shrinks_with_the_first_path_over_ipv6_and_the_verdict_is_remembered(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of each version for itself."""
    monkeypatch.setattr(probes_module, "SAVE_DELAY_S", 0.01)
    first, second = stage.host("h1"), stage.host("h2")
    for number, host in enumerate((first, second), start=1):
        own = (
            replace(V4, address=ip_address(f"192.0.2.{number}")),
            replace(V6, address=ip_address(f"2001:db8::{number}")),
        )
        host.survey = Survey(own, None)
        host.config = replace(host.config, advertise=tuple(str(each.address) for each in own))

    def saved() -> dict[str, Any]:
        return {"faults": None, "faults6": None, **(document(stage, "h2", "vxlan") or {})}

    async def scenario() -> None:
        async with first.launched() as a:
            async with second.launched(peers=(first.address,)) as b:
                await joined(a, b)
                name = a.node.name
                assert (await read(b, "connections"))[0]["address"] == "192.0.2.1" and told_mtu(b) == 1450
                b._probes._probers.each[4]._health.verdicts = {name: "vxlan-silent"}
                b._probes._judged()
                await until(lambda: told_mtu(b) == 1430, "others are told")
                row = (await read(b, "connections"))[0]
                assert (row["path"], row["reason"], row["address"]) == ("vxlan", "best", "2001:db8::1")
                await until(lambda: a._router.mtu == 1430, "the whole network has shrunk")
                wanted = ({format_name(name): "vxlan-silent"}, {})
                await until(lambda: (saved()["faults"], saved()["faults6"]) == wanted, "it is on disk")
            async with second.launched() as b:
                await joined(a, b)
                assert (await read(b, "connections"))[0]["address"] == "2001:db8::1"

    run(scenario())
