"""Histories in which a slot once got a second owner, or none: each step by step, as chance is slow to find them."""

from __future__ import annotations

from ipaddress import IPv4Network

import pytest

from mesh.ipam import spans
from mesh.ipam.sim import LEASE_S, Host, Ring
from mesh.ipam.space import Space
from mesh.ipam.statement import CHARTER, STATEMENT
from mesh.ipam.surroundings import Settings

pytestmark = pytest.mark.parametrize("seed", [1, 2, 3])


def started(seed: int, hosts: int, lease_s: int = LEASE_S, range4: str = "10.32.0.0/26") -> Ring:
    """A ring in which everybody has slots and has given one."""
    ring = Ring(seed, hosts, settings=Settings(Space(IPv4Network(range4), None), lease_s=lease_s))
    for index in ring.hosts:
        ring.start(index)
    ring.run_for(4.0)
    for index in ring.hosts:
        ring.obtain(index, f"c{index}")
    ring.run_for(30.0)
    return ring


def free_slot(host: Host) -> int:
    assert host.member is not None
    given = host.member.holdings.given
    return next(slot for slot in spans.slots(host.member.holdings.owned) if slot not in given and 0 < slot < 63)


def owns(host: Host, slot: int) -> bool:
    return host.member is not None and spans.holds(host.member.holdings.owned, slot)


def owners(ring: Ring, slot: int) -> list[int]:
    return [index for index, host in sorted(ring.hosts.items()) if owns(host, slot)]


def until_it_owns(ring: Ring, index: int, slot: int, step_s: float = 0.001) -> None:
    for _ in range(8000):
        if owns(ring.hosts[index], slot):
            return
        ring.run_for(step_s)
    raise AssertionError(f"h{index} never got slot {slot}")


def test_a_gift_is_not_taken_again_from_an_old_page(seed: int) -> None:
    """The taker has passed it on, and starts anew where only the donor's old statement is known."""
    ring = started(seed, 5, lease_s=600)
    donor, taker, third = ring.hosts[1], ring.hosts[2], ring.hosts[3]
    slot = free_slot(donor)
    ring.claim(2, "want", slot)
    for _ in range(8000):
        member = ring.hosts[4].member
        said = member.statement(donor.name) if member is not None else None
        if said is not None and said.gifts:
            break
        ring.run_for(0.001)
    ring.partition({4, 5})
    ring.run_for(10.0)
    ring.release(2, slot)
    ring.run_for(70.0)
    ring.claim(3, "third", slot)
    ring.run_for(10.0)
    assert owns(third, slot)
    ring.kill(2)
    ring.blocked.clear()
    ring.partition({1, 3})
    ring.start(2)
    ring.run_for(60.0)
    assert not owns(taker, slot)


def test_a_donor_that_was_retired_does_not_take_back_what_was_passed_on(seed: int) -> None:
    """Donor and taker are both taken over; the rightful owner's page comes later than the decisions."""
    ring = started(seed, 7)
    donor, third = ring.hosts[1], ring.hosts[3]
    slot = free_slot(donor)
    ring.claim(2, "want", slot)
    until_it_owns(ring, 2, slot)
    ring.partition({1})
    ring.run_for(5.0)
    ring.release(2, slot)
    ring.run_for(62.0)
    ring.claim(3, "third", slot)
    ring.run_for(8.0)
    assert owns(third, slot)
    ring.kill(2)
    ring.run_for(3 * LEASE_S)
    ring.hold_back(1, third.name, STATEMENT, 25.0)
    ring.heal()
    ring.run_for(90.0)
    assert owners(ring, slot) == [3]
    ring.start(2)
    ring.run_for(2 * LEASE_S)
    ring.check_whole()


