"""The verbs about given addresses in the daemon: who is meant, what is said while somebody waits, what is refused."""

from __future__ import annotations

import asyncio
from ipaddress import IPv4Network, IPv6Network
from types import SimpleNamespace
from typing import Any

import pytest

from gossip.names import PeerName, format_name
from mesh import requests
from mesh.api import ClientGone
from mesh.ipam import verbs as verbs_module
from mesh.ipam.ranges import Allocation
from mesh.ipam.verbs import IpamVerbs, summary, warnings
from mesh.requests import ApiError
from tests.mesh.attach_world import P, Q, run
from tests.mesh.made_up_ipam import MadeUpIpam

GONE = PeerName(b"\x09" * 8)


class World:
    """An allocator, and a mesh of which P is in reach, Q is not, and GONE has left its addresses only."""

    def __init__(self) -> None:
        self.ipam = MadeUpIpam()
        self.table = object()
        nicknames = {P: "alpha", Q: "omega"}
        router: Any = SimpleNamespace(
            table=self.table,
            node=SimpleNamespace(replica=SimpleNamespace(reachable={P})),
            find_peer=lambda text: [name for name, nickname in nicknames.items() if nickname == text],
        )
        self.ipam.said["peers"] = [
            self.owner(PeerName(b"\x05" * 8), "me", 8, free=5, self_=True), self.owner(Q, "omega", 4),
            self.owner(GONE, "gone", 4),
        ]  # fmt: skip
        self.repaired: list[bool] = []
        mending: Any = SimpleNamespace(check=self._check)
        self.verbs = IpamVerbs(self.ipam, router, mending)
        self.rows: list[Any] = []

    def owner(self, name: PeerName, nickname: str, addresses: int, *, free: int = 0, self_: bool = False) -> Any:
        return {"peer": format_name(name), "nickname": nickname, "self": self_, "addresses": addresses, "used": 3,
                "free": free, "reachable": True, "share": 0.5}  # fmt: skip

    async def _check(self, repair: bool) -> Any:
        self.repaired.append(repair)
        return []

    async def take(self, row: object) -> None:
        self.rows.append(row)

    def ask(self, request: Any) -> Any:
        return run(self.verbs.handle(request, self.take))


@pytest.fixture
def world() -> World:
    return World()


def refused(world: World, request: Any, code: str) -> str:
    with pytest.raises(ApiError) as caught:
        world.ask(request)
    assert caught.value.code == code and "\n" not in str(caught.value)
    return str(caught.value)


def test_peers_are_removed_by_nickname_or_name_each_once(world: World) -> None:
    """One of which nothing but its addresses is left is known by the ring; one that nobody knows is for it to judge."""
    unknown = "77:77:77:77:77:77:77:77"
    answer = world.ask(requests.RemovePeers(("omega", "gone", format_name(GONE), unknown), False))
    assert answer["addresses"] == 4096
    assert world.ipam.asked == [("remove", Q, GONE, PeerName(b"\x77" * 8))]


def test_a_peer_in_reach_is_not_removed_unless_forced(world: World) -> None:
    assert "weft reset" in refused(world, requests.RemovePeers(("alpha",), False), "peer-in-reach")
    assert world.ipam.asked == []
    world.ask(requests.RemovePeers(("alpha",), True))
    assert world.ipam.asked == [("remove", P)]


def test_a_nickname_must_mean_one_peer(world: World) -> None:
    text = refused(world, requests.RemovePeers(("nobody",), False), "unknown-peer")
    assert "(those that own addresses: omega, gone)" in text
    world.ipam.said["peers"].append(world.owner(P, "omega", 1))
    text = refused(world, requests.RemovePeers(("omega",), False), "ambiguous-peer")
    assert format_name(P) in text and format_name(Q) in text


