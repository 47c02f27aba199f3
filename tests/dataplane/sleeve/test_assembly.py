"""Records put together from their parts: in any order, never twice, never without bound."""

from __future__ import annotations

from random import Random

import pytest

from dataplane.sleeve import parity as code
from dataplane.sleeve.assembly import AGE_MAX_S, BYTES_MAX, PARTIALS_MAX, Assembly, Burst
from dataplane.sleeve.wire import DATAGRAMS_MAX, SEND_MAX_BYTES

SIZE = 1000
A, B = ("10.0.0.1", 1), ("10.0.0.2", 1)


def burst(total: int, now: float = 0.0, counter: int = 0) -> Burst:
    return Burst(b"h" * 16, 1, counter, -(-total // SIZE), total, SIZE, now)


def offer(held: Assembly, parts: dict[int, bytes], count: int, parity: int, order: list[int]) -> list[bytes]:
    """Pieces one by one; every record that comes of them."""
    whole = []
    for number in order:
        found = held.take(1, 0, number, count, parity, [memoryview(parts[number])], 0.0)
        if found:
            whole.append(b"".join(found))
    return whole


def test_a_burst_is_whole_with_its_last_part() -> None:
    held, data = Assembly(), Random(1).randbytes(2500)
    held.begin_burst(A, burst(2500), memoryview(data)[:1000])
    assert held.continue_burst(A, memoryview(data)[1000:2000], 0.01) is None
    done = held.continue_burst(A, memoryview(data)[2000:], 0.02)
    assert done is not None and bytes(done[1]) == data
    assert held.bytes == 0 and not held.bursts


def test_bursts_of_two_addresses_do_not_mix() -> None:
    held, one, other = Assembly(), b"1" * 2000, b"2" * 2000
    held.begin_burst(A, burst(2000), memoryview(one)[:1000])
    held.begin_burst(B, burst(2000), memoryview(other)[:1000])
    found = [held.continue_burst(where, memoryview(data)[1000:], 0.0) for where, data in ((B, other), (A, one))]
    assert [bytes(each[1]) for each in found if each is not None] == [other, one]


def test_a_new_burst_from_an_address_gives_up_the_old_one() -> None:
    held = Assembly()
    held.begin_burst(A, burst(2000), memoryview(bytes(1000)))
    held.begin_burst(A, burst(3000, counter=2), memoryview(bytes(1000)))
    assert held.bursts[A].counter == 2 and held.bytes == 1000 and held.dropped == 1


@pytest.mark.parametrize(("more", "at"), [(1001, 0.0), (1000, AGE_MAX_S + 0.001)], ids=["too-much", "too-late"])
def test_what_does_not_fit_a_burst_ends_it(more: int, at: float) -> None:
    held = Assembly()
    held.begin_burst(A, burst(2000), memoryview(bytes(1000)))
    assert held.continue_burst(A, memoryview(bytes(more)), at) is None
    assert not held.bursts and held.bytes == 0 and held.dropped == 1


@pytest.mark.parametrize("seed", range(20))
def test_any_pieces_that_suffice_make_the_record(seed: int) -> None:
    random = Random(seed)
    count, parity = random.randrange(1, 17), random.randrange(1, 5)
    data = [random.randbytes(50) for _ in range(count)]
    parts = dict(enumerate([*data, *code.encode(data, parity)]))
    order = random.sample(sorted(parts), count)
    held = Assembly()
    assert offer(held, parts, count, parity, order[:-1]) == []
    assert offer(held, parts, count, parity, order[-1:]) == [b"".join(data)]
    assert held.bytes == 0 and not held.pieces


def test_a_piece_that_comes_twice_counts_once() -> None:
    held = Assembly()
    parts = {number: bytes((number,)) * 10 for number in range(3)}
    assert offer(held, parts, 3, 0, [0, 0, 1, 1, 0]) == []
    assert held.bytes == 20
    assert offer(held, parts, 3, 0, [2]) == [b"".join(parts.values())]


def test_pieces_that_came_joined_are_taken_as_they_lie() -> None:
    held, data = Assembly(), [bytes((number,)) * 10 for number in range(4)]
    views = [memoryview(each) for each in data]
    assert list(held.take(1, 0, 0, 4, 1, views, 0.0)) == views
    assert not held.take(1, 7, 1, 4, 1, views[1:3], 0.0)
    assert b"".join(held.take(1, 7, 3, 4, 1, [views[3], memoryview(code.encode(data, 1)[0])], 0.0)) == b"".join(data)
    assert held.recovered == 1 and held.bytes == 0


def test_a_record_that_comes_whole_ends_what_was_held_of_it() -> None:
    held, part = Assembly(), memoryview(bytes(10))
    held.take(1, 0, 1, 3, 0, [part], 0.0)
    assert held.bytes == 10
    assert len(held.take(1, 0, 0, 3, 0, [part] * 3, 0.0)) == 3
    assert held.bytes == 0 and not held.pieces


@pytest.mark.parametrize(
    ("number", "count", "parity", "size", "many"),
    [
        (0, 0, 0, 10, 1),
        (0, DATAGRAMS_MAX + 1, 0, 10, 1),
        (3, 2, 1, 10, 1),
        (2, 2, 1, 10, 2),
        (0, 2, 0, 0, 1),
        (0, 64, 0, SEND_MAX_BYTES // 64 + 1, 1),
    ],
)
def test_pieces_that_contradict_themselves_are_dropped(
    number: int, count: int, parity: int, size: int, many: int
) -> None:
    held = Assembly()
    assert not held.take(1, 0, number, count, parity, [memoryview(bytes(size))] * many, 0.0)
    assert not held.pieces and held.bytes == 0 and held.dropped == 1


def test_pieces_that_contradict_the_first_are_dropped() -> None:
    held = Assembly()
    held.take(1, 0, 0, 3, 1, [memoryview(bytes(10))], 0.0)
    for count, parity, size in ((4, 1, 10), (3, 2, 10), (3, 1, 11)):
        assert not held.take(1, 0, 1, count, parity, [memoryview(bytes(size))], 0.0)
    assert held.bytes == 10


def test_parity_beyond_what_there_is_recovers_nothing_and_raises_nothing() -> None:
    held = Assembly()
    for number in (200, 201):
        held.take(1, 0, number, 2, 255, [memoryview(bytes(10))], 0.0)
    assert not held.pieces and held.dropped == 1


def test_unfinished_records_grow_old() -> None:
    held = Assembly()
    held.take(1, 0, 0, 2, 0, [memoryview(bytes(10))], 1.0)
    held.take(1, 5, 0, 2, 0, [memoryview(bytes(10))], 1.04)
    held.expire(1.0 + AGE_MAX_S - 0.001)
    assert held.dropped == 0
    held.expire(1.0 + AGE_MAX_S + 0.001)
    assert held.dropped == 1 and held.bytes == 10


def test_the_oldest_goes_when_there_are_too_many() -> None:
    held = Assembly()
    for number in range(PARTIALS_MAX + 1):
        held.begin_burst(("10.0.0.1", number), burst(2000), memoryview(bytes(100)))
        held.take(1, number, 0, 2, 0, [memoryview(bytes(10))], 0.0)
    assert len(held.bursts) == len(held.pieces) == PARTIALS_MAX
    assert ("10.0.0.1", 0) not in held.bursts and (1, 0) not in held.pieces
    assert held.bytes == PARTIALS_MAX * 110


def test_large_unfinished_records_are_bounded_in_bytes() -> None:
    held = Assembly()
    part = memoryview(bytes(60_000))
    for number in range(PARTIALS_MAX):
        held.take(1, number, 0, 64, 4, [part[:1000]] * 59, 0.0)
        held.begin_burst(("10.0.0.1", number), burst(65_000), part)
        assert held.bytes <= BYTES_MAX
    assert held.dropped > 0
    for number in range(PARTIALS_MAX):
        if ("10.0.0.1", number) in held.bursts:
            assert held.continue_burst(("10.0.0.1", number), memoryview(bytes(5000)), 0.0) is not None
    assert held.bytes == sum(each.size * len(each.parts) for each in held.pieces.values())
