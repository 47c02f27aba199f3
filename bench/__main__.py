"""`python -m bench NAME...`: run benches by name, or `all`; show the tables and keep them under bench/results/.

Beside the benches: `compare OLD NEW` sets two results of the bench `sleeve` side by side, `peers` builds and lists the
other overlays.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from bench.harness import RESULTS_DIR, Result, describe, machine, say, write
from mesh.namespaces import LabError, ends_in_order

BENCHES = ("startup", "ipam", "probes", "dns", "endpoints", "state", "attach", "doors", "idle", "fastpath", "hostile",
           "paths", "sleeve")  # fmt: skip
"""In the order of `all`: the quick ones first."""
SHORT = {"rounds": 4, "seconds": 1}
"""What `all` spends on fastpath where nothing else is asked: with all benches it is to end within minutes."""
MEASURES = (
    "of sleeve: tcp1, reverse, tcp4, ping, udp, loss, rekey; "
    "of paths: vxlan-one-way, vxlan, datagrams, sleeve, relay-dies, relay-tcp, punching, probes"
)


def main(argv: Sequence[str]) -> int:
    """0 where everything could be measured; a missed aim is a result, printed as such, and no failure of the bench."""
    if argv[:1] == ["compare"]:
        return int(importlib.import_module("bench.compare").main(argv[1:]))
    if argv[:1] == ["peers"]:
        return int(importlib.import_module("bench.peers").main())
    args = _parser().parse_args(argv)
    if os.geteuid() != 0:
        say("bench: needs root for its network namespaces: sudo, or make bench")
        return 1
    facts = machine()
    print(describe(facts), flush=True)
    try:
        with ends_in_order():
            names = BENCHES if "all" in args.names else dict.fromkeys(args.names)
            runs = {name: _bench(name, args) for name in names}  # all of them first: what is refused is refused at once
            for name, run in runs.items():
                _run(name, run, args.out, facts)
    except LabError as error:
        say(f"bench: {error}")
        return 1
    except KeyboardInterrupt:
        say("bench: interrupted")
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description="Figures about Weft.",
        epilog="Also: python -m bench compare OLD.json NEW.json, and python -m bench peers.",
    )
    parser.add_argument(
        "names", nargs="+", metavar="NAME", choices=[*BENCHES, "all"], help=f"{', '.join(BENCHES)}, all"
    )
    parser.add_argument("--rounds", type=_count, metavar="N", help="interleaved rounds (fastpath, paths, sleeve)")
    parser.add_argument("--seconds", type=_count, metavar="S", help="of each run (fastpath, paths, sleeve)")
    parser.add_argument("--out", type=Path, default=RESULTS_DIR, metavar="DIR", help="default bench/results")
    parser.add_argument("--measures", type=_words, default=[], metavar="A,B", help=MEASURES)
    ours = parser.add_argument_group("of the bench sleeve")
    ours.add_argument("--only", type=_words, default=[], metavar="A,B", help="these contestants and no others")
    ours.add_argument("--underlay", type=_words, default=[], metavar="A,B", help="pass-through, wire")
    ours.add_argument("--losses", type=_words, default=[], metavar="P,P", help="in percent, default 0.01,0.1,1,5")
    return parser


def _count(value: str) -> int:
    number = int(value)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{value}: at least 1")
    return number


def _words(value: str) -> list[str]:
    return [word for word in value.split(",") if word]


def _bench(name: str, args: argparse.Namespace) -> Callable[[], Result]:
    module = importlib.import_module(f"bench.{name}")
    found: Callable[..., Result] = module.run
    if name in ("paths", "sleeve"):
        plan = module.Plan.asked(args)
        return lambda: found(plan)
    if name == "fastpath":
        short = SHORT if "all" in args.names else {}
        given = {key: value for key in ("rounds", "seconds") if (value := getattr(args, key)) is not None}
        return lambda: found(**{**short, **given})
    return found


def _run(name: str, run: Callable[[], Result], out: Path, facts: dict[str, object]) -> None:
    say(f"== {name}")
    start = time.monotonic()
    result = run()
    if name == "sleeve":
        from bench.charts import write_pictures

        result.pictures = write_pictures(result.figures, out, name)
    path = write(result, facts, out)
    print(f"\n{result.title}  ({time.monotonic() - start:.0f} s)\n")
    print("\n".join([*result.table(), "", *result.further()]))
    for aim in [] if result.aims_in_table else result.aims:
        print(aim.line())
    print(f"written to {os.path.relpath(path)} and {path.with_suffix('.json').name}", flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
