"""Docker's calls, one by one, over an allocator in a dictionary: what comes twice, and what several networks need."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Coroutine
from dataclasses import replace
from typing import Any, TypeVar, cast

import pytest

from dataplane.kernel import Fault
from gossip.names import PeerName
from mesh.dockernet.driver import GENERIC, SPACE, Around, Driver
from mesh.dockernet.state import state_from_json
from mesh.dockernet.watch import Watch
from mesh.endpoints import Endpoint, EndpointTable, decode_row_untrusted, encode_row
from mesh.ipam.keeper import Keeper
from mesh.requests import ApiError
from tests.mesh.made_up_ipam import RANGES, MadeUpIpam

T = TypeVar("T")
SUBNET = "10.32.7.0/24"
SANDBOX = "/var/run/docker/netns/abc"


class Ranges(MadeUpIpam):
    def subnets(self) -> Any:
        return RANGES


class Host:
    """A driver and what is around it, one life after another."""

    def __init__(self) -> None:
        self.documents: list[dict[str, Any]] = []
        self.ipam = Ranges()
        self.told: dict[str, Endpoint | None] = {}
        self.driver = self.launch(None)

    def launch(self, document: dict[str, Any] | None) -> Driver:
        async def write(_: str, value: dict[str, Any]) -> None:
            self.documents.append(value)

        async def publish() -> dict[str, Fault]:
            return {}

        async def settled() -> None:
            return None

        around = Around(
            PeerName(b"ourself1"), "boot", document, write, Keeper(self.ipam), EndpointTable(), lambda _: True,
            lambda _: "host", publish, self.told.__setitem__, settled, lambda _: False, ("169.254.6.53/32",),
            lambda: None,
        )  # fmt: skip
        self.driver = Driver(around)
        return self.driver

    def call(self, method: str, **fields: Any) -> dict[str, Any]:
        return run(self.driver.call(method, fields))

    def network(self, name: str = "a" * 64, subnet: str = SUBNET, part: str = "") -> str:
        """Its pool."""
        pool = self.call("IpamDriver.RequestPool", Pool=subnet, SubPool=part)
        rows = [{"AddressSpace": SPACE, "Pool": pool["Pool"]}]
        self.call("NetworkDriver.CreateNetwork", NetworkID=name, IPv4Data=rows)
        return str(pool["PoolID"])

    def endpoint(self, endpoint: str, pool: str, network: str = "a" * 64) -> dict[str, Any]:
        """The fields that Docker then speaks of it with."""
        address = self.call("IpamDriver.RequestAddress", PoolID=pool)["Address"]
        fields = {"NetworkID": network, "EndpointID": endpoint, "Interface": {"Address": address, "MacAddress": ""}}
        self.call("NetworkDriver.CreateEndpoint", **fields)
        return fields | {"SandboxKey": SANDBOX}


def run(work: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(work)


@pytest.fixture
def host() -> Host:
    return Host()


def way(answer: dict[str, Any]) -> str:
    return str(answer["StaticRoutes"][0]["Destination"])


def test_addresses_of_a_part_have_the_length_of_the_whole(host: Host) -> None:
    """Else hosts with a part each, of one subnet, would not be in each other's network."""
    pool = host.call("IpamDriver.RequestPool", Pool=SUBNET, SubPool="10.32.7.64/26")
    assert pool["Pool"] == SUBNET
    address = host.call("IpamDriver.RequestAddress", PoolID=pool["PoolID"])["Address"]
    assert address.endswith("/24")
    (want,) = host.ipam.asked[-1][1]
    assert (str(want.first), str(want.last)) == ("10.32.7.64", "10.32.7.127")


@pytest.mark.parametrize("part", ["10.32.8.0/26", "10.32.0.0/16", "fd00::/80"])
def test_what_is_no_part_of_the_subnet_is_refused(host: Host, part: str) -> None:
    with pytest.raises(ApiError, match=f"{part} is not a part of subnet"):
        host.call("IpamDriver.RequestPool", Pool=SUBNET, SubPool=part)
    assert host.documents == []


