"""What the ring promises whatever fails, in a simulation; `make soak` runs any number of other seeds."""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network

import pytest

from gossip.names import format_name
from mesh.ipam import charter, elections, rings, spans, view
from mesh.ipam.ranges import CONSENSUS, OBSERVER, SEED
from mesh.ipam.sim import LEASE_S, Ring
from mesh.ipam.soak import run_apart, run_scenario
from mesh.ipam.space import AUTOMATIC6, Space
from mesh.ipam.surroundings import Settings
from mesh.ipam.voter import Voter, rings_of
from mesh.ipam.wants import FromSubnet

SPACE = Space(IPv4Network("10.32.0.0/24"), None)


@pytest.mark.parametrize("seed", [*range(60), 9132, 20019, 50123, 100009, 400188, 600575, 1000929, 2000729])
def test_no_address_is_given_twice_or_lost_for_ever(seed: int) -> None:
    """Partitions, crashes with and without a disk, pauses longer than the lease, clocks that drift. The last seeds once
    broke it."""
    run_scenario(seed)


@pytest.mark.parametrize("seed", [*range(12), 84, 700146, 700389])
def test_nor_where_hosts_make_rings_of_their_own_before_they_meet(seed: int) -> None:
    run_apart(seed)


def started(hosts: int, settings: Settings | None = None, expected: int = 0) -> Ring:
    ring = Ring(7, hosts, settings=settings, expected=expected)
    for index in ring.hosts:
        ring.start(index)
    ring.run_for(4.0)
    return ring


def given(ring: Ring, index: int, owner: str, patience_s: float = 8.0) -> list[str]:
    request = ring.obtain(index, owner)
    assert request is not None
    ring.run_for(patience_s)
    assert request.answer is not None, request.refused or request.waiting_for
    return [str(each) for each in request.answer]


def test_three_launched_at_once_make_one_ring_and_share_it() -> None:
    ring = started(3)
    requests = [ring.obtain(index, f"c{index}") for index in ring.hosts]
    ring.run_for(10.0)
    assert all(request is not None and request.answer for request in requests)
    assert len({host.member.ring for host in ring.hosts.values() if host.member}) == 1
    ring.check_whole()


def test_who_promised_the_first_ring_and_is_cut_off_since_is_one_of_its_voters() -> None:
    ring = Ring(7, 3)
    ring.start(1)
    ring.start(2)
    ring.run_for(8.0)
    first, second = ring.hosts[1].member, ring.hosts[2].member
    assert first is not None and second is not None and not first.charter
    ring.obtain(1, "first")
    for _ in range(8000):
        proposal = first.ballots.proposal
        known = first.known[second.own].vote
        if proposal is not None and known.promised == proposal.ballot:
            break
        ring.run_for(0.001)
    first.reach(frozenset(), ring.clock(ring.hosts[1]))
    ring.run_for(0.5)
    assert first.charter is not None and set(first.charter.voters) == {bytes(first.own), bytes(second.own)}


def test_two_launched_alone_and_then_connected_are_one_ring() -> None:
    """One has given an address already: the other, which has not, joins it."""
    ring = Ring(3, 2, expected=1)
    ring.blocked.add(frozenset((1, 2)))
    ring.start(1)
    ring.start(2)
    given(ring, 1, "first")
    ring.heal()
    ring.run_for(5.0)
    given(ring, 2, "second")
    ring.check_whole()


def test_a_ring_that_was_never_used_yields() -> None:
    """Both were primed alone; one was used."""
    ring = Ring(5, 2, expected=1)
    ring.blocked.add(frozenset((1, 2)))
    for index in (1, 2):
        ring.start(index)
        member = ring.hosts[index].member
        assert member is not None
        member.wants_ring = True
    ring.run_for(5.0)
    given(ring, 2, "used")
    ring.heal()
    ring.run_for(10.0)
    ring.check_whole()
    given(ring, 1, "other")


def test_two_used_rings_go_on_apart_until_an_operator_joins_them() -> None:
    ring = Ring(6, 2, expected=1)
    ring.blocked.add(frozenset((1, 2)))
    for index in (1, 2):
        ring.start(index)
        given(ring, index, f"c{index}")
        ring.hosts[index].held.clear()  # both begin alike and give the same address
    ring.heal()
    ring.run_for(10.0)
    one, two = (ring.hosts[index].member for index in (1, 2))
    assert one is not None and two is not None
    assert one.ring != two.ring and two.ring in one.splits and one.ring in two.splits
    left, receipts = one.ring, dict(one.voter.receipts)
    rings.join(one, two.ring)
    ring.wake(ring.hosts[1])
    ring.run_for(5.0)
    assert one.ring == two.ring and not one.splits
    assert one.holdings.guests and spans.size(two.holdings.owned) == 256
    given(ring, 1, "after")
    # What it held and promised as a voter of the ring that it left, it still does, should it ever be of it again.
    kept = Voter({}, left, b"boot", ring.clock(ring.hosts[1]))
    kept.load(ring.hosts[1].disk, ring.clock(ring.hosts[1]))
    assert one.own in receipts and kept.receipts == receipts
    assert left in rings_of(ring.hosts[1].disk) and two.ring in rings_of(ring.hosts[1].disk)


