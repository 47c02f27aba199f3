"""Reading what ping says: loss is told packet by packet."""

from __future__ import annotations

import pytest

from bench.traffic import _iperf_error, parse_ping
from mesh.namespaces import LabError

OUTPUT = """\
PING 10.32.2.1 (10.32.2.1) 56(84) bytes of data.
64 bytes from 10.32.2.1: icmp_seq=1 ttl=64 time=0.045 ms
64 bytes from 10.32.2.1: icmp_seq=3 ttl=64 time=1.20 ms
64 bytes from 10.32.2.1: icmp_seq=3 ttl=64 time=1.25 ms (DUP!)
[1700000000.123456] 64 bytes from fd00:32::2:1: icmp_seq=4 ttl=64 time=0.9 ms

--- 10.32.2.1 ping statistics ---
5 packets transmitted, 3 received, +1 duplicates, 40% packet loss, time 4004ms
"""


def test_each_lost_packet_is_known_by_its_number() -> None:
    """Also one lost at the very end, which no reply line hints at."""
    seen = parse_ping(OUTPUT)
    assert seen.times_ms == {1: 0.045, 3: 1.2, 4: 0.9}
    assert seen.lost == [2, 5]
    assert seen.duplicates == 1


def test_output_without_a_summary_is_no_result() -> None:
    """A ping that was killed before it could count must not pass for one that lost nothing."""
    with pytest.raises(LabError, match="said nothing"):
        parse_ping(OUTPUT.split("---")[0])


def test_when_answers_came_is_when_their_pings_went_and_how_long_they_took() -> None:
    """Only where ping told the time; in order of arrival."""
    assert parse_ping(OUTPUT).answered_s == pytest.approx([1700000000.123456])


def test_a_stream_that_failed_says_why() -> None:
    """iperf3 tells its errors inside its JSON, whose last line is a brace."""
    assert _iperf_error('{"start": {}, "end": {}, "error": "the server is busy"}\n') == "the server is busy"
    assert _iperf_error("") == _iperf_error("[]") == _iperf_error("{}") == ""
