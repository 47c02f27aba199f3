"""How long after `attach` has returned a new endpoint answers a ping from another host, over IPv4 and over IPv6."""

from __future__ import annotations

import os
import statistics
import time

from bench.harness import Aim, Result, percentile, say
from bench.traffic import AnswerWatch
from mesh.lab import Lab
from mesh.namespaces import LabError

ENDPOINTS = 60
ANSWER_MS_MAX = 200.0
FIRST_NUMBER = 10
"""Containers c2.10, c2.11, ...: namespaces made beside the lab's own."""
EARLY_S = 0.2
"""How long before the attach an early asker begins."""

KINDS = ("IPv4, asked after", "IPv6, asked after", "IPv4, asked since before", "IPv6, asked since before")


def run() -> Result:
    """A host with a container that pings, another host where endpoints are attached one after the other."""
    result = Result(
        "attach",
        "A new endpoint answers from another host",
        f"{ENDPOINTS} endpoints, each attached with an IPv4 and an IPv6 address at h2. A container of h1 pings every "
        f"10 ms, from the moment `attach` returns or since {EARLY_S:g} s before the command; the time is from its "
        "return to the first answer, where asked after with the start of ping included.",
        ["asked", "first answer ms: median", "p95", "most", "never"],
    )
    waits: dict[str, list[float]] = {kind: [] for kind in KINDS}
    never = dict.fromkeys(KINDS, 0)
    commands_ms = []
    with Lab(f"wb{os.getpid()}", hosts=2, containers=1) as lab:
        lab.up()
        nodes = [f"c2.{FIRST_NUMBER + number}" for number in range(ENDPOINTS)]
        lab.add_namespaces(nodes)
        for number, node in enumerate(nodes):
            kind = KINDS[number % len(KINDS)]
            command_ms, waited_s = _attach(lab, node, kind)
            commands_ms.append(command_ms)
            if waited_s is None:
                never[kind] += 1
            else:
                waits[kind].append(waited_s * 1e3)
            if (number + 1) % 10 == 0:
                say(f"{number + 1} of {ENDPOINTS} endpoints attached")
    for kind, values in waits.items():
        if not values:
            raise LabError(f"no endpoint ever answered ({kind})")
        result.rows.append([kind, *_figures(values), str(never[kind])])
        result.aims.append(Aim(f"slowest answer, {kind}", max(values), ANSWER_MS_MAX, " ms"))
    result.aims.append(Aim("endpoints that never answered", sum(never.values()), 0))
    result.rows.append(["(the command itself)", *_figures(commands_ms), ""])
    result.figures = {"first_answer_ms": waits, "never": never, "attach_command_ms": commands_ms}
    return result


def _attach(lab: Lab, node: str, kind: str) -> tuple[float, float | None]:
    """Milliseconds of the command, seconds until the first answer."""
    address = lab.address6(node) if kind.startswith("IPv6") else lab.address(node)
    early = None
    if kind.endswith("before"):
        early = AnswerWatch(lab, "c1.1", address)
        time.sleep(EARLY_S)
    start = time.monotonic()
    lab.attach(node)
    returned_s = time.time()
    command_ms = (time.monotonic() - start) * 1e3
    return command_ms, (early or AnswerWatch(lab, "c1.1", address)).first_answer(returned_s)


def _figures(values_ms: list[float]) -> list[str]:
    return [f"{value:.1f}" for value in (statistics.median(values_ms), percentile(values_ms, 95), max(values_ms))]
