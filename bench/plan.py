"""What one run of the comparison is to do: which contestants, underlays and measures, how often and for how long."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

from bench.measures import MEASURES
from bench.underlay import UNDERLAYS, WIRE
from mesh.namespaces import LabError

LOSSES_PERCENT = (0.01, 0.1, 1.0, 5.0)
"""Without loss it is `tcp1` on the wire."""
LOSS = "loss"
REKEY = "rekey"
LONG_ROUNDS = 6
"""From here on nothing is left out to save time."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do, and for how long."""

    only: Sequence[str] = ()
    underlays: Sequence[str] = UNDERLAYS
    measures: Sequence[str] = (*MEASURES, LOSS, REKEY)
    rounds: int = 3
    seconds: int = 1
    losses: Sequence[float] = LOSSES_PERCENT

    def __post_init__(self) -> None:
        for given, allowed in ((self.underlays, UNDERLAYS), (self.measures, (*MEASURES, LOSS, REKEY))):
            for word in given:
                if word not in allowed:
                    raise LabError(f"{word!r} is none of {', '.join(allowed)}")
        if self.rounds < 1 or self.seconds <= 0 or not all(0 < percent < 100 for percent in self.losses):
            raise LabError("rounds, seconds and losses are to be above 0, and losses below 100 percent")

    @classmethod
    def asked(cls, args: argparse.Namespace) -> Plan:
        """From the command line, where what was not given is as usual."""
        try:
            losses = [float(percent) for percent in args.losses]
        except ValueError:
            raise LabError(f"--losses {','.join(args.losses)}: numbers in percent, such as 0.1,1") from None
        given = {
            "only": args.only,
            "underlays": args.underlay,
            "measures": args.measures,
            "rounds": args.rounds,
            "seconds": args.seconds,
            "losses": losses,
        }
        return cls(**{key: value for key, value in given.items() if value})

    def rounds_of(self, measure: str) -> int:
        """All rounds for one stream, on which most goals stand; fewer of what takes long, or varies little."""
        share = {"tcp1": 1.0, "tcp4": 2 / 3, "ping": 2 / 3}.get(measure, 1 / 3)
        return max(1, round(self.rounds * share))

    def takes(self, measure: str, underlay: str) -> bool:
        """A short run of everything searches for packet rates once: small packets are no different when cut."""
        if measure == "udp" and underlay == WIRE and self.rounds < LONG_ROUNDS and len(self.underlays) > 1:
            return False
        return measure in self.measures
