"""Are frames lost when keys roll? A quiet ping beside everything else, for longer than a key is used.

It has two hosts of its own, so that nobody else's load can lose its packets, and it is slow enough to cost the others
nothing. Knows of Weft how long a key is used, and what the first byte of a handshake's answer is: the switch between
the two hosts counts those, so that a roll is seen and not supposed. The one idea needed to read it: a lost frame is a
sequence number without an answer, and a watch that saw no roll has shown nothing.
"""

from __future__ import annotations

import os
import re
import time
from types import TracebackType
from typing import Any

from bench.contestants import WeftSleeve
from bench.traffic import Pinger
from bench.underlay import CLIENT, SERVER, WIRE, World
from dataplane.sleeve.handshake import WELCOME
from dataplane.sleeve.keys import ROLL_AFTER_S, ROLL_SPREAD_S

WATCHED_S = ROLL_AFTER_S + ROLL_SPREAD_S + 8.0
"""By then the key of the beginning has rolled."""
INTERVAL_S = 0.04
PORT = 6783
_COUNTING = f"""\
table bridge benchrekey {{
 chain forward {{
  type filter hook forward priority 0; policy accept;
  ether type ip udp dport {PORT} @th,64,8 {WELCOME} counter
 }}
}}
"""


class RekeyWatch:
    """From its beginning to `stop`. As a context manager it leaves nothing behind."""

    def __init__(self) -> None:
        self._world = World(f"wb{os.getpid()}rekey", WIRE)

    def __enter__(self) -> RekeyWatch:
        self._world.__enter__()
        try:
            contestant = WeftSleeve()
            contestant.build(self._world)
            contestant.wait(self._world)
            self._world.lab.run("hub", ["nft", "-f", "-"], stdin=_COUNTING)
            self._pinger = Pinger(self._world.lab, CLIENT, self._world.lab.address(SERVER), interval_s=INTERVAL_S)
            self._started_s = time.monotonic()
        except BaseException:
            self._world.__exit__(None, None, None)
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._world.__exit__(kind, error, at)

    @property
    def left_s(self) -> float:
        """Until a key has rolled for certain."""
        return max(0.0, WATCHED_S - (time.monotonic() - self._started_s))

    def stop(self) -> dict[str, Any]:
        """What became of every packet, and how often keys rolled meanwhile."""
        seconds = time.monotonic() - self._started_s
        seen = self._pinger.stop()
        said = self._world.lab.run("hub", ["nft", "list", "table", "bridge", "benchrekey"]).stdout
        rolls = sum(int(count) for count in re.findall(r"counter packets (\d+)", said))
        return {
            "seconds": round(seconds, 1),
            "rolls": rolls,
            "pings": seen.sent,
            "lost": len(seen.lost),
            "lost_at": seen.lost[:50],
        }
