"""What becomes of pages: those of others, and those of our own that come back from the past or from a twin."""

from __future__ import annotations

import pytest

import gossip.documents as documents
from gossip.documents import EPOCH_MAX, Page, sign_page
from gossip.errors import ProtocolError
from gossip.names import PeerName
from gossip.peers import GONE, LINKS_TABLE, LIVE, PEER_TABLE, PeerRecord, encode_links, encode_peer
from gossip.replica import (
    JUMP_WINDOW_S,
    JUMPS_MAX,
    LaterEpoch,
    MalformedPage,
    News,
    OwnPageObsolete,
    Replica,
    TwinPersists,
)
from tests.gossip.actors import identity, instance, page, record

FORGET_S, FORGET_GONE_S = 1000.0, 100.0


def make(number: int = 1, epoch: int = 5, life: int = 1) -> Replica:
    return Replica(identity(number), record(number, life), epoch, FORGET_S, FORGET_GONE_S)


def name(number: int) -> PeerName:
    return identity(number).name


def peer_page(number: int, epoch: int = 1, version: int = 1, state: str = LIVE, life: int = 1) -> Page:
    return page(number, PEER_TABLE, 0, epoch, version, encode_peer(record(number, life, state)))


def links_page(number: int, *others: int, version: int = 1) -> Page:
    return page(number, LINKS_TABLE, 0, 1, version, encode_links([name(other) for other in others]))


def take(replica: Replica, taken: Page, age_s: int = 0, now: float = 0.0) -> News:
    return replica.take_untrusted(taken.raw, age_s, now)


# Pages of others


def test_news_is_kept_and_read() -> None:
    replica = make()
    assert take(replica, peer_page(2)) == peer_page(2)
    assert replica.peers[name(2)] == record(2)
    assert take(replica, links_page(2, 3)) == links_page(2, 3)
    assert replica.claims_of(name(2)) == (name(3),)


def test_what_is_no_news_is_not_even_verified() -> None:
    """An old page costs a look at its header: a forged one that claims to be old changes nothing either."""
    replica = make()
    take(replica, page(2, version=5))
    assert take(replica, page(2, version=5)) == "pages-old"
    assert take(replica, page(2, version=4)) == "pages-old"
    spoiled = page(2, version=4).raw[:-1] + b"\x00"
    assert replica.take_untrusted(spoiled, 0, 0.0) == "pages-old"


def test_a_forged_page_is_the_senders_fault() -> None:
    replica = make()
    raw = bytearray(page(2).raw)
    raw[-80] ^= 1
    with pytest.raises(ProtocolError):
        replica.take_untrusted(bytes(raw), 0, 0.0)
    assert name(2) not in replica.store


@pytest.mark.parametrize("table", [PEER_TABLE, LINKS_TABLE])
def test_a_page_that_cannot_be_read_is_kept_all_the_same(table: str) -> None:
    """Its owner may speak a later release: it is news to pass on, what we knew stays, and nobody loses a link."""
    replica = make()
    take(replica, peer_page(2))
    take(replica, links_page(2, 3))
    odd = page(2, table, 0, 1, 9, b"\xc1")
    assert take(replica, odd) == MalformedPage(odd)
    assert replica.store.get(odd.id) == odd
    assert replica.peers[name(2)] == record(2)
    assert replica.claims_of(name(2)) == (name(3),)


def test_only_the_first_page_of_a_table_is_read() -> None:
    replica = make()
    second = page(2, PEER_TABLE, 1, body=b"\xc1")
    assert take(replica, second) == second
    assert name(2) not in replica.peers


