"""The allocator on its loop and its disk: fifty at once, a disk that is full, who hangs up, the next life."""

from __future__ import annotations

import asyncio
import errno
import json
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from ipaddress import IPv4Network, IPv6Network, ip_interface
from pathlib import Path

import pytest

from gossip.names import PeerName, format_name
from mesh import journalfile
from mesh.endpoints import EndpointTable, Interface
from mesh.ipam import service as service_module
from mesh.ipam.build import build
from mesh.ipam.charter import encode_charter, first_charter
from mesh.ipam.ranges import Allocation
from mesh.ipam.service import Ipam, Mesh
from mesh.ipam.space import Space
from mesh.ipam.statement import CHARTER, STATEMENT, Statement, encode_statement
from mesh.ipam.wants import Claim, FromSubnet
from mesh.journal import Journal
from mesh.requests import ApiError
from tests.mesh.daemons import until
from tests.mesh.failing_disk import failing

ME = PeerName(b"me......")
VOTER, CUT_OFF = PeerName(b"voter..."), PeerName(b"cut off.")
NICKNAMES = {CUT_OFF: "cut-off"}
DEFAULT = (FromSubnet(None),)
ALONE = Allocation(range4=IPv4Network("10.32.0.0/24"), is_named=True, makes_range6=False, hosts=1)


@asynccontextmanager
async def running(
    path: Path, told: Allocation = ALONE, epoch: int = 1, reachable: Callable[[], frozenset[PeerName]] = frozenset
) -> AsyncIterator[Ipam]:
    path.mkdir(exist_ok=True)
    mesh = Mesh(lambda page, body: None, reachable, lambda peer: NICKNAMES.get(peer, "h1"), lambda: 1)
    ipam = build(told, str(path), ME, "h1", epoch, "boot", EndpointTable(), mesh)
    ipam.start()
    try:
        yield ipam
    finally:
        await ipam.close()


def texts(interfaces: tuple[Interface, ...]) -> list[str]:
    return [str(each) for each in interfaces]


