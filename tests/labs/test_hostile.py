"""Whoever can send to the sleeve's port, from any address, and hears everything: what that does to a stream, to the
worker and to its counters. How much it costs is the bench `hostile`'s affair."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator

import pytest

from bench.forgery import Forger
from bench.hostile import OWN, SPOOFED, Siege, risen
from bench.traffic import ping
from bench.underlay import CLIENT, SERVER

pytestmark = pytest.mark.root

ALIVE_MBIT_S = 20.0
MEMORY_MAX_MB = 60.0
WORDS = {
    "random bytes": {"unknown-type", "unknown-session", "unknown-peer", "bad-handshake"},
    "truncated": {"bad-seal", "burst-broken", "burst-cut", "records-incomplete", "replayed", "record-short"},
    "replayed": {"replayed", "unknown-session"},
    "reordered": {"burst-broken", "burst-cut", "records-incomplete", "replayed", "bad-seal"},
    "bit-flipped": {"bad-seal", "unknown-session", "burst-broken", "burst-cut"},
    "hellos": {"replayed-hello", "repeated-hello", "bad-code", "unknown-peer", "unasked", "bad-handshake"},
    "half records": {"burst-broken", "burst-cut", "records-incomplete"},
}
"""By which counters each kind may show; one of them must."""


@pytest.fixture(scope="module")
def siege() -> Iterator[Siege]:
    with Siege(f"wt{os.getpid()}hostile") as made:
        yield made


@pytest.fixture(scope="module")
def forger(siege: Siege) -> Forger:
    return siege.forger(random.Random(1))


@pytest.mark.parametrize("kind", WORDS)
def test_a_stream_goes_on_and_every_reason_is_counted(siege: Siege, forger: Forger, kind: str) -> None:
    """From the attacker's own address and from the peer's: dropped, named, and nothing else changes."""
    worker, before = siege.worker("h2"), siege.counters()
    packs = forger.kinds()[kind]()
    for source in (OWN, SPOOFED):
        with siege.flood(packs, source=source) as told:
            assert siege.goodput(1) > ALIVE_MBIT_S
        assert told["sent_pps"] > 10_000
    assert WORDS[kind] & set(risen(before, siege.counters()))
    after = siege.worker("h2")
    assert after.pid == worker.pid and after.rss_mb < MEMORY_MAX_MB
    assert not ping(siege.lab, CLIENT, siege.lab.address(SERVER), count=5, interval_s=0.05).lost
    row = siege.lab.weft_json("h2", "status", "connections")[0]
    assert (row["path"], row["link"]) == ("sleeve", True)