def test_join_export_import_and_check_are_the_allocators(world: World) -> None:
    assert world.ask(requests.IpamJoin("ab", True)) == {"joined": "ab", "conflicts": []}
    assert world.ask(requests.IpamExport()) == {"format": 1, "entries": []}
    assert world.ask(requests.IpamImport({"entries": [1, 2]}, False)) == {"taken": 2, "refused": []}
    assert world.ask(requests.IpamCheck(True)) == [] and world.repaired == [True]
    assert world.ipam.asked == [("join", "ab", True), ("import", {"entries": [1, 2]}, False)]


def test_prime_says_what_it_waits_for_and_that_it_still_does(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verbs_module, "BEAT_S", 0.02)
    world.ipam.primes = ["2 more hosts", "the ring to be agreed"]

    async def wait() -> Any:
        priming = asyncio.ensure_future(world.verbs.handle(requests.Prime(None), world.take))
        await asyncio.sleep(0.15)
        world.ipam.primed.set()
        return await priming

    assert run(wait()) == {"state": "ready"}
    said = [row["waiting_for"] for row in world.rows]
    assert list(dict.fromkeys(said)) == world.ipam.primes
    assert said.count("the ring to be agreed") > 2


def test_prime_gives_up_in_time(world: World) -> None:
    world.ipam.primes = ["2 more hosts"]
    assert "not ready after 5 s" in refused(world, requests.Prime(5.0), "ipam-waiting")


def test_prime_ends_when_nobody_listens(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C at the command is enough."""
    monkeypatch.setattr(verbs_module, "BEAT_S", 0.01)
    world.ipam.primes = ["2 more hosts"]

    async def gone(row: object) -> None:
        raise ClientGone

    async def alone() -> None:
        with pytest.raises(ClientGone):
            await world.verbs.handle(requests.Prime(None), gone)
        assert len(asyncio.all_tasks()) == 1

    run(alone())


def test_the_summary_is_of_this_host(world: World) -> None:
    assert summary(world.ipam) == {
        "state": "ready", "range": "10.32.0.0/12", "range6": None, "owned": 8, "used": 3, "free": 5, "pending": 0,
        "advice": None,
    }  # fmt: skip


def test_warnings_are_the_allocators_and_what_range_was_taken(world: World) -> None:
    assert warnings(world.ipam, Allocation()) == []
    world.ipam.warned = [{"code": "ipam-unconfirmed", "text": "this host may not give addresses now", "cure": "wait"}]
    instead = "the default range 10.32.0.0/12 collides with the route 10.0.0.0/8 on this host"
    rows = warnings(world.ipam, Allocation(instead=instead))
    assert [row["code"] for row in rows] == ["ipam-unconfirmed", "range-collides"]
    assert "collides with the route 10.0.0.0/8" in rows[1]["text"] and "--ipalloc-range" in rows[1]["cure"]


def test_what_was_said_and_does_not_count_is_a_warning(world: World) -> None:
    """The mesh has 10.32.0.0/12, and no IPv6."""

    def told(**options: Any) -> list[str]:
        return [f"{row['code']}: {row['text']}; {row['cure']}" for row in warnings(world.ipam, Allocation(**options))]

    world.ipam.ranges = (IPv4Network("10.32.0.0/12"),)
    assert told() == told(is_named=True) == told(range4=None) == told(makes_range6=False) == []
    (row,) = told(range4=IPv4Network("10.64.0.0/12"), is_named=True)
    assert row.startswith("range-differs: this host was launched with --ipalloc-range 10.64.0.0/12, but 10.32.0.0/12")
    assert row.endswith("launch with --ipalloc-range 10.32.0.0/12, or without it")
    (row,) = told(range4=None, is_named=True)
    assert "--ipalloc-range none, but 10.32.0.0/12" in row
    (row,) = told(range6=IPv6Network("fd00::/64"))
    assert "--ipalloc-range6 fd00::/64, but the mesh has none" in row
    world.ipam.ranges = (IPv4Network("10.32.5.0/24"), IPv4Network("10.32.0.0/12"))
    assert told(default_subnet=IPv4Network("10.32.5.0/24")) == []
    (row,) = told(default_subnet=IPv4Network("10.32.6.0/24"))
    assert row.startswith("subnet-outside: the default subnet 10.32.6.0/24 is not inside")
