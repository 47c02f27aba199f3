"""How long after `attach` has returned a new endpoint answers a ping from another host, over IPv4 and over IPv6."""

from __future__ import annotations

import os
import statistics
import time

from bench.harness import Aim, Result, percentile, say
from bench.traffic import first_answer
from mesh.lab import Lab
from mesh.namespaces import LabError

ENDPOINTS = 40
ANSWER_MS_MAX = 200.0
FIRST_NUMBER = 10
"""Containers c2.10, c2.11, ...: namespaces made beside the lab's own."""


def run() -> Result:
    """A host with a container that pings, another host where endpoints are attached one after the other."""
    result = Result(
        "attach",
        "A new endpoint answers from another host",
        f"{ENDPOINTS} endpoints, each attached with an IPv4 and an IPv6 address at h2. The moment `attach` returns a "
        "container of h1 starts a ping every 10 ms; the time is from the return to the first answer, the start of ping "
        "included. Half of them are asked over IPv4, half over IPv6: nobody has asked for an address before.",
        ["family", "first answer ms: median", "p95", "most", "never"],
    )
    waits: dict[str, list[float]] = {"IPv4": [], "IPv6": []}
    commands_ms = []
    never = dict.fromkeys(waits, 0)
    with Lab(f"wb{os.getpid()}", hosts=2, containers=1) as lab:
        lab.up()
        nodes = [f"c2.{FIRST_NUMBER + number}" for number in range(ENDPOINTS)]
        lab.add_namespaces(nodes)
        for number, node in enumerate(nodes):
            family = "IPv6" if number % 2 else "IPv4"
            start = time.monotonic()
            lab.attach(node)
            returned_s = time.time()
            commands_ms.append((time.monotonic() - start) * 1e3)
            address = lab.address6(node) if family == "IPv6" else lab.address(node)
            waited_s = first_answer(lab, "c1.1", address, returned_s)
            if waited_s is None:
                never[family] += 1
            else:
                waits[family].append(waited_s * 1e3)
            if (number + 1) % 10 == 0:
                say(f"{number + 1} of {ENDPOINTS} endpoints attached")
    for family, values in waits.items():
        if not values:
            raise LabError(f"no endpoint ever answered over {family}")
        middle = f"{statistics.median(values):.1f}"
        result.rows.append([family, middle, f"{percentile(values, 95):.1f}", f"{max(values):.1f}", str(never[family])])
        result.aims.append(Aim(f"slowest answer over {family}", max(values), ANSWER_MS_MAX, " ms"))
    result.aims.append(Aim("endpoints that never answered", sum(never.values()), 0))
    result.rows.append(["(the command itself)", f"{statistics.median(commands_ms):.1f}",
                        f"{percentile(commands_ms, 95):.1f}", f"{max(commands_ms):.1f}", ""])  # fmt: skip
    result.figures = {"first_answer_ms": waits, "never": never, "attach_command_ms": commands_ms}
    return result
