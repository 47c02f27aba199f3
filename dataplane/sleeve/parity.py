"""Parity pieces, so that a record survives the loss of some of its datagrams.

Knows neither records nor datagrams, only pieces of equal size; that what it gives back is right is proven by the seal
of the whole record, not here. The one idea: parity piece r of the data pieces d0, d1 ... is the sum of c(r,i) * di over
GF(256), byte by byte, where sums are XOR, and the matrix c is such that any `count` of all pieces suffice:

    r = 0    1, 1, 1, 1 ...                        plain XOR: one parity piece costs next to nothing
    r = 1    1, 2, 4, 8 ...                        by Horner's rule, doubling all bytes of a piece at once
    r = 2,3  1 / (2^-i + y), y = 2^-64, 2^-65      byte by byte, by a table for each factor

Row 1 is 1 / (2^-i + 0): rows 1 to 3 are a Cauchy matrix (no 2^-i, i < 64, is a y), every square part of which can be
inverted, and that stays so with a row of ones on top. Python has no loop over bytes that is fast enough, but it has
three things that are: XOR of integers as long as a piece, their shifts, and `bytes.translate`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache, reduce
from operator import xor
from typing import Final

PIECES_MAX: Final = 64
"""Data pieces of one group."""
PARITY_MAX: Final = 4
MASKS_KEPT: Final = 64
"""Sizes of pieces for which the masks of `_double` are kept."""

_POLYNOMIAL: Final = 0x11D
"""x^8 + x^4 + x^3 + x^2 + 1, under which 2 generates the field."""

Piece = bytes | bytearray | memoryview


def encode(pieces: Sequence[Piece], parity: int) -> list[bytes]:
    """The parity pieces of these data pieces, which are all of one size."""
    size = len(pieces[0])
    assert 0 < len(pieces) <= PIECES_MAX and 0 <= parity <= PARITY_MAX and size > 0
    assert all(len(piece) == size for piece in pieces)
    numbers = [int.from_bytes(piece, "little") for piece in pieces]
    return [_sum(row, pieces, numbers, size).to_bytes(size, "little") for row in range(parity)]


def recover(pieces: Mapping[int, Piece], count: int, parity: int) -> list[Piece] | None:
    """The data pieces, out of whichever came: index 0 to count - 1 is data, from count on parity.

    None where too few came, or where their sizes or indices contradict each other: they come from the network, so
    nothing is taken for granted.
    """
    if not (0 < count <= PIECES_MAX and 0 <= parity <= PARITY_MAX and pieces):
        return None
    sizes = set(map(len, pieces.values()))
    size = sizes.pop()
    if sizes or size == 0:
        return None
    missing = [index for index in range(count) if index not in pieces]
    rows = [row for row in range(parity) if count + row in pieces][: len(missing)]
    if len(rows) < len(missing):
        return None
    # An empty stand-in adds nothing to any sum.
    known: list[Piece] = [pieces.get(index, b"") for index in range(count)]
    if not missing:
        return known
    numbers = [int.from_bytes(piece, "little") for piece in known]
    sums = [_sum(row, known, numbers, size) ^ int.from_bytes(pieces[count + row], "little") for row in rows]
    if rows == [0]:
        known[missing[0]] = sums[0].to_bytes(size, "little")
        return known
    found = [number.to_bytes(size, "little") for number in sums]
    for index, factors in zip(missing, _inverse(rows, missing), strict=True):
        known[index] = _weighted(found, factors).to_bytes(size, "little")
    return known


def _sum(row: int, pieces: Sequence[Piece], numbers: Sequence[int], size: int) -> int:
    """What parity piece `row` holds, as a number; `numbers` are the pieces as numbers."""
    if row == 0:
        return reduce(xor, numbers)
    if row == 1:
        low, rest = _masks(size)
        total = 0
        for number in reversed(numbers):
            # Each byte doubled: seven bits move up, and the eighth becomes 0x1D (what is left of the polynomial).
            total = ((total & rest) << 1) ^ ((total >> 7) & low) * 0x1D ^ number
        return total
    return _weighted(pieces, [_factor(row, index) for index in range(len(pieces))])


def _weighted(pieces: Sequence[Piece], factors: Sequence[int]) -> int:
    total = 0
    for piece, factor in zip(pieces, factors, strict=True):
        total ^= int.from_bytes(bytes(piece).translate(_TIMES[factor]), "little")
    return total


@lru_cache(MASKS_KEPT)
def _masks(size: int) -> tuple[int, int]:
    """The lowest bit of every byte, and the lower seven."""
    return int.from_bytes(b"\x01" * size, "little"), int.from_bytes(b"\x7f" * size, "little")


# The field, one number at a time: for tables and small matrices only.


def _powers() -> list[int]:
    found = [1]
    while len(found) < 255:
        doubled = found[-1] << 1
        found.append(doubled ^ _POLYNOMIAL if doubled > 0xFF else doubled)
    return found


_POWER: Final = bytes(_powers())
_ZERO: Final = 255
"""Stands for the logarithm of nought, which has none."""
_LOGARITHM: Final = bytes(_POWER.index(number) if number else _ZERO for number in range(256))


def _times(factor: int) -> bytes:
    """What `bytes.translate` needs to multiply every byte by a factor: logarithm, turn by its logarithm, power."""
    turn = _LOGARITHM[factor]
    turned = bytes(255) if turn == _ZERO else _POWER[turn:] + _POWER[:turn]
    return _LOGARITHM.translate(turned + b"\0")


_TIMES: Final = [_times(factor) for factor in range(256)]


def _multiply(a: int, b: int) -> int:
    return _TIMES[a][b]


def _invert(a: int) -> int:
    return _POWER[-_LOGARITHM[a] % 255]


def _factor(row: int, index: int) -> int:
    if row == 0:
        return 1
    offset = 0 if row == 1 else _POWER[-(PIECES_MAX + row - 2) % 255]
    return _invert(_POWER[-index % 255] ^ offset)


def _inverse(rows: Sequence[int], columns: Sequence[int]) -> list[list[int]]:
    """The inverse of that square part of the matrix, by Gauss and Jordan: at most PARITY_MAX on a side.

    No pivot is ever nought, because the smaller square parts can be inverted as well.
    """
    size = len(rows)
    matrix = [
        [_factor(row, column) for column in columns] + [int(other == place) for other in range(size)]
        for place, row in enumerate(rows)
    ]
    for place in range(size):
        scale = _invert(matrix[place][place])
        matrix[place] = [_multiply(scale, number) for number in matrix[place]]
        for line in range(size):
            if line != place and matrix[line][place]:
                factor = matrix[line][place]
                pairs = zip(matrix[line], matrix[place], strict=True)
                matrix[line] = [number ^ _multiply(factor, taken) for number, taken in pairs]
    return [line[size:] for line in matrix]
