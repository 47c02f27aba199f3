"""Traffic between nodes of a lab: pings and iperf3, started, stopped and read.

Knows labs and two tools' output, nothing of Weft. The one idea needed to read it: a lost packet is a sequence number
that was sent and never answered, so loss is told packet by packet, and a summary line of a tool is never believed.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any

from mesh.lab import Lab
from mesh.namespaces import CommandFailed, LabError, wait_until

IPERF_PORT = 5201
IPERF_PATIENCE_S = 20.0
"""On a path that loses, its control connection takes a while too."""
_REPLY = re.compile(r"(?:\[([0-9.]+)\] )?[0-9]+ bytes from .*icmp_seq=(\d+) .*time=([0-9.]+) ms( \(DUP!\))?")
_SENT = re.compile(r"(\d+) packets transmitted")
_ANSWERED = re.compile(r"^\[([0-9.]+)\] [0-9]+ bytes from .* ms", re.M)
_TAIL_BYTES = 4096


@dataclass(frozen=True, slots=True)
class Pings:
    """What one `ping` saw."""

    sent: int
    times_ms: dict[int, float]
    """By sequence number, from 1."""
    duplicates: int = 0
    sent_s: dict[int, float] = field(default_factory=dict)
    """When each answered one was sent, in seconds of `time.time`, where ping told the time (`-D`)."""

    @property
    def lost(self) -> list[int]:
        """Sequence numbers that were never answered."""
        return [number for number in range(1, self.sent + 1) if number not in self.times_ms]

    @property
    def answered_s(self) -> list[float]:
        """When answers came, in seconds of `time.time`, the first one first."""
        return sorted(sent_s + self.times_ms[number] / 1e3 for number, sent_s in self.sent_s.items())


def parse_ping(output: str) -> Pings:
    """The output of `ping -n`. Raises `LabError` where there is no summary."""
    times: dict[int, float] = {}
    sent_s: dict[int, float] = {}
    duplicates = 0
    for match in _REPLY.finditer(output):
        if match[4]:
            duplicates += 1
            continue
        number, time_ms = int(match[2]), float(match[3])
        times[number] = time_ms
        if match[1]:
            sent_s[number] = float(match[1]) - time_ms / 1e3
    sent = _SENT.search(output)
    if sent is None:
        raise LabError(f"ping said nothing of what it sent: {output[-200:]!r}")
    return Pings(int(sent[1]), times, duplicates, sent_s)


def ping(lab: Lab, node: str, address: str, *, count: int = 1, interval_s: float = 0.2, wait_s: int = 1) -> Pings:
    """Ping and wait for the end of it; nobody answering is a result, not an error."""
    command = ["ping", "-n", "-c", str(count), "-i", f"{interval_s:g}", "-W", str(wait_s), address]
    done = lab.run(node, command, check=False, timeout_s=count * interval_s + wait_s + 30)
    if done.returncode not in (0, 1):
        raise CommandFailed(f"ping {address} on {node}", done.returncode, done.stdout, done.stderr)
    return parse_ping(done.stdout)


class Pinger:
    """A ping that runs beside a test, until `stop` says what became of each packet."""

    def __init__(self, lab: Lab, node: str, address: str, *, interval_s: float = 0.01) -> None:
        command = ["stdbuf", "-oL", "ping", "-n", "-D", "-i", f"{interval_s:g}", "-W", "1", address]
        self._what = f"ping {address} on {node}"
        # Into a file: a pipe that nobody reads stops ping after some eight hundred answers.
        self._output = tempfile.TemporaryFile("w+")  # noqa: SIM115 - `stop` closes it
        self._process = subprocess.Popen(
            lab.argv(node, command),
            env=lab.environment(node),
            stdin=subprocess.DEVNULL,
            stdout=self._output,
            stderr=subprocess.PIPE,
            text=True,
        )

    def last_answer_s(self) -> float | None:
        """When the newest answer so far came, in seconds of `time.time`; None where there is none."""
        # Not `seek` and `read`: the place in the file is ping's too, and that is where it writes.
        fd = self._output.fileno()
        tail = os.pread(fd, _TAIL_BYTES, max(0, os.fstat(fd).st_size - _TAIL_BYTES))
        answered = _ANSWERED.findall(tail.decode(errors="replace"))
        return float(answered[-1]) if answered else None

    def stop(self) -> Pings:
        """End it. The very last packet may still be on its way: unanswered, it was never sent."""
        self._process.send_signal(signal.SIGINT)
        try:
            _, stderr = self._process.communicate(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            raise LabError(f"{self._what} did not end") from None
        self._output.seek(0)
        stdout = self._output.read()
        self._output.close()
        if not stdout:
            raise CommandFailed(self._what, self._process.returncode, stdout, stderr)
        seen = parse_ping(stdout)
        return replace(seen, sent=seen.sent - 1) if seen.sent in seen.lost else seen


@dataclass(frozen=True, slots=True)
class Stream:
    """What iperf3 saw of TCP."""

    mbit_s: float
    received_bytes: int
    retransmits: int


@dataclass(frozen=True, slots=True)
class Datagrams:
    """What iperf3 saw of UDP."""

    sent: int
    received: int
    seconds: float

    @property
    def lost(self) -> float:
        """The share that never arrived, those lost at the very end included."""
        return 1 - self.received / self.sent if self.sent else 1.0


class IperfServer:
    """An iperf3 server on a node, for as many runs as wanted."""

    def __init__(self, lab: Lab, node: str) -> None:
        self._lab = lab
        self._node = node

    def __enter__(self) -> IperfServer:
        self._start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._end()

    def restart(self) -> None:
        """After a run that failed: a server serves one client at a time, and may wait for one that has gone."""
        self._end()
        self._start()

    def _start(self) -> None:
        # What it prints nobody reads, and a pipe that nobody empties stops it after some fifty runs.
        command = ["iperf3", "-s", "-p", str(IPERF_PORT), "--logfile", "/dev/null"]
        self._process = self._lab.popen(self._node, command)
        wait_until(self._listens, 5.0, f"iperf3 listened on {self._node}")

    def _end(self) -> None:
        self._process.kill()  # asked politely it would first wait for its client
        self._process.communicate(timeout=10)

    def _listens(self) -> bool:
        wanted = f":{IPERF_PORT:04X}"
        for family in ("tcp", "tcp6"):
            for line in Path(f"/proc/{self._process.pid}/net/{family}").read_text().splitlines()[1:]:
                fields = line.split()
                if fields[1].endswith(wanted) and fields[3] == "0A":
                    return True
        return False

    def measure(self, client: str, address: str, seconds: int, *, lab: Lab | None = None) -> float:
        """TCP from `client` to the server, in Mbit/s as received; by cubic, so that machines compare."""
        return self.stream(client, address, seconds, lab=lab).mbit_s

    def stream(
        self, client: str, address: str, seconds: int, *, flags: Sequence[str] = (), lab: Lab | None = None
    ) -> Stream:
        """The same with more flags of iperf3 (`-P 4`, `-R`), and with all that is known of it."""
        flags = ["-C", "cubic", "-t", str(seconds), *flags]
        end = self._client(client, address, flags, seconds, lab)
        received = end["sum_received"]
        sent = end.get("sum_sent", {})
        return Stream(float(received["bits_per_second"]) / 1e6, int(received["bytes"]), int(sent.get("retransmits", 0)))

    def datagrams(self, client: str, address: str, seconds: int, *, size: int, pps: float) -> Datagrams:
        """UDP packets of `size` bytes at `pps` a second, 0 for as fast as the sender can."""
        rate = "0" if pps == 0 else str(round(pps * size * 8))
        flags = ["-u", "-l", str(size), "-w", "2M", "-b", rate, "-t", str(seconds)]
        end = self._client(client, address, flags, seconds, None)
        sent, received = end["sum_sent"], end["sum_received"]
        arrived = int(received["packets"]) - int(received["lost_packets"])
        return Datagrams(int(sent["packets"]), arrived, float(sent["seconds"]))

    def _client(self, client: str, address: str, flags: Sequence[str], seconds: int, lab: Lab | None) -> Any:
        assert seconds >= 1, "iperf3 knows whole seconds only, and takes 0 for without end"
        command = ["iperf3", "-J", "-p", str(IPERF_PORT), "-c", address, *flags]
        done = (lab or self._lab).run(client, command, check=False, timeout_s=seconds + IPERF_PATIENCE_S)
        try:
            end = json.loads(done.stdout)["end"]
            float(end["sum_received"]["bits_per_second"])
        except (ValueError, KeyError):
            why = _iperf_error(done.stdout) or done.stderr
            raise CommandFailed(f"iperf3 {address} on {client}", done.returncode or 1, done.stdout, why) from None
        return end


def _iperf_error(output: str) -> str:
    """What iperf3 says of a run that failed; empty where it says nothing."""
    try:
        return str(json.loads(output).get("error", ""))
    except (ValueError, AttributeError):
        return ""


class AnswerWatch:
    """A ping every 10 ms from now on, of which only the first answer is wanted."""

    INTERVAL_S = 0.01

    def __init__(self, lab: Lab, node: str, address: str) -> None:
        command = ["stdbuf", "-oL", "ping", "-n", "-D", "-i", f"{self.INTERVAL_S:g}", "-W", "1", address]
        self._process = lab.popen(node, command)

    def first_answer(self, since_s: float, timeout_s: float = 5.0) -> float | None:
        """Seconds from `since_s` (of `time.time`) until the first answer, None where there was none in time."""
        killer = threading.Timer(max(0.0, since_s + timeout_s - time.time()), self._process.kill)
        killer.start()
        try:
            assert self._process.stdout is not None
            for line in self._process.stdout:
                if line.startswith("[") and "bytes from" in line:
                    return float(line[1 : line.index("]")]) - since_s
        finally:
            killer.cancel()
            self._process.kill()
            self._process.communicate()
        return None


def first_answer(lab: Lab, node: str, address: str, since_s: float, timeout_s: float = 5.0) -> float | None:
    """The same for a ping that starts only now."""
    return AnswerWatch(lab, node, address).first_answer(since_s, timeout_s)