def test_a_word_that_leaves_voters_out_does_not_end_a_live_owners_lease(seed: int) -> None:
    """Those left out were who confirmed it. Nothing may be decided without it, for it may be part of a majority."""
    ring = started(seed, 5, range4="10.32.0.0/24")
    ring.partition({4, 5})
    ring.run_for(2 * LEASE_S)
    lost = [ring.hosts[index].name for index in (1, 2)]
    for index in (1, 2):
        ring.kill(index, disk=False)
    for name in lost:
        ring.remove(4, name)
    ring.run_for(40.0)  # the simulation looks whether two may give the same
    ring.gone.clear()
    ring.heal()
    ring.run_for(3 * LEASE_S)
    alive = [host.member for host in ring.hosts.values() if host.member is not None]
    assert sum(spans.size(member.holdings.owned) for member in alive) <= 256


def test_what_an_heir_keeps_goes_on_being_kept_when_it_is_retired_itself(seed: int) -> None:
    """The host that uses it is still cut off, and nobody remembers its endpoints."""
    ring = started(seed, 5)
    user = ring.hosts[5]
    slot = min(user.held)
    ring.partition({5})
    ring.run_for(2 * LEASE_S)
    (first,) = (index for index in owners(ring, slot) if index != 5)
    ring.pause(first, 2 * LEASE_S)
    ring.run_for(2 * LEASE_S + 30.0)
    (second,) = (index for index in owners(ring, slot) if index != 5)
    assert second != first
    for index in (1, 2, 3, 4):
        ring.kill(index)
    for index in (1, 2, 3, 4):
        ring.start(index)
    ring.run_for(70.0)
    for number in range(16):
        for index in (1, 2, 3, 4):
            ring.obtain(index, f"x{number}.{index}")
        ring.run_for(4.0)
    heir = ring.hosts[second].member
    assert heir is not None and not heir.holdings.is_free(slot) and slot not in heir.holdings.given


def test_a_removed_donors_gift_that_was_not_confirmed_has_one_owner(seed: int) -> None:
    ring = started(seed, 3)
    donor = ring.hosts[1]
    ring.partition({2})
    ring.run_for(5.0)
    slot = free_slot(donor)
    ring.claim(3, "want", slot)
    until_it_owns(ring, 3, slot, 0.01)
    ring.kill(1, disk=False)
    ring.run_for(5.0)
    ring.remove(2, donor.name)
    ring.run_for(1.0)
    ring.heal()
    ring.run_for(2 * LEASE_S)
    ring.start(1)
    ring.gone.clear()
    ring.run_for(LEASE_S)
    ring.check_whole()


def test_a_gift_of_a_later_decision_is_not_taken_before_that_decision_is_known(seed: int) -> None:
    """The taker was retired by it, and would lose the gift with the rest, for ever."""
    ring = started(seed, 5)
    taker = ring.hosts[5]
    ring.partition({5})
    ring.run_for(2 * LEASE_S)
    assert all(index != 5 for index in owners(ring, min(taker.held)) if index != 5)
    for index in (1, 2, 3, 4):
        ring.hold_back(5, ring.hosts[index].name, CHARTER, 20.0)
    ring.obtain(5, "asks")
    ring.heal()
    for number in range(3):
        ring.obtain(5, f"asks-{number}")
        ring.run_for(4.0)
    ring.run_for(2 * LEASE_S)
    ring.check_whole()


def test_of_four_voters_two_do_not_take_what_a_fourth_was_confirmed_by_the_removed_one(seed: int) -> None:
    """Those that are left are three, and the removed one was half of who held the taker's statement."""
    ring = started(seed, 4, lease_s=600)
    ring.partition({2, 3})
    ring.run_for(5.0)
    slot = free_slot(ring.hosts[1])
    ring.claim(4, "want", slot)
    ring.run_for(10.0)
    assert slot in ring.hosts[4].held
    ring.kill(1, disk=False)
    ring.run_for(5.0)
    ring.remove(2, ring.gone[0].name)
    ring.run_for(20.0)
    assert owners(ring, slot) == [4]
    ring.claim(3, "second", slot)
    ring.run_for(10.0)
    assert slot not in ring.hosts[3].held