def test_seeds_need_no_agreement() -> None:
    """The named ones give at once, each alone, and it is one ring all the same."""
    settings = Settings(SPACE, lease_s=LEASE_S, init=SEED, seeds=("h1", "h2", "h3"))
    ring = Ring(8, 3, settings=settings)
    for pair in ((1, 2), (1, 3), (2, 3)):
        ring.blocked.add(frozenset(pair))
    ring.start(1)
    member = ring.hosts[1].member
    assert member is not None and spans.size(member.holdings.owned) in (84, 85, 86)
    ring.heal()
    ring.start(2)
    ring.start(3)
    ring.run_for(5.0)
    for index in (1, 2, 3):
        given(ring, index, f"c{index}")
    ring.run_for(20.0)
    ring.check_whole()


@pytest.mark.parametrize(("nickname", "init"), [("another", SEED), ("h2", SEED), ("h1", CONSENSUS)])
def test_a_seed_has_its_seat_whatever_it_is_called_and_told_later(nickname: str, init: str) -> None:
    """Else nobody would know who the heir of its share is, and no voter would take a statement of whoever has that."""
    ring = Ring(8, 3, settings=Settings(SPACE, lease_s=LEASE_S, init=SEED, seeds=("h1", "h2", "h3")))
    for index in ring.hosts:
        ring.start(index)
    ring.run_for(30.0)
    ring.kill(1)
    ring.hosts[1].nickname = nickname
    ring.settings = Settings(SPACE, lease_s=LEASE_S, init=init, seeds=ring.settings.seeds)
    ring.start(1)
    ring.run_for(10.0)
    member = ring.hosts[1].member
    assert member is not None and member.charter is not None and member.own_seat == b"nickname:h1"
    ring.claim(2, "one of its own", member.charter.granted(b"nickname:h1")[0].slots[0][0] + 5)
    ring.run_for(2 * LEASE_S)
    for index in ring.hosts:
        given(ring, index, f"c{index}")
    ring.check_whole()
    ring.kill(1)
    ring.run_for(3 * LEASE_S)
    others = [ring.hosts[index].member for index in (2, 3)]
    assert sum(spans.size(each.holdings.owned) for each in others if each) == SPACE.size


def test_who_is_no_seed_waits_for_one_and_says_for_which() -> None:
    """Nothing is used up where nobody has been heard of who owns it."""
    ring = Ring(8, 2, settings=Settings(SPACE, lease_s=LEASE_S, init=SEED, seeds=("h1",)))
    ring.blocked.add(frozenset((1, 2)))
    ring.start(1)
    ring.start(2)
    request = ring.obtain(2, "early")
    ring.run_for(3.0)
    assert request is not None and not request.is_done
    assert request.waiting_for == "word of a host that owns addresses there (--ipalloc-init names h1)"
    ring.heal()
    ring.run_for(8.0)
    assert request.answer is not None


def test_an_observer_waits_for_others_and_never_votes() -> None:
    ring = Ring(9, 2, settings=Settings(SPACE, lease_s=LEASE_S, init=OBSERVER), expected=1)
    ring.start(1)
    request = ring.obtain(1, "early")
    ring.settings = Settings(SPACE, lease_s=LEASE_S)
    ring.run_for(3.0)
    assert request is not None and request.answer is None
    ring.start(2)
    ring.run_for(8.0)
    assert request.answer is not None
    member = ring.hosts[2].member
    assert member is not None and member.charter is not None and member.charter.voters == (bytes(member.own),)