def test_a_page_for_which_there_is_no_room_is_nobodys_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever passed it on had room for it and is no worse a neighbour."""
    monkeypatch.setattr(documents, "OWNERS_MAX", 2)
    replica = make()
    take(replica, page(2))
    assert take(replica, page(3)) == "pages-too-many"
    assert take(replica, page(2, version=2)) == page(2, version=2)
    monkeypatch.setattr(documents, "STORE_MAX_BYTES", 0)
    monkeypatch.setattr(documents, "OWNER_SHARE_BYTES", 0)
    assert take(replica, page(2, index=1)) == "pages-too-many"
    replica.write("rows", 0, b"our own always has room")


# Who is in reach, and for how long others are remembered


def test_peers_come_into_reach_and_go_out_of_it() -> None:
    replica = make()
    take(replica, peer_page(2))
    take(replica, links_page(2, 1, 3))
    take(replica, peer_page(3))
    assert set(replica.unreachable_since) == {name(2), name(3)}
    assert replica.update_reach([name(2)], 10.0) == {name(2), name(3)}
    assert replica.reachable == {name(2), name(3)}
    assert replica.unreachable_since == {}
    assert replica.update_reach([name(2)], 11.0) == frozenset()
    assert replica.update_reach([], 20.0) == {name(2), name(3)}
    assert replica.unreachable_since == {name(2): 20.0, name(3): 20.0}


def test_nobody_reaches_itself_through_others() -> None:
    replica = make()
    take(replica, peer_page(2))
    take(replica, links_page(2, 1))
    replica.update_reach([name(2)], 0.0)
    assert replica.reachable == {name(2)}


def test_names_that_nobody_has_heard_of_are_not_in_reach() -> None:
    """A member may claim links with hosts that do not exist: they count for nothing, in particular for no memory."""
    replica = make()
    take(replica, peer_page(2))
    take(replica, links_page(2, 8, 9))
    replica.update_reach([name(2)], 0.0)
    assert replica.reachable == {name(2)}
    take(replica, peer_page(8))
    assert replica.update_reach([name(2)], 0.0) == {name(8)}


def test_a_neighbour_is_in_reach_before_it_has_said_anything() -> None:
    replica = make()
    assert replica.update_reach([name(2)], 0.0) == {name(2)}
    assert replica.update_reach([], 1.0) == {name(2)}


def test_who_is_gone_is_out_of_reach_whoever_claims_a_link() -> None:
    replica = make()
    take(replica, peer_page(2))
    take(replica, links_page(2, 3))
    take(replica, peer_page(3))
    replica.update_reach([name(2)], 0.0)
    take(replica, peer_page(3, version=2, state=GONE))
    assert replica.update_reach([name(2)], 5.0) == {name(3)}
    assert replica.unreachable_since[name(3)] == 5.0


@pytest.mark.parametrize(("state", "limit_s"), [(LIVE, FORGET_S), (GONE, FORGET_GONE_S)])
def test_an_owner_out_of_reach_for_long_is_forgotten_with_all_it_said(state: str, limit_s: float) -> None:
    replica = make()
    for each in (peer_page(2, state=state), links_page(2, 3), page(2)):
        take(replica, each, now=50.0)
    assert replica.forget_expired(50.0 + limit_s - 0.1) == []
    assert not replica.is_expired(name(2), 50.0 + limit_s - 0.1)
    assert replica.is_expired(name(2), 50.0 + limit_s)
    assert replica.forget_expired(50.0 + limit_s) == [name(2)]
    assert name(2) not in replica.store and name(2) not in replica.peers
    assert replica.claims_of(name(2)) == () and replica.unreachable_since == {}
    assert replica.forget_expired(1e9) == []


def test_whoever_is_in_reach_never_expires() -> None:
    replica = make()
    take(replica, peer_page(2))
    replica.update_reach([name(2)], 0.0)
    assert replica.age_s(name(2), 1e9) == 0
    assert not replica.is_expired(name(2), 1e9)
    assert replica.forget_expired(1e9) == []


def test_an_expired_owner_is_not_brought_back() -> None:
    """A neighbour that was cut off for days still holds it: what it says of its age decides, also at the limit."""
    replica = make()
    assert take(replica, peer_page(2), age_s=int(FORGET_S)) == "pages-expired"
    assert take(replica, peer_page(2), age_s=int(FORGET_S) - 1) == peer_page(2)
    assert replica.forget_expired(0.9) == []
    assert replica.forget_expired(1.0) == [name(2)]


def test_a_known_owner_may_be_told_of_however_old_it_is() -> None:
    """Its other pages are here until it is forgotten: a newer one of them is not refused."""
    replica = make()
    take(replica, peer_page(2))
    assert take(replica, page(2), age_s=10**9) == page(2)


def test_what_is_passed_on_only_grows_older() -> None:
    """However often hosts remind each other, rounding makes nobody younger: an age of 3.2 seconds is told as 4."""
    replica = make()
    take(replica, peer_page(2), now=10.0)
    ages = [replica.age_s(name(2), now) for now in (10.0, 10.9, 11.0, 13.2)]
    assert ages == [1, 1, 2, 4]
    assert all(age >= now - 10.0 for age, now in zip(ages, (10.0, 10.9, 11.0, 13.2), strict=True))


def test_hosts_that_remind_each_other_forget_all_the_same() -> None:
    """Twenty hosts that forget at different moments and ask each other at once for what they lack: it dies out."""
    replicas = [make(number) for number in range(1, 21)]
    for each in replicas:
        take(each, peer_page(30, state=GONE))
    now = FORGET_GONE_S - 5.0
    while any(name(30) in each.store for each in replicas):
        now += 0.25
        assert now < FORGET_GONE_S + 15.0
        for turn, each in enumerate(replicas):
            if int(now * 4) % 20 == turn:
                each.forget_expired(now)
        holders = [each for each in replicas if name(30) in each.store and not each.is_expired(name(30), now)]
        for each in replicas:
            if name(30) not in each.store and holders:
                each.take_untrusted(peer_page(30, state=GONE).raw, holders[0].age_s(name(30), now), now)


def test_a_newer_version_is_a_sign_of_life() -> None:
    """It is as young as the sender says; an older report of it changes nothing."""
    replica = make()
    take(replica, peer_page(2), age_s=500, now=500.0)
    take(replica, page(2, version=1), age_s=20, now=600.0)
    assert replica.age_s(name(2), 600.0) == 21
    take(replica, page(2, version=2), age_s=400, now=600.0)
    assert replica.age_s(name(2), 600.0) == 21


# Our own pages


def test_our_own_pages_are_versions_of_each_other() -> None:
    replica = make(epoch=5)
    first = replica.write("rows", 0, b"a")
    second = replica.write("rows", 0, b"b")
    assert (first.epoch, second.epoch) == (5, 5) and second.version > first.version
    assert replica.store.get(second.id) == second
    assert replica.is_current("rows", 0, b"b") and not replica.is_current("rows", 0, b"a")
    assert replica.is_current("rows", 9, b"")


def test_our_own_pages_coming_back_are_no_news() -> None:
    replica = make()
    first = replica.write("rows", 0, b"a")
    second = replica.write("rows", 0, b"b")
    assert take(replica, first) == "pages-old"
    assert take(replica, second) == "pages-old"


def test_a_page_of_an_earlier_life_is_followed_by_an_empty_one() -> None:
    """Somebody still holds a page that this life does not use: it must not be believed for another day."""
    replica = make(epoch=5)
    relic = page(1, "rows", 3, epoch=4, version=77)
    assert take(replica, relic) == OwnPageObsolete("rows", 3)
    successor = replica.write("rows", 3, b"")
    assert successor.stamp > relic.stamp
    assert take(replica, relic) == "pages-old"


def test_an_earlier_version_of_a_page_in_use_is_simply_old() -> None:
    replica = make(epoch=5)
    replica.write("rows", 3, b"now")
    assert take(replica, page(1, "rows", 3, epoch=4, version=77)) == "pages-old"


def test_a_forged_page_of_our_own_changes_nothing() -> None:
    """Only our key can make us jump to a later epoch."""
    replica = make(epoch=5)
    forged = page(1, "rows", 0, epoch=9).raw[:-64] + page(2).raw[-64:]
    with pytest.raises(ProtocolError):
        replica.take_untrusted(forged, 0, 0.0)


@pytest.mark.parametrize(("epoch", "version"), [(6, 1), (5, 1000), (900, 1)])
def test_pages_that_we_never_wrote_call_for_a_later_epoch(epoch: int, version: int) -> None:
    """A host restored from a backup meets its own later life."""
    replica = make(epoch=5)
    replica.write("rows", 0, b"restored")
    assert take(replica, page(1, "rows", 0, epoch, version)) == LaterEpoch(epoch + 1)
    assert replica.epoch == 5, "nothing is said under it before it is on disk"
    assert take(replica, page(1, "rows", 0, epoch, version)) == "pages-old"
    anew = replica.begin_epoch(epoch + 1)
    assert ("rows", 0, b"restored") in anew and len(anew) == 3
    pages = [replica.write(*each) for each in anew]
    assert all(each.epoch == epoch + 1 for each in pages)
    assert take(replica, page(1, "rows", 0, epoch, version)) == "pages-old"


def test_an_epoch_that_is_late_when_it_arrives_is_not_begun() -> None:
    """The disk was slow, and an even later life of ours has been seen meanwhile."""
    replica = make(epoch=5)
    assert take(replica, page(1, "rows", 0, epoch=7)) == LaterEpoch(8)
    assert take(replica, page(1, "rows", 1, epoch=8)) == LaterEpoch(9)
    assert replica.begin_epoch(8) == []
    assert replica.epoch == 5
    assert replica.begin_epoch(9) != []
    assert replica.begin_epoch(9) == []


def test_the_same_page_written_by_a_twin_is_noticed() -> None:
    """Same key, epoch and version, other content: both lives must not go on so."""
    replica = make(epoch=5)
    mine = replica.write("rows", 0, b"mine")
    theirs = page(1, "rows", 0, epoch=5, version=mine.version, body=b"theirs")
    assert take(replica, theirs) == LaterEpoch(6)


def test_no_epoch_is_so_late_that_none_can_follow() -> None:
    """Beyond the last one nothing is believed, and whoever wrote the last one under our key may have our name."""
    with pytest.raises(ProtocolError):
        make().take_untrusted(_with_epoch(EPOCH_MAX + 1), 0, 0.0)
    assert take(make(), page(1, "rows", 0, epoch=EPOCH_MAX - 1)) == LaterEpoch(EPOCH_MAX)
    assert take(make(), page(1, "rows", 0, epoch=EPOCH_MAX)) == TwinPersists()


def _with_epoch(epoch: int) -> bytes:
    raw = page(1).raw[:33] + epoch.to_bytes(8, "big") + page(1).raw[41:-64]
    return raw + identity(1).sign(b"weft document 1\x00" + raw)


def fight(ours: bytes, theirs: bytes) -> list[News]:
    """What this host concludes while a twin answers each of its epochs with a later one."""
    said = record(1)
    replica = Replica(identity(1), _with_instance(said, ours), 1, FORGET_S, FORGET_GONE_S)
    news = []
    for _ in range(JUMPS_MAX):
        body = encode_peer(_with_instance(said, theirs))
        later = sign_page(identity(1), PEER_TABLE, 0, replica.epoch + 1, 1, body)
        news.append(take(replica, later))
        if isinstance(news[-1], LaterEpoch):
            for each in replica.begin_epoch(news[-1].epoch):
                replica.write(*each)
    return news


def _with_instance(said: PeerRecord, value: bytes) -> PeerRecord:
    return PeerRecord(said.nickname, value, said.state, said.version, said.addresses, said.attributes)


def test_of_two_twins_exactly_one_yields() -> None:
    """After a few rounds, and by a rule that both know: the one that started with the larger number."""
    low, high = sorted((instance(1, 1), instance(1, 2)))
    assert [type(each) for each in fight(high, low)] == [LaterEpoch] * (JUMPS_MAX - 1) + [TwinPersists]
    assert [type(each) for each in fight(low, high)] == [LaterEpoch] * JUMPS_MAX


def test_jumps_far_apart_are_no_twin() -> None:
    """A host that is restored from its backup every day is still one host."""
    replica = make(epoch=1)
    for day in range(3 * JUMPS_MAX):
        body = encode_peer(record(1, life=100 + day))
        later = sign_page(identity(1), PEER_TABLE, 0, replica.epoch + 1, 1, body)
        news = replica.take_untrusted(later.raw, 0, day * (JUMP_WINDOW_S + 1))
        assert isinstance(news, LaterEpoch)
        for each in replica.begin_epoch(news.epoch):
            replica.write(*each)


def test_a_page_of_our_own_that_cannot_be_read_is_not_the_senders_fault() -> None:
    """Another release under our key said it, and the neighbour only passed it on."""
    assert take(make(epoch=1), page(1, PEER_TABLE, 0, epoch=2, body=b"\xc1")) == LaterEpoch(3)


def test_what_an_earlier_life_left_cannot_exceed_what_an_owner_may_have(monkeypatch: pytest.MonkeyPatch) -> None:
    """A relic is followed by an empty page where there is room for one; our neighbour is not to blame if not."""
    monkeypatch.setattr("gossip.replica.PAGES_PER_OWNER_MAX", 5)
    replica = make(epoch=5)
    for index in range(20):
        news = take(replica, page(1, "relics", index, epoch=4))
        if isinstance(news, OwnPageObsolete):
            replica.write(news.table, news.index, b"")
    assert len(replica.store.pages_of(name(1))) == 5