def test_fifty_at_once_have_fifty_addresses_and_find_them_again(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(tmp_path) as ipam:
            first = await asyncio.gather(*(ipam.obtain(f"c{n}", DEFAULT) for n in range(50)))
            assert len({each[0] for each in first}) == 50
        async with running(tmp_path, epoch=2) as ipam:
            again = await asyncio.gather(*(ipam.obtain(f"c{n}", DEFAULT) for n in range(50)))
            assert again == first
            await ipam.keep_only([f"c{n}" for n in range(10)])
            assert len(ipam.member.holdings.given) == 10

    asyncio.run(scenario())


def test_used_up_space_is_refused_at_once_and_says_so(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(tmp_path) as ipam:
            await asyncio.gather(*(ipam.obtain(f"c{n}", DEFAULT) for n in range(254)))
            with pytest.raises(ApiError, match="no address of the default subnet is free") as caught:
                await ipam.obtain("one too many", DEFAULT)
            assert caught.value.code == "ipam-exhausted"
            await ipam.release_all("c7")
            with pytest.raises(ApiError, match="1 rest for up to a minute"):
                await ipam.obtain("one too many", DEFAULT)
            assert texts(await ipam.obtain("c7", DEFAULT)) == ["10.32.0.8/24"]

    asyncio.run(scenario())


def test_an_address_that_was_chosen_is_its_owners(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(tmp_path) as ipam:
            claim = (Claim(ip_interface("10.32.0.9/24")),)
            assert texts(await ipam.obtain("a", claim)) == ["10.32.0.9/24"]  # before there is a ring
            assert ipam.member.charter is None
            assert texts(await ipam.obtain("b", DEFAULT)) == ["10.32.0.1/24"]
            with pytest.raises(ApiError, match=r"10\.32\.0\.9 is given to a on this host") as caught:
                await ipam.obtain("b", claim)
            assert caught.value.code == "address-taken"
            assert texts(await ipam.obtain("b", (Claim(ip_interface("192.168.7.7/24")),))) == ["192.168.7.7/24"]
            with pytest.raises(ApiError, match="is not inside the range"):
                await ipam.obtain("b", (FromSubnet(IPv4Network("10.33.0.0/24")),))
            for number in range(10, 18):
                await ipam.obtain(f"c{number}", DEFAULT)
            assert "10.32.0.9/24" not in [text for each in ipam.member.holdings.given.values()
                                          if each.owner != "a" for text in each.addresses]  # fmt: skip

    asyncio.run(scenario())


def test_the_other_address_of_a_slot_is_nobody_elses(tmp_path: Path) -> None:
    """Who has one of the two may be given the other one too; to anybody else it would be given without being noted."""
    both = replace(ALONE, range6=IPv6Network("fd00:9::/64"))
    claim = (Claim(ip_interface("10.32.0.1/24")),)

    async def scenario() -> None:
        async with running(tmp_path, both) as ipam:
            one = (FromSubnet(IPv6Network("fd00:9::/120")),)
            assert texts(await ipam.obtain("a", one)) == ["fd00:9::1/64"]
            with pytest.raises(ApiError, match="goes with fd00:9::1, which is given to a on this host") as caught:
                await ipam.obtain("b", claim)
            assert caught.value.code == "address-taken"
            assert texts(await ipam.obtain("a", claim)) == ["10.32.0.1/24"]
            assert [given.owner for given in ipam.member.holdings.given.values()] == ["a"]

    asyncio.run(scenario())


def entry(owner: str, address: str) -> dict[str, object]:
    return {"owner": owner, "addresses": [address]}


@pytest.mark.parametrize("has_ring", [True, False])
def test_what_another_host_uses_by_now_is_not_imported(tmp_path: Path, has_ring: bool) -> None:
    """Whoever attaches an address sees where it is in use, and moves it by that; a file of last week does not."""

    async def scenario() -> None:
        async with running(tmp_path) as ipam:
            if has_ring:
                await ipam.obtain("first", DEFAULT)
            ipam.member.around = replace(ipam.member.around, used_elsewhere=lambda slot: slot == 9)
            document = {"format": 1, "entries": [entry("a", "10.32.0.8/24"), entry("b", "10.32.0.9/24")]}
            found = await ipam.import_(document, True)
            assert found["taken"] == 1 and [row["owner"] for row in found["refused"]] == ["b"]
            assert 9 not in ipam.member.holdings.given
            await ipam.obtain("b", (Claim(ip_interface("10.32.0.9/24")),))
            assert (await ipam.import_(document, True))["taken"] == 2

    asyncio.run(scenario())


def test_what_is_imported_is_found_by_the_same_want_again(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(tmp_path / "before") as ipam:
            taken = [await ipam.obtain(owner, DEFAULT) for owner in ("other", "web")]
            document = json.loads(json.dumps(ipam.export()))
        async with running(tmp_path / "after") as ipam:
            assert await ipam.import_(document, False) == {"taken": 2, "refused": []}
        async with running(tmp_path / "after", epoch=2) as ipam:
            assert [await ipam.obtain(owner, DEFAULT) for owner in ("other", "web")] == taken
            assert len(ipam.member.holdings.given) == 2
            await ipam.release("web", [taken[1][0].ip])
            assert len(ipam.member.holdings.given) == 1

    asyncio.run(scenario())


@pytest.mark.parametrize("wants", [["net:" + "x" * 5000], [5], "net:default", 7, ["\ud800"]])
def test_an_entry_with_odd_wants_is_not_imported(tmp_path: Path, wants: object) -> None:
    async def scenario() -> None:
        async with running(tmp_path) as ipam:
            with pytest.raises(ApiError, match="is not what `weft ipam export` writes"):
                await ipam.import_({"format": 1, "entries": [entry("a", "10.32.0.9/24") | {"wants": wants}]}, False)
            assert not ipam.member.holdings.given

    asyncio.run(scenario())


def test_an_owner_that_no_journal_can_hold_is_not_imported(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(tmp_path) as ipam:
            with pytest.raises(ApiError, match="is not what `weft ipam export` writes"):
                await ipam.import_({"format": 1, "entries": [entry("\ud800", "10.32.0.9/24")]}, False)
            assert not ipam.member.holdings.given

    asyncio.run(scenario())


def test_without_a_range_only_what_is_named_is_given(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(tmp_path, Allocation(range4=None, makes_range6=False)) as ipam:
            assert ipam.status()["state"] == "off"
            assert texts(await ipam.obtain("a", (Claim(ip_interface("10.1.1.1/24")),))) == ["10.1.1.1/24"]
            with pytest.raises(ApiError, match="--ipalloc-range none") as caught:
                await ipam.obtain("a", DEFAULT)
            assert caught.value.code == "ipam-off"
            with pytest.raises(ApiError, match="--ipalloc-range none"):  # and no ring, which others could not use
                await ipam.prime(2.0, said)
            assert ipam.status()["ring"] is None

    async def said(text: str) -> None:
        raise AssertionError(text)

    asyncio.run(scenario())


def test_who_hangs_up_has_nothing(tmp_path: Path) -> None:
    """Whenever that is; and what was given is free again."""

    async def scenario() -> None:
        async with running(tmp_path) as ipam:
            await ipam.obtain("first", DEFAULT)
            for turns in range(6):
                asking = asyncio.ensure_future(ipam.obtain("gone", DEFAULT))
                for _ in range(turns):
                    await asyncio.sleep(0)
                asking.cancel()
                await asyncio.gather(asking, return_exceptions=True)
            await asyncio.sleep(0.05)
            assert ipam.member.holdings.owners() == ["first"]
        async with running(tmp_path, epoch=2) as ipam:
            assert ipam.member.holdings.owners() == ["first"]

    asyncio.run(scenario())


def test_a_host_that_waits_for_others_says_for_whom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service_module, "WAIT_S", 0.05)
    told = Allocation(range4=IPv4Network("10.32.0.0/24"), is_named=True, makes_range6=False, hosts=3)

    async def scenario() -> None:
        async with running(tmp_path, told) as ipam:
            with pytest.raises(ApiError, match="1 more of 3 hosts") as caught:
                await ipam.obtain("c", DEFAULT)
            assert caught.value.code == "ipam-waiting"
            said: list[str] = []

            async def tell(text: str) -> None:
                said.append(text)

            with pytest.raises(ApiError, match=r"not ready after 0\.1 s"):
                await ipam.prime(0.1, tell)
            assert said == ["1 more of 3 hosts to agree on a ring"]
            assert ipam.status()["state"] == "forming"

    asyncio.run(scenario())


def test_a_disk_that_refuses_costs_the_request_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was given stays given, what was refused is free, and when there is room again all goes on."""

    async def scenario() -> None:
        async with running(tmp_path) as ipam:
            before = await ipam.obtain("before", DEFAULT)
            monkeypatch.setattr(journalfile, "os", failing("pwrite", errno.ENOSPC))
            with pytest.raises(ApiError, match="No space left on device") as caught:
                await ipam.obtain("refused", DEFAULT)
            assert caught.value.code == "not-saved"
            assert [row["code"] for row in ipam.warnings()] == ["ipam-not-saved"]
            assert await ipam.obtain("before", DEFAULT) == before
            monkeypatch.undo()
            after = await ipam.obtain("after", DEFAULT)
            assert ipam.warnings() == [] and after != before
        async with running(tmp_path, epoch=2) as ipam:
            assert sorted(ipam.member.holdings.owners()) == ["after", "before"]

    asyncio.run(scenario())


def test_who_leaves_for_good_says_so_once_and_ends(tmp_path: Path) -> None:
    """And gives nothing any more."""

    async def scenario() -> None:
        async with running(tmp_path) as ipam:
            await ipam.obtain("c", DEFAULT)
            async with asyncio.timeout(2):
                await ipam.resign()
                await ipam.close()
            assert ipam.member.resigned
            with pytest.raises(ApiError, match="stopping"):
                await ipam.obtain("d", DEFAULT)

    asyncio.run(scenario())


def test_who_removes_the_last_voter_is_told_who_would_not_hear_of_it(tmp_path: Path) -> None:
    charter = first_charter(b"r" * 16, Space(ALONE.range4, None), 3600, [bytes(VOTER)], "made elsewhere")
    there = {VOTER}

    async def scenario() -> None:
        async with running(tmp_path, reachable=lambda: frozenset(there)) as ipam:
            ipam.hear_untrusted(VOTER, CHARTER, encode_charter(charter))
            for peer in (VOTER, CUT_OFF):
                said = Statement(ring=charter.ring, tip=0, sequence=1, seat=b"", expects=2, has_given=True)
                ipam.hear_untrusted(peer, STATEMENT, encode_statement(said))
            ipam.look_around()
            await until(lambda: ipam.member.ring == charter.ring, "the ring is known")
            there.clear()
            ipam.look_around()
            with pytest.raises(ApiError, match=r"no voter is left .*, and cut-off would not hear") as refused:
                await ipam.remove_peers([VOTER])
            assert refused.value.code == "no-majority" and ipam.member.ring == charter.ring
            assert await ipam.remove_peers([VOTER, CUT_OFF]) == {
                "removed": [format_name(VOTER), format_name(CUT_OFF)], "addresses": 256,
            }  # fmt: skip
            assert ipam.member.ring != charter.ring
            assert texts(await ipam.obtain("c", DEFAULT)) == ["10.32.0.1/24"]

    asyncio.run(scenario())


def test_a_host_whose_key_somebody_else_uses_gives_nothing_in_the_next_life_either(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(tmp_path) as ipam:
            await ipam.obtain("c", DEFAULT)
            ipam.copied("two hosts have one identity")
            with pytest.raises(ApiError, match="two hosts have one identity"):
                await ipam.obtain("d", DEFAULT)
            await asyncio.sleep(0.05)
        async with running(tmp_path, epoch=2) as ipam:
            assert ipam.status()["state"] == "conflict"
            await ipam.check({ip_interface("10.32.0.1/24"): "c"}, repair=True)
            assert await ipam.obtain("d", DEFAULT)

    asyncio.run(scenario())


@pytest.mark.parametrize("refuses", [False, True])
def test_who_waits_for_a_release_no_longer_costs_nobody_an_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refuses: bool
) -> None:
    """It is released, and what went to disk with it is answered."""

    async def scenario() -> None:
        async with running(tmp_path) as ipam:
            await ipam.obtain("first", DEFAULT)
            with monkeypatch.context() as patch:
                if refuses:
                    patch.setattr(journalfile, "os", failing("pwrite", errno.ENOSPC))
                releasing = asyncio.ensure_future(ipam.release_all("first"))
                asking = asyncio.ensure_future(ipam.obtain("second", DEFAULT))
                await asyncio.sleep(0)
                await asyncio.sleep(0)
                releasing.cancel()
                async with asyncio.timeout(5.0):
                    told = await asyncio.gather(asking, return_exceptions=True)
            code = told[0].code if isinstance(told[0], ApiError) else ""
            assert code in (["", "not-saved"] if refuses else [""])
            assert not ipam.member.holdings.slots_of("first")

    asyncio.run(scenario())


@pytest.mark.parametrize("turns", range(6))
def test_two_that_ask_for_one_owner_do_not_share_what_one_gives_back(tmp_path: Path, turns: int) -> None:
    """The first hangs up, whenever that is; what the second was told is given."""

    async def scenario() -> None:
        async with running(tmp_path) as ipam:
            await ipam.obtain("first", DEFAULT)
            one, two = (asyncio.ensure_future(ipam.obtain("c", DEFAULT)) for _ in range(2))
            for _ in range(turns):
                await asyncio.sleep(0)
            one.cancel()
            told = await two
            assert [each.addresses for each in map(ipam.member.holdings.given.get, ipam.member.holdings.slots_of("c"))
                    if each is not None] == [tuple(map(str, told))]  # fmt: skip

    asyncio.run(scenario())


def test_two_that_ask_for_one_owner_while_the_disk_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        async with running(tmp_path) as ipam:
            await ipam.obtain("first", DEFAULT)
            monkeypatch.setattr(journalfile, "os", failing("pwrite", errno.ENOSPC))
            one, two = (asyncio.ensure_future(ipam.obtain("c", DEFAULT)) for _ in range(2))
            with pytest.raises(ApiError, match="No space left"):
                await one
            monkeypatch.undo()
            told = await two
            (slot,) = ipam.member.holdings.slots_of("c")
            assert ipam.member.holdings.given[slot].addresses == tuple(map(str, told))

    asyncio.run(scenario())


def test_a_mistake_of_ours_costs_an_answer_and_not_the_daemon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever waits hears of it; the pages that did not get out are said again; turns go on."""
    monkeypatch.setattr(service_module, "RETRY_S", 0.01)
    published: list[int] = []
    is_broken = True

    def publish(page: int, body: bytes) -> None:
        if is_broken:
            raise AssertionError("too long")
        published.append(page)

    async def scenario() -> None:
        nonlocal is_broken
        mesh = Mesh(publish, frozenset, lambda peer: "h1", lambda: 1)
        ipam = build(ALONE, str(tmp_path), ME, "h1", 1, "boot", EndpointTable(), mesh)
        ipam.start()
        with pytest.raises(ApiError, match="failed inside the daemon"):
            await ipam.obtain("c", DEFAULT)
        is_broken = False
        assert await ipam.obtain("d", DEFAULT)
        await asyncio.sleep(0.05)
        assert 0 in published and 1 in published
        await ipam.close()

    asyncio.run(scenario())


def test_a_mistake_of_ours_on_the_way_to_the_disk_loses_nothing_that_later_writes_are_built_upon(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here the ring itself: its addresses would be on disk, and at the next start nobody would know whose they are."""
    monkeypatch.setattr(service_module, "RETRY_S", 0.01)

    def hand_in(self: Journal, changes: Mapping[bytes, bytes | None]) -> asyncio.Future[None]:
        raise AssertionError("a batch that is too large")

    async def scenario() -> None:
        async with running(tmp_path) as ipam:
            with monkeypatch.context() as patch:
                patch.setattr(Journal, "hand_in", hand_in)
                with pytest.raises(ApiError, match="failed inside the daemon"):
                    await ipam.obtain("c", DEFAULT)
            assert await ipam.obtain("d", DEFAULT)
            ring = ipam.member.ring
        async with running(tmp_path, epoch=2) as ipam:
            assert ring and ipam.member.ring == ring and ipam.member.holdings.slots_of("d")

    asyncio.run(scenario())
