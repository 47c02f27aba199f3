"""What a bench does to the wire between two hosts, and how it watches a ping meanwhile."""

from __future__ import annotations

import os
import socket
import sys
import time
from collections.abc import Iterator

import pytest

from bench.outage import Pair, allow_shutting, fail, open_ports, shut_port
from bench.traffic import Pinger
from mesh.lab import Lab
from mesh.namespaces import wait_until

pytestmark = pytest.mark.root

SEND = "import socket, sys\nsocket.socket({family}, socket.SOCK_DGRAM).sendto(b'x', ('{address}', {port}))"
TAKE = """
import socket
one = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
one.bind(("::", {port}))
one.settimeout({timeout_s})
print("ready", flush=True)
try:
    one.recv(10)
    print("came")
except TimeoutError:
    print("nothing")
"""


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab(f"wt{os.getpid()}out", hosts=2, containers=0) as built:
        built.build()
        allow_shutting(built)
        yield built


def passes(lab: Lab, source: int, sink: int, port: int, family: int = socket.AF_INET) -> bool:
    taker = lab.popen(f"h{sink}", [sys.executable, "-c", TAKE.format(port=port, timeout_s=1.0)])
    assert taker.stdout is not None and taker.stdout.readline() == "ready\n"
    address = lab.underlay(sink) if family == socket.AF_INET else lab.underlay6(sink)
    lab.run(f"h{source}", [sys.executable, "-c", SEND.format(family=int(family), address=address, port=port)])
    return taker.communicate(timeout=10)[0] == "came\n"


def test_a_port_is_shut_in_one_direction_or_both_and_no_other_is(lab: Lab) -> None:
    """For IPv4 and IPv6 alike, until it is opened."""
    pair = Pair(lab, "h1", "h2")
    shut_port(pair, 6784, both=False)
    assert not passes(lab, 1, 2, 6784)
    assert not passes(lab, 1, 2, 6784, socket.AF_INET6)
    assert passes(lab, 2, 1, 6784)
    assert passes(lab, 1, 2, 6783)
    shut_port(pair, 6784, both=True)
    assert not passes(lab, 2, 1, 6784)
    open_ports(lab)
    assert passes(lab, 1, 2, 6784) and passes(lab, 2, 1, 6784)


def test_a_running_ping_tells_of_its_newest_answer(lab: Lab) -> None:
    """And goes on writing where it was: not one of its answers is lost by the look."""
    pinger = Pinger(lab, "h1", lab.underlay(2))
    wait_until(lambda: pinger.last_answer_s() is not None, 5, "there was an answer")
    for _ in range(20):
        newest_s = pinger.last_answer_s()
        assert newest_s is not None and time.time() - newest_s < 1.0
        time.sleep(0.02)
    lab.cut("h2")
    time.sleep(0.3)
    before = pinger.last_answer_s()
    time.sleep(0.2)
    assert pinger.last_answer_s() == before
    lab.heal()
    pings = pinger.stop()
    assert len(pings.times_ms) > 20
    assert min(pings.times_ms) == 1 and pings.answered_s[0] < before  # type: ignore[operator]


def test_a_failure_is_watched_until_pings_are_answered_steadily(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """The pause is that of the answers, a second pause soon after the first included."""

    class Underlay(Pair):
        """Two hosts that ping each other without any overlay."""

        def ping(self) -> Pinger:
            return Pinger(self.lab, self.one, self.lab.underlay(2))

        def turns(self, since_s: float) -> tuple[()]:
            return ()

    process = []

    def destroy() -> None:
        for wait_s in (0.1, 1.2):  # cut, heal, cut, heal; the second pause is the longer one
            lab.cut("h2")
            script = f"sleep {wait_s}; nft flush set bridge weftlab from; nft flush set bridge weftlab to"
            process.append(lab.popen("hub", ["sh", "-c", script]))
            if wait_s < 1:
                process[-1].communicate(timeout=10)
                time.sleep(0.5)

    seen = fail(Underlay(lab, "h1", "h2"), destroy)
    for each in process:
        each.communicate(timeout=10)
    assert 1.1 < seen.gap_s < 3.0
    assert seen.lost > 10
