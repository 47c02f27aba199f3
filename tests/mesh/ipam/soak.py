"""Any number of rings of `tests.mesh.ipam.ring`, one seed after another: `python -m tests.mesh.ipam.soak --seeds 1000`.

A seed that fails says what broke and how to see it again, and the next one goes on.
"""

from __future__ import annotations

import argparse
import sys
import time

from tests.mesh.ipam.ring import RingFailed, run_scenario


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.mesh.ipam.soak", description="Rings with faults, by seed.")
    parser.add_argument("--seed", type=int, default=1, help="the first seed (default 1)")
    parser.add_argument("--seeds", type=int, default=1, help="how many seeds, one after the other (default 1)")
    options = parser.parse_args()
    failed = given = 0
    begun = time.monotonic()
    for seed in range(options.seed, options.seed + options.seeds):
        try:
            ring = run_scenario(seed)
        except RingFailed as failure:
            failed += 1
            print(failure, file=sys.stderr, flush=True)
        else:
            given += ring.given
    took_s = time.monotonic() - begun
    print(f"rings: {options.seeds - failed} passed, {failed} failed; {given} addresses given, {took_s:.0f} s")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
