"""What waits to be sent, served fairly between flows and bounded in bytes.

Knows neither frames nor what makes a flow; it is given both. The one idea is that of fq_codel (RFC 8290, without its
timers): every flow has a queue and a credit in bytes. Flows that just began to wait are served first, until their
credit is used up; so a ping or a TCP handshake passes by what bulk transfers have piled up. The others take turns, and
a turn is worth QUANTUM_BYTES more credit, so that they share by bytes, however large their frames are (deficit round
robin). When all is full, the flow that holds most loses its oldest.

Oldest, because the news of a loss then travels to the sender at once instead of behind everything that waits here, and
because frames of the same flow follow: their acknowledgements make TCP repeat the lost ones quickly, where the loss of
the newest can be the loss of the last, which only a timeout repairs.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Sequence
from typing import Final, Generic, TypeVar

QUANTUM_BYTES: Final = 16384
"""Small against a super-frame of 64 KiB, so that a flow of small frames that waits for its turn does not wait for a
super-frame of each other flow; large against small frames, so that turns are few."""
ITEM_BYTES: Final = 192
"""What keeping one item costs beside its size, so that a flood of small frames is bounded too."""
FLOWS_MAX: Final = 1024
"""Flows with a queue of their own; a flow costs about a kilobyte. Those beyond share one queue."""

Item = TypeVar("Item")
_SHARED: Final = object()


class _Flow(Generic[Item]):
    __slots__ = ("credit", "held", "items", "key", "rank")

    def __init__(self, key: Hashable) -> None:
        self.key = key
        self.items: deque[tuple[Item, int]] = deque()
        self.held = 0
        """Bytes that wait."""
        self.credit = QUANTUM_BYTES
        self.rank = 0
        """Bit length of `held`: where among `_ranks` it is found."""


class FairQueue(Generic[Item]):
    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.held_bytes = 0
        """What waits, each item with ITEM_BYTES on top; never more than the limit."""
        self._length = 0
        self._flows: dict[Hashable, _Flow[Item]] = {}
        self._new: deque[_Flow[Item]] = deque()
        self._old: deque[_Flow[Item]] = deque()
        # Flows by the bit length of what they hold: the fattest, to within a factor of two, without a search that a
        # flood from a thousand ports would make dear. Before the fattest is shed, it may hold twice the limit.
        self._ranks: list[dict[_Flow[Item], None]] = [{} for _ in range((2 * limit_bytes).bit_length() + 1)]

    def __len__(self) -> int:
        return self._length

    def push(self, flow: Hashable, item: Item, size: int) -> Sequence[Item]:
        """Let it wait. Comes back: what was dropped for it, mostly nothing; the item itself where it can never fit."""
        size += ITEM_BYTES
        if size > self.limit_bytes:
            return (item,)
        found = self._flows.get(flow)
        if found is None:
            found = self._begin(flow)
        found.items.append((item, size))
        self._length += 1
        self.held_bytes += size
        held = found.held = found.held + size
        if held.bit_length() != found.rank:
            self._rank(found)
        return self._shed() if self.held_bytes > self.limit_bytes else ()

    def pop(self) -> Item | None:
        """Whose turn it is; None where nothing waits."""
        new, old = self._new, self._old
        while True:
            if new:
                flow = new[0]
                if flow.credit > 0 and flow.items:
                    break
                # Behind the others, also where nothing waits any more: else a flow that sends a little again and again
                # would be new each time.
                new.popleft()
                old.append(flow)
                if flow.credit <= 0:
                    flow.credit += QUANTUM_BYTES
            elif old:
                flow = old[0]
                if not flow.items:
                    old.popleft()
                    del self._flows[flow.key]
                elif flow.credit > 0:
                    break
                elif len(old) == 1:
                    flow.credit += QUANTUM_BYTES * (-flow.credit // QUANTUM_BYTES + 1)  # as many turns as it needs
                else:
                    flow.credit += QUANTUM_BYTES
                    old.rotate(-1)
            else:
                return None
        item, size = flow.items.popleft()
        flow.credit -= size
        self._length -= 1
        self.held_bytes -= size
        held = flow.held = flow.held - size
        if held.bit_length() != flow.rank:
            self._rank(flow)
        return item

    def held_by(self, flow: Hashable) -> int:
        """Bytes that wait in it."""
        found = self._flows.get(flow)
        return 0 if found is None else found.held

    def _begin(self, key: Hashable) -> _Flow[Item]:
        if len(self._flows) >= FLOWS_MAX:
            # Such a flow may overtake itself when it gets a queue of its own; only a flood brings anybody here.
            key = _SHARED
            found = self._flows.get(key)
            if found is not None:
                return found
        flow = self._flows[key] = _Flow(key)
        self._new.append(flow)
        return flow

    def _rank(self, flow: _Flow[Item]) -> None:
        if flow.rank:
            del self._ranks[flow.rank][flow]
        flow.rank = flow.held.bit_length()
        if flow.rank:
            self._ranks[flow.rank][flow] = None

    def _shed(self) -> list[Item]:
        dropped = []
        while self.held_bytes > self.limit_bytes:
            flow = next(iter(next(flows for flows in reversed(self._ranks) if flows)))
            item, size = flow.items.popleft()
            dropped.append(item)
            self._length -= 1
            self.held_bytes -= size
            flow.held -= size
            if flow.held.bit_length() != flow.rank:
                self._rank(flow)
        return dropped