def test_a_container_on_several_networks_has_ways_that_differ(host: Host) -> None:
    """Docker adds no route that is there already, and the container would not get its second network."""
    pool = host.network()
    one, two, three = (host.endpoint(name * 64, pool) for name in "123")
    assert way(host.call("NetworkDriver.Join", **one)) == "169.254.6.53/32"
    assert way(host.call("NetworkDriver.Join", **two)) == "169.254.6.52/31"
    other = three | {"SandboxKey": "/var/run/docker/netns/other"}
    assert way(host.call("NetworkDriver.Join", **other)) == "169.254.6.53/32"


def test_a_way_that_was_left_is_given_again_and_survives_a_restart(host: Host) -> None:
    pool = host.network()
    one, two = (host.endpoint(name * 64, pool) for name in "12")
    host.call("NetworkDriver.Join", **one)
    host.call("NetworkDriver.Join", **two)
    host.call("NetworkDriver.Leave", **one)
    host.launch(host.documents[-1])
    three = host.endpoint("3" * 64, pool)
    assert way(host.call("NetworkDriver.Join", **three)) == "169.254.6.53/32"
    assert way(host.call("NetworkDriver.Join", **two)) == "169.254.6.52/31", "asked once more, it is what it was"


def test_an_endpoint_that_is_asked_for_once_more_is_the_one_that_is_there(host: Host) -> None:
    """The daemon ended between writing and answering: Docker connects to the next one and asks again."""
    pool = host.network()
    fields = host.endpoint("1" * 64, pool)
    mac = next(iter(host.driver.state.members.values())).mac
    host.launch(host.documents[-1])
    assert host.call("NetworkDriver.CreateEndpoint", **fields) == {"Interface": {"MacAddress": mac}}
    assert len(host.driver.state.members) == 1


def test_however_long_a_container_is_called_others_are_told_of_it(host: Host) -> None:
    fields = host.endpoint("1" * 64, host.network())
    host.call("NetworkDriver.Join", **fields)
    run(host.driver.name({"1" * 64: ("c" * 64, "n" * 600, ())}))
    (told,) = host.told.values()
    assert told is not None and decode_row_untrusted(told.owner, encode_row(told)).id == "n" * 512


def test_what_an_earlier_version_kept_is_read(host: Host) -> None:
    host.endpoint("1" * 64, host.network())
    document = host.documents[-1]
    for row in document["members"]:
        del row["sandbox"], row["rank"]
    for row in document["pools"]:
        del row["part"]
    state = state_from_json(document, "boot")
    assert [each.rank for each in state.members.values()] == [0]


def forget(host: Host, networks: set[str], members: set[str]) -> None:
    """Docker has these, a minute after all that was asked for."""
    host.driver._born.clear()
    run(host.driver.keep_only(networks, members))


def test_what_docker_had_and_has_no_more_is_forgotten_with_its_addresses(host: Host) -> None:
    pool = host.network()
    one, two = (host.endpoint(name * 64, pool) for name in "12")
    for each in (one, two):
        host.call("NetworkDriver.Join", **each)
    lent = host.driver.state.lent
    first, second = (lent[each["Interface"]["Address"].partition("/")[0]].owner for each in (one, two))
    forget(host, {"a" * 64}, {"1" * 64})
    assert list(host.driver.state.members) == ["1" * 64]
    assert host.ipam.addresses(first) and not host.ipam.addresses(second)
    forget(host, set(), set())
    assert not host.driver.state.networks and not host.driver.state.lent and not host.ipam.addresses(first)


def test_what_is_only_just_being_made_is_not_forgotten(host: Host) -> None:
    pool = host.network()
    host.endpoint("1" * 64, pool)
    run(host.driver.keep_only(set(), set()))
    assert host.driver.state.members and host.driver.state.lent


def test_what_was_made_while_we_waited_to_forget_is_not_forgotten(host: Host) -> None:
    """Docker was asked before there was such a container, and what it said is looked at when its interface is made."""
    pool = host.network()

    async def scene() -> None:
        driver = host.driver
        given = await driver.call("IpamDriver.RequestAddress", {"PoolID": pool})
        asked = {"NetworkID": "a" * 64, "EndpointID": "1" * 64, "Interface": {"Address": given["Address"]}}
        async with driver._lock:
            making = asyncio.ensure_future(driver.call("NetworkDriver.CreateEndpoint", asked))
            await asyncio.sleep(0)
            forgetting = asyncio.ensure_future(driver.keep_only({"a" * 64}, set()))
            await asyncio.sleep(0)
        await asyncio.gather(making, forgetting)

    run(scene())
    assert list(host.driver.state.members) == ["1" * 64] and host.driver.state.lent


