"""One other host as this worker knows it: where it is, what waits for it, and how much may be under way to it.

Plain state with the few rules that belong to it; who fills it are `sender` and `receiver`. The one idea needed to read
it is the window. A receiver that cannot keep up says how much waits in its socket; what is under way then may exceed
what the network itself holds by a fixed amount only, so that the queue stands here, where it is fair between flows, and
not there, where it is first in, first out. A receiver that keeps up sets no bound: the network's own limits are the
business of the TCP inside.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from dataplane.sleeve import control
from dataplane.sleeve.buffers import Buffer
from dataplane.sleeve.loss import BURST, LossMeter
from dataplane.sleeve.queue import FairQueue
from dataplane.sleeve.routes import Route
from dataplane.sleeve.trial import DATAGRAMS, Trial
from dataplane.sleeve.whereabouts import Address, Whereabouts
from dataplane.sleeve.wire import DATAGRAMS_MAX, FRAME_MAX_BYTES, HEADER_BYTES, TAG_BYTES, Report

QUEUE_BYTES: Final = 1024 * 1024
"""What may wait for one peer."""
RELAYED_PIECE_BYTES: Final = 1400
"""Of a record that goes by a route and must be small, because the way loses: what counts for one datagram."""
WINDOW_MIN_BYTES: Final = 256 * 1024
WINDOW_S: Final = 0.0008
"""Above what the network holds, what the receiver takes in so long: enough that it always has something to do."""
RATE_S: Final = 0.02
"""Over how long the rate is taken at least."""
WINDOW_DECAY: Final = 0.98
"""Of the network's share, for each report: it follows a path that became shorter."""
STALL_S: Final = 0.03
"""Without a report for so long the window is open again: reports can be lost."""
METER_S: Final = 0.05
"""As long as nothing is lost, the meter need not be told more often."""
MARKS_MAX: Final = 8192
APART_MAX: Final = 256
REPORT_BYTES: Final = 128 * 1024
"""Received without a word to the sender at most; half of the smallest window."""
REPORT_RIDE_BYTES: Final = 64 * 1024
"""From so much on a report rides along in a record that goes there anyway."""
REPORT_S: Final = 0.02
"""And a report is due so long after the first datagram that was not yet reported."""


class Tally:
    """What arrived under one of our indices."""

    __slots__ = ("index", "rank", "received", "recovered", "seen")

    def __init__(self, index: int, rank: int) -> None:
        self.index = index
        self.rank = rank
        self.seen = 0
        self.received = 0
        self.recovered = 0


