"""`python -m bench NAME...`: run benches by name, or `all`; show the tables and keep them under bench/results/."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import time
from collections.abc import Sequence

from bench.harness import describe, machine, say, write
from mesh.namespaces import LabError, ends_in_order

BENCHES = ("startup", "endpoints", "attach", "idle", "fastpath")
"""In the order of `all`: the quick ones first."""


def main(argv: Sequence[str]) -> int:
    """0 where everything could be measured; a missed aim is a result, printed as such, and no failure of the bench."""
    parser = argparse.ArgumentParser(prog="python -m bench", description="Figures about Weft.")
    parser.add_argument(
        "names", nargs="+", metavar="NAME", choices=[*BENCHES, "all"], help=f"{', '.join(BENCHES)}, all"
    )
    names = parser.parse_args(argv).names
    if os.geteuid() != 0:
        say("bench: needs root for its network namespaces: sudo, or make bench")
        return 1
    facts = machine()
    print(describe(facts), flush=True)
    try:
        with ends_in_order():
            for name in BENCHES if "all" in names else dict.fromkeys(names):
                _run(name, facts)
    except LabError as error:
        say(f"bench: {error}")
        return 1
    except KeyboardInterrupt:
        say("bench: interrupted")
        return 130
    return 0


def _run(name: str, facts: dict[str, object]) -> None:
    say(f"== {name}")
    start = time.monotonic()
    result = importlib.import_module(f"bench.{name}").run()
    path = write(result, facts)
    print(f"\n{result.title}  ({time.monotonic() - start:.0f} s)\n")
    print("\n".join(result.table()) + "\n")
    for aim in result.aims:
        print(aim.line())
    print(f"written to {os.path.relpath(path)} and {path.with_suffix('.json').name}", flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
