"""Parity pieces against arithmetic anybody can check, and against every way to lose pieces."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataplane.sleeve.parity import MASKS_KEPT, PARITY_MAX, PIECES_MAX, Piece, encode, recover


def times(a: int, b: int) -> int:
    """GF(256) as in a textbook: shift and add, then x^8 = x^4 + x^3 + x^2 + 1."""
    product = 0
    for bit in range(8):
        if b >> bit & 1:
            product ^= a << bit
    for bit in range(14, 7, -1):
        if product >> bit & 1:
            product ^= 0x11D << bit - 8
    return product


def power(exponent: int) -> int:
    """Of 2, by multiplying; negative ones by 2^255 = 1."""
    found = 1
    for _ in range(exponent % 255):
        found = times(found, 2)
    return found


def inverse(a: int) -> int:
    return next(b for b in range(256) if times(a, b) == 1)


def factor(row: int, index: int) -> int:
    """The matrix as the module's header states it."""
    if row == 0:
        return 1
    if row == 1:
        return power(index)
    return inverse(power(-index) ^ power(-64 - (row - 2)))


def slowly(pieces: Sequence[bytes], parity: int) -> list[bytes]:
    found = []
    for row in range(parity):
        factors = [factor(row, index) for index in range(len(pieces))]
        sums = bytearray(len(pieces[0]))
        for piece, scale in zip(pieces, factors, strict=True):
            for place, byte in enumerate(piece):
                sums[place] ^= times(scale, byte)
        found.append(bytes(sums))
    return found


def some(count: int, size: int, seed: int = 1) -> list[bytes]:
    random = Random(seed)
    return [random.randbytes(size) for _ in range(count)]


def without(pieces: Sequence[Piece], lost: Sequence[int]) -> dict[int, Piece]:
    return {index: piece for index, piece in enumerate(pieces) if index not in lost}


def test_the_bytes_are_these() -> None:
    """Another version of the program must still be able to repair what this one sent."""
    parity = encode([b"woven", b"cloth", b"holds"], PARITY_MAX)
    assert [piece.hex() for piece in parity] == ["7c6c757575", "0c1605006f", "d62c30de03", "6203f27340"]


@pytest.mark.parametrize("count", [1, 2, 3, 8, 33, PIECES_MAX])
@pytest.mark.parametrize("size", [1, 2, 29])
def test_parity_is_what_its_definition_says(count: int, size: int) -> None:
    """Every row, byte by byte; and fewer rows are the first of more."""
    pieces = some(count, size)
    assert encode(pieces, PARITY_MAX) == slowly(pieces, PARITY_MAX)
    assert encode(pieces, 2) == encode(pieces, PARITY_MAX)[:2]
    assert encode(pieces, 0) == []


def test_pieces_of_many_sizes_one_after_the_other() -> None:
    """More sizes than are remembered, and the first again."""
    for size in [*range(1, MASKS_KEPT + 10), 1]:
        pieces = some(3, size)
        assert encode(pieces, 2) == slowly(pieces, 2)


@pytest.mark.parametrize("parity", range(PARITY_MAX + 1))
@pytest.mark.parametrize("count", range(1, 7))
def test_every_loss_that_leaves_enough_pieces_is_repaired(count: int, parity: int) -> None:
    """And of every other nothing is made up."""
    pieces = some(count, 5)
    sent = [*pieces, *encode(pieces, parity)]
    for lost in itertools.chain.from_iterable(itertools.combinations(range(len(sent)), n) for n in range(len(sent))):
        found = recover(without(sent, lost), count, parity)
        assert found == (pieces if len(lost) <= parity else None), lost


@pytest.mark.parametrize("lost", [2, 3, 4])
def test_a_full_group_survives_any_loss_it_should(lost: int) -> None:
    """64 pieces: all pairs; of the larger losses as many, at random."""
    pieces = some(PIECES_MAX, 2)
    sent = [*pieces, *encode(pieces, PARITY_MAX)]
    random = Random(lost)
    pairs = list(itertools.combinations(range(PIECES_MAX), 2))
    for pair in pairs:
        gone = {*pair, *random.sample(range(len(sent)), lost - 2)}
        # Leave away what is not needed, too: the rest must do by itself.
        extra = [index for index in range(PIECES_MAX, len(sent)) if index not in gone]
        gone.update(random.sample(extra, min(PARITY_MAX - len(gone), len(extra))))
        assert recover(without(sent, sorted(gone)), PIECES_MAX, PARITY_MAX) == pieces


@given(st.data())
def test_what_is_lost_is_repaired_whatever_it_held(data: st.DataObject) -> None:
    """Any bytes, any kind of buffer, any numbers of pieces."""
    count = data.draw(st.integers(1, PIECES_MAX))
    parity = data.draw(st.integers(0, PARITY_MAX))
    size = data.draw(st.integers(1, 40))
    pieces = [data.draw(st.binary(min_size=size, max_size=size)) for _ in range(count)]
    kind = data.draw(st.sampled_from([bytes, bytearray, memoryview]))
    handed: list[Piece] = [kind(piece) for piece in pieces]
    sent: list[Piece] = [*handed, *encode(handed, parity)]
    lost = data.draw(st.sets(st.integers(0, len(sent) - 1), max_size=parity))
    found = recover(without(sent, sorted(lost)), count, parity)
    assert found is not None and [bytes(piece) for piece in found] == pieces


def test_pieces_of_different_sizes_repair_nothing() -> None:
    """They cannot be of one group."""
    pieces = some(4, 8)
    (parity,) = encode(pieces, 1)
    assert recover({0: pieces[0], 1: pieces[1][:7], 2: pieces[2], 4: parity}, 4, 1) is None
    assert recover({0: pieces[0], 1: pieces[1], 2: pieces[2], 4: parity + b"x"}, 4, 1) is None
    assert recover({0: b"", 1: b"", 2: b"", 4: b""}, 4, 1) is None


def test_a_group_beyond_the_limits_is_not_repaired() -> None:
    """Whatever the header of a datagram says."""
    pieces = dict(enumerate(some(PIECES_MAX + 2, 3)))
    assert recover(pieces, PIECES_MAX + 1, 1) is None
    assert recover(pieces, 3, PARITY_MAX + 1) is None
    assert recover(pieces, 0, 1) is None
    assert recover({}, 1, 1) is None
    assert recover(pieces, PIECES_MAX, 1) is not None


@given(
    st.dictionaries(st.integers(-2, 80), st.binary(max_size=3), max_size=12), st.integers(-1, 70), st.integers(-1, 6)
)
def test_nothing_from_the_network_raises(pieces: dict[int, bytes], count: int, parity: int) -> None:
    """What comes back is nothing, or a whole group of equal pieces."""
    found = recover(pieces, count, parity)
    assert found is None or (len(found) == count and len(set(map(len, found))) == 1)


@pytest.mark.parametrize("parity", range(1, PARITY_MAX + 1))
def test_a_wrong_parity_piece_changes_only_what_is_repaired(parity: int) -> None:
    """So the seal of the record is what proves a repair, and data that came is never touched."""
    pieces = some(6, 9)
    sent = [*pieces, *encode(pieces, parity)]
    sent[6] = bytes(9)
    found = recover(without(sent, [2]), 6, parity)
    assert found is not None
    assert [piece == was for piece, was in zip(found, pieces, strict=True)] == [True, True, False, True, True, True]