class Partner:
    """Another host."""

    __slots__ = (
        "apart",
        "asked_s",
        "blocked_s",
        "consumed_bytes",
        "direct",
        "expected_s",
        "filling",
        "forged",
        "heard_s",
        "hellos",
        "limit",
        "macs",
        "marks",
        "met_s",
        "meter",
        "metered_s",
        "network_bytes",
        "notes",
        "own",
        "own_s",
        "peer",
        "queue",
        "rate",
        "rated_bytes",
        "rated_s",
        "renewed_s",
        "report_due_s",
        "reported",
        "reported_s",
        "routes",
        "routes_s",
        "rtt_ms",
        "sees",
        "sent_bytes",
        "sent_index",
        "tally",
        "trial",
        "turned_at",
        "unanswered_s",
        "unmetered",
        "unreported_bytes",
        "used_s",
        "waiting_s",
        "waits_bytes",
        "where",
        "window_bytes",
    )  # fmt: skip

    def __init__(self, peer: control.Peer) -> None:
        self.peer = peer
        self.macs: set[bytes] = set()
        """What is behind it now; `peer` says what was when it was said whole."""
        self.where = Whereabouts()
        self.routes: list[Route] = []
        self.routes_s = float("-inf")
        """When they were last looked for."""
        self.queue: FairQueue[bytes | Buffer] = FairQueue(QUEUE_BYTES)
        self.filling: Buffer | None = None
        """The record that small frames are packed into."""
        self.direct = False
        """Whether small frames may go straight into a record: there are keys, and room under way."""
        self.limit = 0
        """How far it may be filled."""
        self.notes: list[bytes] = []
        """Go with the next record."""
        self.trial: Trial | None = None
        self.meter = LossMeter()
        self.rtt_ms: float | None = None
        # Sending, under the session whose remote index is `sent_index`.
        self.sent_index: int | None = None
        self.sent_bytes = 0
        self.consumed_bytes = 0
        self.marks: deque[tuple[int, int]] = deque(maxlen=MARKS_MAX)
        """Of every record under way: the counter after it, and `sent_bytes` then."""
        self.apart: deque[int] = deque(maxlen=APART_MAX)
        """Counters of datagrams that went another way or in another size than frames do, to try that: that they are
        lost says nothing of the way in use."""
        self.turned_at = 0
        """The first counter that went the present way."""
        self.reported: Report | None = None
        self.reported_s = 0.0
        self.rate = 0.0
        """Bytes a second that arrive there."""
        self.rated_s = 0.0
        self.rated_bytes = 0
        self.unmetered = 0
        """Datagrams that arrived, all of them, since the meter was told."""
        self.metered_s = 0.0
        self.network_bytes = 0.0
        self.window_bytes = float(WINDOW_MIN_BYTES)
        self.unanswered_s: float | None = None
        """Since when frames go there and none of them is known to have arrived."""
        self.heard_s: float | None = None
        self.met_s = float("-inf")
        """When a record came that did more than look for a way: it is in use."""
        self.renewed_s = 0.0
        self.asked_s = 0.0
        self.expected_s = float("-inf")
        """Until when frames for it may come at any moment."""
        self.used_s = 0.0
        """When something was last to go there."""
        self.hellos = 0
        """Sent since it was last heard."""
        self.sees = b""
        """Where it sees us, packed."""
        self.own = b""
        """Where we send to it from, packed, as of `own_s`."""
        self.own_s = 0.0
        self.blocked_s: float | None = None
        self.waiting_s: float | None = None
        """Since when frames wait for keys."""
        # Receiving.
        self.tally = Tally(-1, -1)
        self.forged = 0
        """Records that came from its address and were not its own, or not as it sent them."""
        self.unreported_bytes = 0
        self.report_due_s: float | None = None
        self.waits_bytes = 0
        """What last stood before its records at those who pass them on."""

    @property
    def address(self) -> Address | None:
        """Where its records go."""
        return self.where.address

    @property
    def is_relayed(self) -> bool:
        return isinstance(self.where.address, Route)

    @property
    def datagram_bytes(self) -> int:
        assert self.trial is not None
        return self.trial.way.datagram_bytes

    def unanswered(self, now: float) -> float:
        """For how many seconds frames have gone there without a word of their arrival."""
        return 0.0 if self.unanswered_s is None else now - self.unanswered_s

    def capacity(self) -> int:
        """Bytes of entries that one record may hold now."""
        datagrams = min(self.meter.shape.datagrams, DATAGRAMS_MAX)
        if self.is_relayed:
            whole = DATAGRAMS * self.datagram_bytes
            wanted = whole if self.meter.shape is BURST else min(whole, datagrams * RELAYED_PIECE_BYTES)
            return wanted - HEADER_BYTES - TAG_BYTES
        room = self.datagram_bytes - HEADER_BYTES
        return min(datagrams * room - TAG_BYTES - datagrams, FRAME_MAX_BYTES + 2)

    # The window.

    def begin_sending(self, index: int) -> None:
        """Records go under a new session from now on; its counters begin anew."""
        self.sent_index = index
        self.waiting_s = self.unanswered_s = None
        self.sent_bytes = self.consumed_bytes = 0
        self.marks.clear()
        self.apart.clear()
        self.turned_at = 0
        self.reported = None
        self.rated_bytes = 0
        self.network_bytes = 0.0
        self.window_bytes = float(WINDOW_MIN_BYTES)

    def sent(self, counter: int, size: int, now: float, is_reported: bool = True) -> None:
        """A record of `size` bytes is on its way; `counter` is the next one. `is_reported`: it holds more than notes,
        so the other side will say that it came."""
        self.sent_bytes += size
        self.marks.append((counter, self.sent_bytes))
        if is_reported and self.unanswered_s is None:
            self.unanswered_s = now

    def is_blocked(self, now: float) -> bool:
        """Whether enough is under way."""
        if self.sent_bytes - self.consumed_bytes <= self.window_bytes:
            self.blocked_s = None
            return False
        if self.blocked_s is None:
            self.blocked_s = now
        if now - max(self.blocked_s, self.reported_s) > STALL_S:
            self.consumed_bytes = self.sent_bytes
            self.marks.clear()
            return False
        return True

    def take_report(self, report: Report, now: float) -> int:
        """What the other side says of our records; how many datagrams it lost since it last did. A report about an
        older session is too late to be of use."""
        before = self.reported
        if report.session != self.sent_index or (before is not None and report.seen < before.seen):
            return 0
        self.reported = report
        self.reported_s = now
        if before is None or report.seen > before.seen:
            self.unanswered_s = None
        seen, received = (before.seen, before.received) if before is not None else (0, 0)
        lost = (report.seen - seen) - (report.received - received)
        if seen < self.turned_at:
            lost = 0  # it went another way, which perhaps has failed
        while self.apart and self.apart[0] < report.seen:
            self.apart.popleft()
            lost -= lost > 0
        self.unmetered += report.seen - seen
        forged = (report.forged - before.forged) & 0xFFFFFFFF if before is not None else 0
        if forged:
            self.meter.disturbed(forged, now)
        if lost or now - self.metered_s > METER_S:
            self.meter.report(self.unmetered, lost, now)
            self.unmetered, self.metered_s = 0, now
        marks = self.marks
        while marks and marks[0][0] <= report.seen:
            self.consumed_bytes = marks.popleft()[1]
        under_way = self.sent_bytes - self.consumed_bytes
        if now - self.rated_s > RATE_S:
            rate = (self.consumed_bytes - self.rated_bytes) / (now - self.rated_s)
            self.rate = max(rate, 0.8 * self.rate)
            self.rated_s, self.rated_bytes = now, self.consumed_bytes
        network = max(0, under_way - report.backlog_bytes)
        self.network_bytes = max(float(network), self.network_bytes * WINDOW_DECAY)
        # Whoever passes records on needs as much as their end does to have always something to do, in its socket and in
        # its queue; with half of that TCP through one hop was a quarter slower.
        stages = 2 * (len(self.where.route) - 1) if self.where.route is not None else 1
        self.window_bytes = 1.25 * self.network_bytes + stages * max(WINDOW_MIN_BYTES, WINDOW_S * self.rate)
        return lost

    # Reports to the other side.

    def make_report(self, backlog_bytes: int) -> Report:
        self.unreported_bytes = 0
        self.report_due_s = None
        tally = self.tally
        waiting = min(backlog_bytes + (self.waits_bytes if self.is_relayed else 0), 0xFFFFFFFF)
        return Report(tally.index, tally.seen, tally.received, tally.recovered, waiting, self.forged & 0xFFFFFFFF)