@pytest.mark.parametrize("init", [CONSENSUS, SEED])
def test_a_host_without_a_range_makes_no_ring_for_one_that_observes(init: str) -> None:
    """It could only be of nothing; it takes that of the next who has one."""
    ring = Ring(9, 3, settings=Settings(SPACE, lease_s=LEASE_S, init=OBSERVER), expected=1)
    ring.start(1)
    ring.obtain(1, "early")
    ring.settings = Settings(Space(None, None), lease_s=LEASE_S, init=init, seeds=("h2",) if init == SEED else ())
    ring.start(2)
    ring.run_for(8.0)
    without = ring.hosts[2].member
    assert without is not None and without.charter is None
    ring.settings = Settings(SPACE, lease_s=LEASE_S)
    ring.start(3)
    ring.run_for(4.0)
    given(ring, 3, "c3")
    ring.run_for(8.0)
    assert without.charter is not None and without.space == SPACE


def test_a_dead_hosts_addresses_are_taken_over_and_those_in_use_are_kept() -> None:
    """Within 30 s of the end of its lease, by themselves; the owner comes back and keeps what runs."""
    ring = started(5)
    for index in ring.hosts:
        given(ring, index, f"c{index}")
    ring.run_for(20.0)
    victim = ring.hosts[5]
    kept = set(victim.held)
    had = victim.member.holdings.owned if victim.member is not None else ()
    ring.kill(5)
    ring.run_for(LEASE_S + 30.0)
    owned = spans.union(*ring.owners().values())
    assert spans.covers(owned, had)
    heir = next(host for host in ring.hosts.values() if host.member and spans.both(host.member.holdings.owned, had))
    assert heir.member is not None
    assert all(not heir.member.holdings.is_free(slot) for slot in kept)
    ring.start(5)
    ring.run_for(30.0)
    assert victim.member is not None and victim.member.lost and victim.member.holdings.guests == kept
    ring.check_whole()
    for slot in kept:
        ring.release(5, slot)
    ring.run_for(30.0)
    assert heir.member.holdings.kept == {}


def test_with_two_voters_nothing_is_taken_back_by_itself_but_by_an_operators_word() -> None:
    ring = started(2)
    for index in ring.hosts:
        given(ring, index, f"c{index}")
    dead = ring.hosts[2]
    ring.kill(2)
    ring.run_for(4 * LEASE_S)
    assert spans.size(ring.owners()[1]) < 256
    given(ring, 1, "meanwhile")
    ring.remove(1, dead.name)
    ring.run_for(5.0)
    assert spans.size(ring.owners()[1]) == 256


def voters_there(ring: Ring) -> list[int]:
    charters = [host.member.charter for host in ring.hosts.values() if host.member is not None]
    return [index for index, host in ring.hosts.items() if charters[0] and bytes(host.name) in charters[0].voters]


def nine_without(voters: int) -> Ring:
    """Of nine hosts with an address each, so many are gone that vote, with their disks."""
    ring = started(9)
    for index in ring.hosts:
        given(ring, index, f"c{index}")
    ring.run_for(20.0)
    for index in voters_there(ring)[:voters]:
        ring.kill(index)
        ring.gone.append(ring.hosts.pop(index))
    ring.run_for(5.0)
    return ring


def all_are_different(ring: Ring, more: int) -> None:
    """What is in use on any host, also when so many more have been given on each."""
    for number in range(more):
        for index in ring.hosts:
            given(ring, index, f"d{number} {index}", 2.0)
    held = [slot for host in ring.hosts.values() for slot in host.held]
    assert len(held) == len(set(held)) >= more * len(ring.hosts)


def test_where_an_operators_word_leaves_no_voter_the_ring_is_made_anew() -> None:
    """As where a cluster loses the rack with all that vote."""
    ring = nine_without(voters=7)
    ring.run_for(2 * LEASE_S)
    left = sorted(ring.hosts)
    before = {index: set(ring.hosts[index].held) for index in left}
    refused = ring.obtain(left[0], "too early")
    ring.run_for(11.0)
    assert refused is not None and refused.refused is not None  # nobody confirms it
    for host in ring.gone:
        ring.remove(left[0], host.name)
    ring.run_for(10.0)
    ring.gone.clear()  # what they had may be given again
    ring.check_whole()
    all_are_different(ring, 60)
    assert {index: set(ring.hosts[index].held) & before[index] for index in left} == before
    ring.run_for(5.0)
    ring.check_whole()


def test_but_not_while_somebody_is_out_of_reach_who_would_go_on_in_the_old_one() -> None:
    ring = nine_without(voters=7)
    here, cut_off = sorted(ring.hosts)
    ring.partition({cut_off})
    ring.run_for(5.0)
    member = ring.hosts[here].member
    assert member is not None
    old, names = member.ring, [host.name for host in ring.gone]
    assert rings.out_of_reach(member, names) == [ring.hosts[cut_off].name]
    for name in names:
        ring.remove(here, name)
    ring.run_for(20.0)
    assert member.ring == old
    ring.heal()
    ring.run_for(10.0)
    assert member.ring != old
    ring.gone.clear()
    ring.check_whole()


