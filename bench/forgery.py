"""What an attacker makes of what it heard: datagrams that are wrong, each kind in its own way.

Pure: heard datagrams and a random source in, packs for `bench/attack.py` out. Knows the layout of what travels between
two sleeves and none of their keys. The one idea needed to read it: a repetition costs its receiver next to nothing, so
whatever is made of captured records is also made with counters that are new, which must be found out by the seal.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise

from bench.attack import Pack
from dataplane.sleeve.handshake import HELLO, REFUSAL, WELCOME
from dataplane.sleeve.wire import BURST, BURST_HEADER, HEADER_BYTES, PIECE_HEADER, PIECES

PACK_MAX_BYTES = 64_000
PACK_MAX_DATAGRAMS = 45
SHORT_PACK = 8
"""Datagrams in one call where nothing asks for more: interleaved finely with what is sent honestly."""
PACKS = 1500
"""Of each kind; then it begins again."""
AHEAD = 1 << 22
"""Added to a captured counter so that it is new, and lies beyond what is used within minutes."""
_COUNTER_AT = 8


def hellos_of(heard: Sequence[Pack]) -> list[bytes]:
    return [pack.data for pack in heard if pack.data[:4] == bytes((HELLO, 0, 0, 0))]


def records_of(heard: Sequence[Pack], index: int) -> list[list[bytes]]:
    """The datagrams of each whole record for that session, in order: bursts and complete sets of pieces."""
    starts = [at for at, pack in enumerate(heard) if _begins(pack.data, index)]
    records = []
    for start, end in pairwise([*starts, len(heard)]):
        kind, second, third, fourth = heard[start].data[:4]
        many = second if kind == BURST else third + fourth
        whole = [pack.data for pack in heard[start : min(start + many, end)]]
        if len(whole) == many:
            records.append(whole)
    return records


def newest_index(heard: Sequence[Pack]) -> int:
    """Of the session that the newest record is for."""
    for pack in reversed(heard):
        if pack.data[0] == PIECES and len(pack.data) > HEADER_BYTES:
            return int(PIECE_HEADER.unpack_from(pack.data)[4])
        if pack.data[0] == BURST and len(pack.data) >= HEADER_BYTES and pack.data[1] == 1:
            return int(BURST_HEADER.unpack_from(pack.data)[3])
    raise ValueError("no record was heard")


def _begins(data: bytes, index: int) -> bool:
    if len(data) < HEADER_BYTES or data[0] not in (BURST, PIECES) or data[4:8] != index.to_bytes(4, "big"):
        return False
    return data[0] == BURST or data[1] == 0


def _packed(datagrams: Iterable[bytes], most: int = PACK_MAX_DATAGRAMS) -> Iterator[Pack]:
    """Neighbours of one length go together, and a shorter one may be the last, as the kernel cuts them."""
    row: list[bytes] = []
    for each in datagrams:
        fits = row and len(row[-1]) == len(row[0]) >= len(each) and len(row) < most
        if row and not (fits and len(row[0]) * (len(row) + 1) <= PACK_MAX_BYTES):
            yield Pack(len(row[0]), b"".join(row))
            row = []
        row.append(each)
    if row:
        yield Pack(len(row[0]), b"".join(row))


def _renewed(record: Sequence[bytes], by: int) -> list[bytes]:
    """The same record under a counter that was never used: all of its headers say so."""
    out = []
    for number, data in enumerate(record):
        if number == 0 or data[0] == PIECES == record[0][0]:
            counter = int.from_bytes(data[_COUNTER_AT:HEADER_BYTES], "big") + AHEAD + by
            data = data[:_COUNTER_AT] + counter.to_bytes(8, "big") + data[HEADER_BYTES:]
        out.append(data)
    return out


class Forger:
    """Everything that can be made without a key."""

    def __init__(self, records: Sequence[Sequence[bytes]], hellos: Sequence[bytes], rng: random.Random) -> None:
        assert records and hellos, "there is nothing to forge from"
        self._records, self._hellos, self._rng = records, hellos, rng

    def kinds(self) -> dict[str, Callable[[], list[Pack]]]:
        return {
            "random bytes": self.noise,
            "truncated": self.truncated,
            "replayed": self.replayed,
            "reordered": self.reordered,
            "bit-flipped": self.flipped,
            "hellos": self.hellos,
            "half records": self.halves,
        }

    def noise(self) -> list[Pack]:
        """Of any length; every second pack is at least of a type that exists."""
        packs = []
        for number in range(PACKS):
            size = self._rng.randint(1, 1472)
            data = bytearray(self._rng.randbytes(size * SHORT_PACK))
            if number % 2:
                data[::size] = bytes(self._rng.randint(HELLO, PIECES) for _ in range(SHORT_PACK))
            packs.append(Pack(size, bytes(data)))
        return packs

    def truncated(self) -> list[Pack]:
        """Records of which each datagram is cut short, all of one record at one place; half of them under new
        counters."""
        packs: list[Pack] = []
        for number, record in enumerate(self._some()):
            size = self._rng.randint(1, max(1, len(record[0]) - 1))
            cut = [each[:size] for each in (record if number % 2 else _renewed(record, number * 64))]
            packs += _packed(cut)
        return packs

    def replayed(self) -> list[Pack]:
        return [pack for record in self._some() for pack in _packed(record)]

    def reordered(self) -> list[Pack]:
        """Datagrams of several records shuffled, half of the records under new counters."""
        packs: list[Pack] = []
        records = [
            record if number % 2 else _renewed(record, number * 64) for number, record in enumerate(self._some())
        ]
        for first in range(0, len(records), 4):
            mixed = [each for record in records[first : first + 4] for each in record]
            self._rng.shuffle(mixed)
            packs += _packed(mixed, SHORT_PACK)
        return packs

    def flipped(self) -> list[Pack]:
        """One bit of every second datagram is wrong; most under counters that only the seal can refuse."""
        packs: list[Pack] = []
        for number, record in enumerate(self._some()):
            wrong = []
            for each in record if number % 4 == 0 else _renewed(record, number * 64):
                data = bytearray(each)
                if self._rng.random() < 0.5:
                    at = self._rng.randrange(len(data) * 8)
                    data[at // 8] ^= 1 << at % 8
                wrong.append(bytes(data))
            packs += _packed(wrong)
        return packs

    def hellos(self) -> list[Pack]:
        """Real ones once more; real beginnings with a later stamp and a body of chance; others from nobody; and answers
        to what was never asked."""
        packs = []
        for number in range(PACKS):
            real = self._hellos[number % len(self._hellos)]
            body = len(real) - 28
            row = []
            for _ in range(SHORT_PACK):
                stamp = (int.from_bytes(real[16:24], "big") + 1).to_bytes(8, "big") + self._rng.randbytes(4)
                row.append(
                    (
                        real,
                        real[:16] + stamp + self._rng.randbytes(body),
                        real[:8] + self._rng.randbytes(len(real) - 8),
                        bytes((WELCOME, 0, 0, 0)) + self._rng.randbytes(95),
                        bytes((REFUSAL, 0, 0, 0)) + self._rng.randbytes(20),
                    )[number % 5]
                )
            packs.append(Pack(len(row[0]), b"".join(row)))
        return packs

    def halves(self) -> list[Pack]:
        """First halves of records under new counters: what they need to be whole never comes."""
        packs: list[Pack] = []
        for number, record in enumerate(self._some()):
            packs += _packed(_renewed(record, number * 64)[: max(1, len(record) // 2)])
        return packs

    def _some(self) -> Iterator[Sequence[bytes]]:
        """Bursts and sets of pieces in turn, until there are enough of them; small ones are rare on a busy path, and
        rare here."""
        bursts = [record for record in self._records if record[0][0] == BURST and len(record) > 1]
        pieces = [record for record in self._records if record[0][0] == PIECES and len(record) > 1]
        small = [record for record in self._records if len(record) == 1]
        choices = [each for each in (bursts, pieces, bursts, pieces, small) if each]
        datagrams, number = 0, 0
        while datagrams < PACKS * SHORT_PACK:
            among = choices[number % len(choices)]
            record = among[number // len(choices) % len(among)]
            yield record
            datagrams, number = datagrams + len(record), number + 1