@pytest.mark.parametrize("method", ["Join", "Leave"])
def test_what_is_deleted_while_others_wait_for_it_stays_so(host: Host, method: str) -> None:
    fields = host.endpoint("1" * 64, host.network())
    host.call("NetworkDriver.Join", **fields)

    async def scene() -> None:
        driver = host.driver
        async with driver._lock:
            calls = [driver.call(f"NetworkDriver.{each}", fields) for each in ("DeleteEndpoint", method)]
            tasks = [asyncio.ensure_future(each) for each in calls]
            await asyncio.sleep(0)
        await asyncio.gather(*tasks, return_exceptions=True)

    run(scene())
    assert not host.driver.state.members


def test_what_an_earlier_life_had_begun_with_docker_may_go_on_with(host: Host) -> None:
    """It asks the next daemon for the rest, and that may have looked at what Docker lists first."""
    pool = host.network()
    fields = host.endpoint("1" * 64, pool)
    address = host.call("IpamDriver.RequestAddress", PoolID=pool)["Address"]
    host.launch(host.documents[-1])
    run(host.driver.keep_only({"a" * 64}, set()))
    host.call("NetworkDriver.Join", **fields)
    assert address.partition("/")[0] in host.driver.state.lent
    host.driver._started -= 60.0
    run(host.driver.keep_only({"a" * 64}, {"1" * 64}))
    assert address.partition("/")[0] not in host.driver.state.lent and host.driver.state.members


def test_the_networks_of_another_docker_than_the_one_that_is_asked_stay(host: Host) -> None:
    """Two engines find one plugin; of one of them nothing is ever heard but its calls."""
    pool = host.network()
    host.endpoint("1" * 64, pool)
    forget(host, {"b" * 64}, set())
    assert host.driver.state.networks and host.driver.state.members
    host.launch(host.documents[-1])
    forget(host, set(), set())
    assert host.driver.state.networks and host.driver.state.members


@pytest.mark.parametrize(
    ("method", "fields"),
    [
        ("IpamDriver.RequestPool", {"Pool": 7}),
        ("IpamDriver.RequestPool", {"Pool": "nonsense"}),
        ("IpamDriver.RequestAddress", {"PoolID": "unknown"}),
        ("NetworkDriver.CreateNetwork", {"NetworkID": "a" * 64, "Options": ["no", "object"]}),
        ("NetworkDriver.CreateNetwork", {"NetworkID": "../x"}),
        (
            "NetworkDriver.CreateNetwork",
            {"NetworkID": "a" * 64, "Options": {GENERIC: {"mtu": float("inf")}}},
        ),
        ("NetworkDriver.CreateNetwork", {"NetworkID": "a" * 64, "IPv4Data": 7}),
        ("NetworkDriver.CreateEndpoint", {"NetworkID": "unknown", "EndpointID": "e" * 64}),
        ("NetworkDriver.Join", {"NetworkID": "unknown", "EndpointID": "unknown"}),
    ],
)
def test_fields_that_are_not_what_they_should_be_are_refused(host: Host, method: str, fields: dict[str, Any]) -> None:
    with pytest.raises(ApiError):
        host.call(method, **fields)
    assert host.documents == []


def test_what_is_not_known_is_as_good_as_gone_and_unknown_fields_are_passed_over(host: Host) -> None:
    for method in ("NetworkDriver.DeleteNetwork", "NetworkDriver.DeleteEndpoint", "NetworkDriver.Leave"):
        assert host.call(method, NetworkID="n" * 64, EndpointID="e" * 64, Future={"what": 1}) == {}
    for method in ("IpamDriver.ReleasePool", "IpamDriver.ReleaseAddress"):
        assert host.call(method, PoolID="p", Address="10.32.0.9", Future=1) == {}
    with pytest.raises(KeyError):
        host.call("NetworkDriver.NoSuch")