def test_nor_by_who_was_started_a_moment_ago_and_has_heard_of_nobody() -> None:
    """What it knows of others is what they said since. By then whoever it cannot hear of is confirmed no more."""
    ring = nine_without(voters=7)
    word, cut_off = sorted(ring.hosts)
    ring.partition({cut_off})
    ring.kill(word)
    ring.start(word)
    ring.run_for(5.0)
    member, other = ring.hosts[word].member, ring.hosts[cut_off].member
    assert member is not None and other is not None and not member.members()
    for host in ring.gone:
        ring.remove(word, host.name)
    old = member.ring
    ring.run_for(10.0)
    assert member.ring == old and rings.too_early_s(member, ring.clock(ring.hosts[word])) > 0
    for _ in range(2 * LEASE_S):
        if member.ring == old:
            ring.run_for(1.0)
    assert member.ring != old and other.lease.until < ring.clock(ring.hosts[cut_off])


def test_who_is_back_after_the_ring_was_made_anew_is_in_the_new_one_with_what_it_has() -> None:
    ring = nine_without(voters=6)
    [back] = voters_there(ring)
    held = dict(ring.hosts[back].held)
    ring.kill(back)
    ring.run_for(5.0)
    for name in [*(host.name for host in ring.gone), ring.hosts[back].name]:
        ring.remove(min(set(ring.hosts) - {back}), name)
    ring.run_for(10.0)
    ring.start(back)
    ring.run_for(10.0)
    assert ring.hosts[back].held == held
    ring.gone.clear()
    ring.check_whole()
    all_are_different(ring, 30)
    ring.check_whole()


def test_who_leaves_for_good_leaves_its_addresses_at_once() -> None:
    ring = started(3)
    for index in ring.hosts:
        given(ring, index, f"c{index}")
    leaver = ring.hosts[3].member
    assert leaver is not None
    leaver.resign()
    ring.hosts[3].held.clear()
    ring.wake(ring.hosts[3])
    ring.run_for(1.0)
    ring.kill(3)
    ring.run_for(10.0)
    assert sum(map(spans.size, ring.owners().values())) == 256


def test_a_minority_gives_until_its_lease_ends_and_not_after() -> None:
    ring = started(5)
    for index in ring.hosts:
        given(ring, index, f"c{index}")
    ring.partition({1})
    ring.run_for(5.0)
    given(ring, 1, "inside the lease")
    ring.run_for(LEASE_S + 5.0)
    request = ring.obtain(1, "after it")
    ring.run_for(15.0)
    assert request is not None and request.refused is not None and "voters to confirm" in str(request.refused)
    ring.heal()
    ring.run_for(10.0)
    given(ring, 1, "healed")


def test_what_was_given_is_found_again_and_rests_when_released() -> None:
    ring = started(1, expected=1)
    first = given(ring, 1, "c")
    assert given(ring, 1, "c") == first
    slot = next(iter(ring.hosts[1].held))
    ring.release(1, slot)
    assert given(ring, 1, "other") != first
    assert given(ring, 1, "c") == first  # its own, though it rests


def test_a_slot_is_free_when_the_last_of_its_addresses_is_released() -> None:
    ring = started(1, Settings(Space(IPv4Network("10.32.0.0/24"), AUTOMATIC6), lease_s=LEASE_S), expected=1)
    low, high = (text.partition("/")[0] for text in given(ring, 1, "c"))
    host = ring.hosts[1]
    assert host.desk is not None and host.member is not None
    host.desk.release("c", {low}, ring.clock(host))
    assert host.member.holdings.given[1].addresses == (f"{high}/64",)
    host.desk.release("c", {high}, ring.clock(host))
    assert 1 in host.member.holdings.resting


def test_a_subnet_is_given_from_whoever_owns_it() -> None:
    ring = started(3)
    given(ring, 1, "c")
    for number in range(4):
        request = ring.obtain(1, f"d{number}", FromSubnet(IPv4Network(f"10.32.0.{64 * number}/26")))
        ring.run_for(8.0)
        assert request is not None and request.answer is not None, request and request.refused
        assert request.answer[0].network == IPv4Network(f"10.32.0.{64 * number}/26")