def test_a_word_does_not_make_voters_of_those_who_do_not_know_yet(seed: int) -> None:
    """Four of seven voters have not heard what the three before them held, and these three are not all gone."""
    ring = Ring(seed, 7, settings=Settings(Space(IPv4Network("10.32.0.0/24"), None), lease_s=600), expected=3)
    for index in (1, 2, 3):
        ring.start(index)
    ring.run_for(3.0)
    for index in (1, 2, 3):
        ring.obtain(index, f"c{index}")
    ring.run_for(20.0)
    newcomers = (4, 5, 6, 7)
    for index in newcomers:
        ring.start(index)
    ring.run_for(0.8)
    for index in newcomers:
        for old in (1, 2, 3):
            for page in (STATEMENT, *range(16, 32)):
                ring.hold_back(index, ring.hosts[old].name, page, 900.0)
    host = ring.hosts[1]
    assert host.member is not None
    holdings = host.member.holdings
    slot = next(each for each in spans.slots(holdings.owned) if each and each not in holdings.given)
    ring.claim(2, "want", slot)
    for _ in range(3000):
        ring.run_for(0.01)
        members = [ring.hosts[index].member for index in newcomers]
        if all(member is not None and member.charter and len(member.charter.voters) == 7 for member in members):
            break
    ring.run_for(0.3)
    ring.partition({*newcomers})
    ring.run_for(1.0)
    ring.kill(1, disk=False)
    ring.gone[0].held.clear()
    ring.run_for(3.0)
    ring.remove(4, host.name)
    ring.run_for(30.0)
    assert owners(ring, slot) == [2]


def test_a_reset_that_the_others_heard_of_is_not_undone_by_a_crash(seed: int) -> None:
    """Of two hosts one resigns, the other takes everything, and the first is started again, cut off."""
    ring = started(seed, 2, lease_s=600)
    host = ring.hosts[2]
    assert host.member is not None
    for slot in sorted(host.held):
        ring.release(2, slot)
    host.member.resign()
    ring.wake(host)
    ring.run_for(0.5)
    ring.partition({2})
    ring.kill(2)
    ring.run_for(4.0)
    ring.start(2)
    ring.run_for(20.0)
    again = ring.hosts[2].member
    assert again is not None and again.resigned
    request = ring.obtain(2, "c")
    ring.run_for(5.0)
    assert not ring.hosts[2].held
    assert request is not None and request.refused is not None and request.refused.code == "ipam-resigned"


def test_what_came_back_is_not_excluded_by_who_has_not_heard_of_it(seed: int) -> None:
    """A slot went to another and back, both die, and one voter has only heard that it went."""
    ring = started(seed, 5, lease_s=60)
    slot = free_slot(ring.hosts[1])
    ring.claim(2, "want", slot)
    ring.run_for(10.0)
    assert owners(ring, slot) == [2]
    ring.release(2, slot)
    ring.run_for(70.0)
    ring.partition({5})
    ring.claim(1, "again", slot)
    ring.run_for(15.0)
    assert owners(ring, slot) == [1]
    ring.kill(1, disk=False)
    ring.kill(2, disk=False)
    for index in (3, 4):
        ring.kill(index)
        ring.start(index)
    ring.heal()
    ring.run_for(200.0)
    names = [host.name for host in ring.gone]
    for name in names:
        ring.remove(3, name)
    ring.run_for(60.0)
    assert len(owners(ring, slot)) == 1