@pytest.mark.parametrize("method", ["RequestPool", "ReleaseAddress"])
def test_what_docker_sends_once_more_without_its_body_is_refused(host: Host, method: str) -> None:
    """Else a subnet that a user named would become the whole range, and what is given back would stay given."""
    with pytest.raises(ApiError, match="try again"):
        host.call(f"IpamDriver.{method}")
    assert host.documents == [] and host.call("Plugin.Activate") and host.call("IpamDriver.GetCapabilities")


def test_an_address_that_a_container_is_only_just_getting_is_not_given_to_another(host: Host) -> None:
    """Two containers started at once with one --ip: the second is refused, however far the first has got."""
    pool = host.network()
    for step in ("asked for", "given"):
        address = "10.32.7.20" if step == "asked for" else "10.32.7.21"
        fields = {"PoolID": pool, "Address": address}
        given = host.call("IpamDriver.RequestAddress", **fields)["Address"]
        if step == "given":
            host.call("NetworkDriver.CreateEndpoint", NetworkID="a" * 64, EndpointID="e" * 64,
                      Interface={"Address": given})  # fmt: skip
        with pytest.raises(ApiError, match=address):
            host.call("IpamDriver.RequestAddress", **fields)
    host.launch(host.documents[-1])  # Docker gave them back while nobody listened
    assert host.call("IpamDriver.RequestAddress", PoolID=pool, Address="10.32.7.21")["Address"] == "10.32.7.21/24"
    assert not host.driver.state.members


def test_an_address_that_is_to_be_kept_free_is_given_to_nobody(host: Host) -> None:
    pool = host.call("IpamDriver.RequestPool", Pool=SUBNET)["PoolID"]
    aux = host.call("IpamDriver.RequestAddress", PoolID=pool, Address="10.32.7.9")["Address"]
    rows = [{"AddressSpace": SPACE, "Pool": SUBNET, "AuxAddresses": {"router": aux}}]
    host.call("NetworkDriver.CreateNetwork", NetworkID="a" * 64, IPv4Data=rows)
    host.launch(host.documents[-1])
    with pytest.raises(ApiError, match="aux-address"):
        host.call("IpamDriver.RequestAddress", PoolID=pool, Address="10.32.7.9")


class SilentDocker:
    """It answers, has one network with nobody on it, and nothing ever happens there."""

    @contextlib.asynccontextmanager
    async def events(self) -> AsyncIterator[AsyncIterator[None]]:
        async def none() -> AsyncIterator[None]:
            await asyncio.sleep(60)
            yield None

        yield none()

    async def networks(self) -> set[str]:
        return {"a" * 64}

    async def members(self, _: str) -> dict[str, tuple[str, str]]:
        return {}

    async def stranded(self) -> list[str]:
        return []


def test_an_address_whose_giving_back_was_never_heard_is_free_without_any_event(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mesh.dockernet.driver.NEW_S", 0.5)
    pool = host.network()
    host.call("IpamDriver.RequestAddress", PoolID=pool)

    async def scene() -> None:
        watching = asyncio.ensure_future(Watch(cast(Any, SilentDocker()), host.driver).run())
        await asyncio.sleep(0.3)
        assert host.driver.state.lent  # Docker may be about to use it
        async with asyncio.timeout(5):
            while host.driver.state.lent:
                await asyncio.sleep(0.02)
        watching.cancel()

    run(scene())
    assert host.driver.doubtful_for_s() is None


def test_many_that_leave_at_once_wait_for_the_kernel_together(host: Host) -> None:
    pool = host.network()
    everybody = [host.endpoint(f"{number:064}", pool) for number in range(8)]
    for each in everybody:
        host.call("NetworkDriver.Join", **each)
    inside = 0

    async def scene() -> None:
        gate = asyncio.Event()

        async def publish() -> dict[str, Fault]:
            nonlocal inside
            inside += 1
            await gate.wait()
            return {}

        driver = host.driver
        driver._around = replace(driver._around, publish=publish)
        leaving = [asyncio.ensure_future(driver.call("NetworkDriver.Leave", each)) for each in everybody]
        async with asyncio.timeout(5):
            while inside < len(everybody):
                await asyncio.sleep(0.01)
        gate.set()
        await asyncio.gather(*leaving)

    run(scene())
    assert not any(each.joined for each in host.driver.state.members.values())