def test_what_was_just_given_away_is_refused_with_the_name_of_who_asked_for_it() -> None:
    """Nobody is told that this host itself is out of reach, and whoever asked first has it."""
    ring = started(2)
    for index in (1, 2):
        given(ring, index, f"c{index}")
    here, there = ring.hosts[1].member, ring.hosts[2].member
    assert here is not None and there is not None
    slot = there.holdings.owned[-1][1] - 2
    first = ring.claim(1, "first", slot)
    while spans.holds(there.holdings.owned, slot):
        ring.run_for(0.01)
    second = ring.claim(2, "second", slot)
    ring.run_for(8.0)
    assert first is not None and first.answer is not None
    assert second is not None and second.refused is not None and second.refused.code == "address-taken"
    assert f"on its way to host {format_name(here.own)}" in str(second.refused)


def test_where_one_range_is_used_up_the_next_one_serves() -> None:
    ring = started(1, expected=1)
    low, high = IPv4Network("10.32.0.0/26"), IPv4Network("10.32.0.64/26")
    want = FromSubnet(low, low[9], low[9], (FromSubnet(high, high[7], high[7]),))
    found = []
    for owner in ("a", "b", "a", "b", "c"):
        request = ring.obtain(1, owner, want)
        ring.run_for(3.0)
        assert request is not None and request.is_done
        found.append(str(request.refused.code if request.refused else request.answer and request.answer[0]))
    assert found == ["10.32.0.9/26", "10.32.0.71/26", "10.32.0.9/26", "10.32.0.71/26", "ipam-exhausted"]


def test_space_that_is_used_up_says_where_it_is() -> None:
    ring = Ring(4, 1, "10.32.0.0/29", expected=1)
    ring.start(1)
    for number in range(6):
        given(ring, 1, f"c{number}", 3.0)
    request = ring.obtain(1, "one too many")
    ring.run_for(5.0)
    assert request is not None and request.refused is not None and request.refused.code == "ipam-exhausted"
    assert "here: 6" in str(request.refused)


def test_a_removed_host_is_not_named_as_one_that_has_space() -> None:
    ring = Ring(4, 3, "10.32.0.0/28", expected=3)
    for index in ring.hosts:
        ring.start(index)
    ring.run_for(4.0)
    given(ring, 1, "c")
    gone = ring.hosts[3]
    ring.kill(3)
    ring.run_for(5.0)
    ring.remove(1, gone.name)
    ring.run_for(10.0)
    member, desk = ring.hosts[1].member, ring.hosts[1].desk
    assert member is not None and desk is not None
    rows = view.status(member, desk, format_name, ring.clock(ring.hosts[1]), "")["peers"]
    assert format_name(gone.name) not in [row["peer"] for row in rows]
    assert sum(row["addresses"] for row in rows) == 16
    refused = None
    for number in range(14):
        request = ring.obtain(1, f"d{number}")
        ring.run_for(8.0)
        assert request is not None
        refused = refused or request.refused
    assert refused is not None and refused.code == "ipam-exhausted"
    assert "here: " in str(refused) and format_name(gone.name) not in str(refused)


def test_both_families_end_alike() -> None:
    ring = started(1, Settings(Space(IPv4Network("10.32.0.0/24"), AUTOMATIC6), lease_s=LEASE_S), expected=1)
    low, high = given(ring, 1, "c")
    assert low == "10.32.0.1/24" and high.startswith("fd") and high.endswith("::1/64")
    subnet = FromSubnet(IPv6Network(high.rpartition("::")[0] + "::/64"))
    request = ring.obtain(1, "d", subnet)
    ring.run_for(3.0)
    assert request is not None and request.answer is not None and len(request.answer) == 1


def test_a_take_over_that_nobody_can_decide_stands_in_the_way_of_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """More hosts die at once than a charter has fences for; who comes then is a voter all the same."""
    for module in (charter, elections):
        monkeypatch.setattr(module, "FENCES_MAX", 2)
    ring = Ring(31, 7, settings=Settings(SPACE, lease_s=LEASE_S), expected=3)
    for index in (1, 2, 3):
        ring.start(index)
    ring.run_for(4.0)
    given(ring, 1, "c1")
    voting, ring.settings = ring.settings, Settings(SPACE, lease_s=LEASE_S, init=OBSERVER)
    for index in (4, 5, 6):
        ring.start(index)
        ring.run_for(4.0)
        given(ring, index, f"c{index}")
    ring.run_for(20.0)
    for index in (4, 5, 6):
        ring.kill(index)
    ring.run_for(3 * LEASE_S)
    ring.settings = voting
    ring.start(7)
    ring.run_for(LEASE_S)
    member = ring.hosts[7].member
    assert member is not None and member.charter is not None
    assert len(member.charter.fences) == 1 and member.own_seat is not None
