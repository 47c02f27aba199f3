"""Are frames lost when keys roll? A quiet ping beside everything else, for longer than a key is used.

It has two hosts of its own, so that nobody else's load can lose its packets, and it is slow enough to cost the others
nothing. Knows of Weft only how long a key is used. The one idea needed to read it: a lost frame is a sequence number
without an answer, and the run counts only where it lasted longer than a key does.
"""

from __future__ import annotations

import os
import time
from types import TracebackType
from typing import Any

from bench.contestants import WeftSleeve
from bench.traffic import Pinger
from bench.underlay import CLIENT, PASS_THROUGH, SERVER, World

ROLLS_AFTER_S = 120.0
"""A session in use gets a new key after this."""
WATCHED_S = ROLLS_AFTER_S + 15.0
INTERVAL_S = 0.04


class RekeyWatch:
    """From its beginning to `stop`. As a context manager it leaves nothing behind."""

    def __init__(self) -> None:
        self._world = World(f"wb{os.getpid()}rekey", PASS_THROUGH)

    def __enter__(self) -> RekeyWatch:
        self._world.__enter__()
        try:
            contestant = WeftSleeve()
            contestant.build(self._world)
            contestant.wait(self._world)
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
        """What became of every packet."""
        seconds = time.monotonic() - self._started_s
        seen = self._pinger.stop()
        return {
            "seconds": round(seconds, 1),
            "rolls_after_s": ROLLS_AFTER_S,
            "pings": seen.sent,
            "lost": len(seen.lost),
            "lost_at": seen.lost[:50],
        }
