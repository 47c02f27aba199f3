"""Every way from container to container side by side: the sleeve, the kernel, and the other overlays.

All contestants of one underlay stand at the same time, each in a world of its own, and take turns measure by measure.
Knows the order of things. What is asked for is in `bench/plan.py`, what is measured in `bench/measures.py`, who in
`bench/contestants.py` and `bench/peers.py`, what it is measured against in `bench/goals.py`. The one idea needed to
read it: a figure belongs to a round, and two figures are compared only within their round.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from bench import tables
from bench.contestants import Contestant, HandVxlan, Raw, WeftSleeve, WeftSleeveClear, WeftVxlan, need_tools
from bench.goals import US, judge
from bench.harness import Result, say
from bench.measures import MEASURES, Measure, Sample, Setting, memory
from bench.peers import Fastd, Nebula, Openvpn, Tinc, WireguardGo
from bench.plan import LOSS, REKEY, Plan
from bench.rekey import RekeyWatch
from bench.underlay import CLIENT, PASS_THROUGH, SERVER, WIRE, World, sweep
from mesh.namespaces import LabError, need_root_and_tools

LOSS_SECONDS_MIN = 2
"""A stream that loses needs a while to show at which speed it goes on."""
CHECK_SECONDS = 1
FOREIGN_MAX = 0.08
"""Where strangers took a larger share of the machine than this, the run is done once more and the calmer one counts."""
REPEATED_MAX = 0.25
"""But no more than this share of all runs: on a machine that is never calm a bench has to end too."""


@dataclass(slots=True)
class Field:
    """All that stands on one underlay, and what was found."""

    underlay: str
    worlds: dict[str, World]
    contestants: dict[str, Contestant]
    samples: dict[str, dict[str, list[Sample | None]]] = field(default_factory=dict)
    """By measure and contestant, one a round; None where that run failed."""
    states: dict[str, dict[str, Any]] = field(default_factory=dict)
    """What contestants told of themselves after each measure."""
    failures: list[str] = field(default_factory=list)
    runs: int = 0
    repeated: int = 0


def every() -> list[Contestant]:
    """All of them, in the order of the tables."""
    return [
        Raw(),
        HandVxlan(),
        WeftVxlan(),
        WeftSleeveClear(),
        WeftSleeve(),
        WireguardGo(),
        Nebula(),
        Tinc(),
        Fastd(),
        Openvpn(),
    ]


def run(plan: Plan | None = None) -> Result:
    """Both underlays, every contestant that is here, all measures."""
    plan = plan or Plan()
    need_root_and_tools()
    need_tools()
    for name in sweep():
        say(f"removed {name}, left by a bench that was killed")
    known = every()
    chosen = [contestant for contestant in known if not plan.only or contestant.name in plan.only]
    unknown = sorted(set(plan.only) - {contestant.name for contestant in known})
    if unknown:
        names = ", ".join(contestant.name for contestant in known)
        raise LabError(f"no contestant is called {unknown[0]!r}; there are {names}")
    told = {contestant.name: _told(contestant) for contestant in chosen}
    for name, facts in told.items():
        say(f"{name:18}{facts['missing'] or facts['version']}")
    present = [contestant for contestant in chosen if not told[contestant.name]["missing"]]
    result = Result(
        "sleeve",
        "Container to container: Weft, the kernel, and other overlays",
        tables.method(plan),
        (),
        figures={"contestants": told, "plan": _planned(plan), "underlays": {}},
    )
    with ExitStack() as stack:
        watch = _watch(stack) if REKEY in plan.measures and any(c.name == US for c in present) else None
        for underlay in plan.underlays:
            if plan.measures != [REKEY]:
                started = time.monotonic()
                result.figures["underlays"][underlay] = _measure_all(underlay, present, plan, told)
                say(f"{underlay}: {time.monotonic() - started:.0f} s")
        if watch is not None:
            if watch.left_s > 0:
                say(f"[rekey] {watch.left_s:.0f} s more, until a key has rolled")
                time.sleep(watch.left_s)
            result.figures["rekey"] = watch.stop()
    result.aims, unmeasured = judge(result.figures)
    tables.fill(result, unmeasured)
    return result


def _watch(stack: ExitStack) -> RekeyWatch | None:
    try:
        return stack.enter_context(RekeyWatch())
    except LabError as error:
        say(f"[rekey] is not watched: {error}")
        return None


def _told(contestant: Contestant) -> dict[str, Any]:
    missing = contestant.missing()
    return {
        "title": contestant.title,
        "how": contestant.how,
        "encrypted": contestant.encrypted,
        "is_peer": contestant.is_peer,
        "missing": missing,
        "version": None if missing else contestant.version(),
    }


def _planned(plan: Plan) -> dict[str, Any]:
    return {"rounds": plan.rounds, "seconds": plan.seconds, "losses_percent": list(plan.losses)}


# One underlay


def _measure_all(
    underlay: str, contestants: Sequence[Contestant], plan: Plan, told: dict[str, dict[str, Any]]
) -> dict[str, Any]:
    with ExitStack() as stack:
        worlds = _build(underlay, contestants, stack, told)
        if not worlds:
            raise LabError(f"nothing to measure on the underlay {underlay!r}: no contestant came up")
        stage = Field(underlay, worlds, {each.name: each for each in contestants if each.name in worlds})
        checks = _check(stage)
        ours = [world.lab.namespace(node) for world in worlds.values() for node in _nodes(world)]
        setting = Setting(plan.seconds, ours)
        for measure in MEASURES:
            if plan.takes(measure, underlay):
                _rounds(stage, measure, plan.rounds_of(measure), setting)
        losses = {}
        if underlay == WIRE and LOSS in plan.measures:
            losses = _lose(stage, plan, setting)
        memories = {name: memory(world) for name, world in worlds.items()}
    return {
        "crossing": checks,
        "samples": {measure: _plain(by_name) for measure, by_name in stage.samples.items()},
        "foreign": {measure: _foreign(by_name) for measure, by_name in stage.samples.items()},
        "dropped": losses,
        "memory": memories,
        "states": stage.states,
        "failures": stage.failures,
        "runs": stage.runs,
        "repeated": stage.repeated,
    }


def _nodes(world: World) -> list[str]:
    return ["hub", *world.lab.host_nodes(), *world.lab.container_nodes()]


def _build(
    underlay: str, contestants: Sequence[Contestant], stack: ExitStack, told: dict[str, dict[str, Any]]
) -> dict[str, World]:
    """All of them at once, so that those who need half a minute to settle need it together."""
    worlds = {}
    for contestant in contestants:
        say(f"[{underlay}] building {contestant.name}")
        tag = f"{contestant.name.replace('-', '')[:11]}{'p' if underlay == PASS_THROUGH else 'w'}"
        world = World(f"wb{os.getpid()}{tag}", underlay)
        stack.enter_context(world)
        try:
            contestant.build(world)
        except (LabError, OSError, subprocess.SubprocessError) as error:
            _absent(told, contestant, underlay, error)
            continue
        worlds[contestant.name] = world
    for contestant in contestants:
        if contestant.name in worlds:
            try:
                contestant.wait(worlds[contestant.name])
            except LabError as error:
                _absent(told, contestant, underlay, error)
                del worlds[contestant.name]
    return worlds


def _absent(told: dict[str, dict[str, Any]], contestant: Contestant, underlay: str, error: Exception) -> None:
    told[contestant.name].setdefault("failed", {})[underlay] = str(error)
    say(f"[{underlay}] {contestant.name} is not measured: {error}")


def _check(stage: Field) -> dict[str, dict[str, float | int | None]]:
    """A short stream by each: it warms the machine, and shows in what sizes packets cross the underlay."""
    found: dict[str, dict[str, float | int | None]] = {}
    for name, world in stage.worlds.items():
        server, address = world.serve(), world.lab.address(SERVER)

        def send(server: Any = server, address: str = address) -> None:
            server.stream(CLIENT, address, CHECK_SECONDS)

        try:
            seen = world.crossing(send)
        except LabError as error:
            stage.failures.append(f"{name}, check: {error}")
            say(f"[{stage.underlay}] {name}: {error}")
            continue
        found[name] = {"packets": seen.packets, "mean_bytes": round(seen.mean_bytes), "large": seen.large}
        if stage.underlay == WIRE:
            verdict = f"{seen.packets:,} packets crossed the switch, {seen.large:,} of them above the MTU"
        else:
            verdict = f"{seen.packets:,} packets crossed the veth, {seen.mean_bytes:,.0f} bytes each"
        say(f"[{stage.underlay}] {name}: {verdict}")
    return found


# Rounds


def _rounds(stage: Field, measure: str, rounds: int, setting: Setting, key: str | None = None) -> None:
    key = key or measure
    taken = stage.samples.setdefault(key, {name: [] for name in stage.worlds})
    for number in range(rounds):
        for name in _order(list(stage.worlds), number):
            what = f"[{stage.underlay}] {key} {number + 1}/{rounds}  {name:18}"
            try:
                sample = _take(stage, MEASURES[measure], stage.worlds[name], setting)
            except (LabError, ProcessLookupError) as error:
                stage.failures.append(f"{name}, {key}, round {number + 1}: {error}")
                taken[name].append(None)
                say(f"{what}{error}")
                stage.worlds[name].serve().restart()
                continue
            taken[name].append(sample)
            disturbed = f"  (others took {sample.foreign:.0%})" if sample.foreign > FOREIGN_MAX else ""
            say(f"{what}{tables.brief(sample.figures)}{disturbed}")
    _ask(stage, key)


def _ask(stage: Field, key: str) -> None:
    for name, contestant in stage.contestants.items():
        try:
            state = contestant.state(stage.worlds[name])
        except LabError as error:
            stage.failures.append(f"{name}, state after {key}: {error}")
            continue
        if state is not None:
            stage.states.setdefault(key, {})[name] = state
            told = ", ".join(f"{what} {state[what]}" for what in ("loss", "datagrams", "parity") if what in state)
            say(f"[{stage.underlay}] {key}: {name} ended with {told}")


def _take(stage: Field, measure: Measure, world: World, setting: Setting) -> Sample:
    """One run, or the calmer of two."""
    stage.runs += 1
    sample = measure(world, setting)
    if sample.foreign <= FOREIGN_MAX or stage.repeated >= REPEATED_MAX * stage.runs:
        return sample
    stage.repeated += 1
    return min(sample, measure(world, setting), key=lambda one: one.foreign)


def _order(names: Sequence[str], number: int) -> Iterator[str]:
    """Another one begins each round, and every second round goes backwards: nobody is always after the same one."""
    first = (number * 3) % len(names)
    turned = [*names[first:], *names[:first]]
    return iter(turned if number % 2 == 0 else turned[::-1])


def _lose(stage: Field, plan: Plan, setting: Setting) -> dict[str, dict[str, Any]]:
    """One stream at each loss; what the switches say they dropped."""
    long_setting = Setting(max(LOSS_SECONDS_MIN, setting.seconds), setting.ours)
    dropped: dict[str, dict[str, Any]] = {}
    for percent in plan.losses:
        for world in stage.worlds.values():
            world.lose(percent)
        _rounds(stage, "tcp1", plan.rounds_of(LOSS), long_setting, key=f"{LOSS} {percent:g} %")
        counts = {name: world.lost() for name, world in stage.worlds.items()}
        dropped[f"{percent:g}"] = {name: {"seen": seen, "dropped": lost} for name, (seen, lost) in counts.items()}
        seen, lost = (sum(count[index] for count in counts.values()) for index in (0, 1))
        say(f"[{stage.underlay}] the switches dropped {lost:,} of {seen:,} packets, {lost / max(1, seen):.4%}")
    for world in stage.worlds.values():
        world.lose(0)
    return dropped


# For the JSON


def _plain(by_name: Mapping[str, Sequence[Sample | None]]) -> dict[str, dict[str, list[float | None]]]:
    """Figure by figure, one value a round."""
    plain: dict[str, dict[str, list[float | None]]] = {}
    for name, samples in by_name.items():
        keys = {key: None for sample in samples if sample for key in sample.figures}
        plain[name] = {key: [sample.figures.get(key) if sample else None for sample in samples] for key in keys}
    return plain


def _foreign(by_name: Mapping[str, Sequence[Sample | None]]) -> dict[str, list[float]]:
    return {name: [round(sample.foreign, 3) for sample in samples if sample] for name, samples in by_name.items()}