def test_who_comes_back_to_a_ring_has_what_it_had_of_it(seed: int) -> None:
    """One of three leaves a ring that nobody uses for another, which later joins the first; decisions in between."""
    ring = Ring(seed, 5, settings=Settings(Space(IPv4Network("10.32.0.0/26"), None), lease_s=600), expected=1)
    ring.partition({5})
    ring.start(5)
    ring.obtain(5, "z")
    ring.run_for(10.0)
    ring.release(5, min(ring.hosts[5].held))
    ring.expected = 3
    for index in (1, 2, 3):
        ring.start(index)
    ring.run_for(4.0)
    one, three = (ring.hosts[index].member for index in (1, 3))
    assert one is not None and three is not None
    one.wants_ring = True
    ring.wake(ring.hosts[1])
    ring.run_for(10.0)
    ring.expected = 1
    ring.start(4)
    ring.run_for(20.0)
    had = three.holdings.owned
    assert three.ring == one.ring and one.tip > 0 and had
    ring.blocked.clear()
    ring.partition({3, 5})
    ring.kill(3)
    ring.start(3)
    ring.run_for(10.0)
    three = ring.hosts[3].member
    assert three is not None and three.ring != one.ring and not three.holdings.owned
    ring.kill(3)  # what it had is on its disk
    ring.start(3)
    ring.obtain(1, "one")
    ring.run_for(10.0)
    ring.heal()
    ring.run_for(15.0)
    ring.join(5, one.ring)
    ring.run_for(60.0)
    again = ring.hosts[3].member
    assert again is not None and again.ring == one.ring and again.holdings.owned == had
    ring.check_whole()


def test_a_word_that_came_to_nothing_is_not_carried_out_when_voters_come_back(seed: int) -> None:
    """Each of three is cut off from both others. Who gave the word was told so, and brings back the removed one too."""
    ring = started(seed, 3)
    ring.partition({1})
    ring.partition({2})
    ring.run_for(5.0)
    ring.remove(1, ring.hosts[3].name)
    ring.run_for(12.0)
    asked = ring.hosts[1].member
    assert asked is not None and asked.tip == 0
    asked.removals.clear()
    ring.run_for(5.0)
    had = ring.owners()
    ring.heal()
    ring.run_for(30.0)
    assert ring.owners() == had
    ring.check_whole()


def test_two_that_were_each_told_that_the_other_is_gone_are_one_ring_again(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both decided the same for themselves, under the same number: nothing that they say is later than the other's."""
    ring = started(seed, 2)
    ring.partition({1})
    ring.run_for(5.0)
    monkeypatch.setattr(ring, "fail", lambda what: None)  # both give the same until they hear of each other
    for index, other in ((1, 2), (2, 1)):
        ring.remove(index, ring.hosts[other].name)
    ring.run_for(10.0)
    assert [spans.size(owned) for owned in ring.owners().values()] == [64, 64]
    ring.heal()
    ring.run_for(30.0)
    monkeypatch.undo()
    ring.run_for(2 * LEASE_S)
    ring.check_whole()


def test_what_voters_hold_of_a_copy_confirms_nothing_of_the_original(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A copy of a state directory spoke to the others for a while. When it is gone, the original goes on in the same
    life: as soon as they hold what it says itself, and no longer than that when it is cut off."""
    ring = started(seed, 3)
    original = ring.hosts[1]
    ring.partition({1})
    monkeypatch.setattr(ring, "fail", lambda what: None)  # both give the same until they hear of each other
    copy = ring.hosts[9] = Host(9, original.name, 1.0, 0.0, original.epoch, disk=dict(original.disk))
    ring.blocked.add(frozenset((1, 9)))
    copy.held = dict(original.held)
    ring.start(9)
    ring.run_for(10.0)
    assert copy.member is not None and copy.member.lease.until > ring.clock(copy)
    ring.kill(9)
    del ring.hosts[9]
    monkeypatch.undo()
    assert original.member is not None
    original.member.note_conflict("copied")
    ring.heal()
    ring.run_for(3.0)
    original.epoch = copy.epoch + 1  # as gossip does, when it is shown pages that this life never wrote
    ring.publish(original, {page: body for (name, page), (_, body) in original.store.items() if name == original.name})
    original.member.note_conflict("")
    ring.run_for(6.0)
    for index in (2, 3):
        member = ring.hosts[index].member
        assert member is not None and member.voter.receipts[original.name].statement == original.member.said
    request = ring.obtain(1, "after")
    ring.run_for(6.0)
    assert request is not None and request.answer is not None
    ring.partition({1})
    ring.run_for(3 * LEASE_S)
    assert original.member.lease.until < ring.clock(original)
