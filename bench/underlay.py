"""Two hosts, a container on each, and what lies between them: the small world in which one overlay is measured.

    pass-through     c1.1 - h1 eth0 ------------------------ eth0 h2 - c2.1      one veth pair, as it comes
    wire             c1.1 - h1 eth0 --- h1 [switch] h2 ----- eth0 h2 - c2.1      a third namespace between them

A veth hands packets of 64 KiB on as they are, which is right between two guests of one host and flatters everybody who
builds large ones. On the *wire* nothing segments for the sender (`ethtool -K`), the switch coalesces nothing, and so
every packet is cut to the MTU, forwarded alone, and coalesced only by the receiving host. Containers' own devices stay
as they come: they are no wire.

Knows labs and the kernel's switches, nothing of overlays. The one idea needed to read it: losses belong into the
switch, because a drop rule on a host's ingress sits behind GRO and takes 64 KiB at once.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from bench.processes import Process, overlay_processes
from bench.traffic import IperfServer
from mesh.lab import LABS_DIR, Lab
from mesh.namespaces import LabError, ip_batch, uninterrupted

PASS_THROUGH, WIRE = "pass-through", "wire"
UNDERLAYS = (PASS_THROUGH, WIRE)
MTU = 1500
CLIENT, SERVER = "c1.1", "c2.1"
BRIDGE = "br0"
"""Of what is built by hand; a host that runs Weft has Weft's own."""

_LOSS_PARTS = 100_000
_COUNTING = f"""\
table bridge benchcount {{
 counter forwarded {{ }}
 counter oversized {{ }}
 chain forward {{
  type filter hook forward priority 10; policy accept;
  counter name forwarded
  meta length > {MTU} counter name oversized
 }}
}}
"""
_OURS = re.compile(r"wb([0-9]+)[a-z0-9]*")
END_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True)
class Crossing:
    """What crossed the underlay while something was sent."""

    packets: int
    mean_bytes: float
    large: int | None
    """Packets above the MTU; only a switch can count them."""


class World:
    """A lab of its own for one overlay. As a context manager it leaves nothing behind."""

    def __init__(self, name: str, underlay: str) -> None:
        assert underlay in UNDERLAYS
        self.underlay = underlay
        self.lab = Lab(name, hosts=2, containers=1)
        self.server: IperfServer | None = None
        self._stack = ExitStack()
        self._started: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> World:
        self._stack.enter_context(self.lab)
        try:
            self.lab.build()
            self._plug()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._end()

    def _end(self) -> None:
        with uninterrupted():
            self._stack.close()  # everything that lives in the lab's namespaces is ended there
            for process in self._started:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(END_TIMEOUT_S)

    def _plug(self) -> None:
        hub = self.lab.namespace("hub")
        if self.underlay == PASS_THROUGH:
            ip_batch(["link delete h1", "link delete h2"], hub)
            one, other = self.lab.namespace("h1"), self.lab.namespace("h2")
            ip_batch([f"link add name eth0 mtu {MTU} type veth peer name eth0 mtu {MTU} netns {other}"], one)
            for host, namespace in ((1, one), (2, other)):
                ip_batch(
                    [
                        "link set dev eth0 up",
                        f"address add {self.lab.underlay(host)}/24 dev eth0",
                        f"address add {self.lab.underlay6(host)}/64 dev eth0 nodad",
                    ],
                    namespace,
                )
            return
        # The lab's own table can cut hosts off; here it would only cost every packet a look.
        self.lab.run("hub", ["nft", "delete", "table", "bridge", "weftlab"])
        for node in self.lab.host_nodes():
            self.cut_packets("hub", device=node, gro="off")
            self.cut_packets(node, device="eth0", gro="on")

    def cut_packets(self, node: str, *, device: str, gro: str) -> None:
        """Everything off by which a device takes packets above its MTU; kernels differ in what there is."""
        shown = self.lab.run(node, ["ethtool", "-k", device]).stdout
        features = [name for name, state in re.findall(r"^\s*(\S+): (on|off)$", shown, re.M) if state == "on"]
        segmenting = [name for name in features if "segmentation" in name or name.startswith("tx-gso")]
        off = [word for feature in segmenting for word in (feature, "off")]
        self.lab.run(node, ["ethtool", "-K", device, *off, "gro", gro])

    # Losses and proof

    def lose(self, percent: float) -> None:
        """From now on the switch drops that share of all packets, each by its own throw of the dice; 0 ends it."""
        assert self.underlay == WIRE, "there is no switch to lose anything"
        rules = "table bridge benchloss { }\ndelete table bridge benchloss\n"
        if percent > 0:
            parts = round(percent / 100 * _LOSS_PARTS)
            rules += (
                "table bridge benchloss {\n chain forward {\n  type filter hook forward priority 0; policy accept;\n"
                f"  counter\n  numgen random mod {_LOSS_PARTS} < {parts} counter drop\n }}\n}}\n"
            )
        self.lab.run("hub", ["nft", "-f", "-"], stdin=rules)

    def lost(self) -> tuple[int, int]:
        """How many packets the switch has seen and how many of them it has dropped since `lose`."""
        said = self.lab.run("hub", ["nft", "list", "table", "bridge", "benchloss"]).stdout
        seen, dropped = (int(number) for number in re.findall(r"counter packets (\d+)", said))
        return seen, dropped

    def crossing(self, during: Callable[[], object]) -> Crossing:
        """What crosses while `during` runs: that the underlay is what its name says is not taken on trust."""
        if self.underlay == PASS_THROUGH:
            before = self._received()
            during()
            after = self._received()
            packets = after[0] - before[0]
            return Crossing(packets, (after[1] - before[1]) / max(1, packets), None)
        self.lab.run("hub", ["nft", "-f", "-"], stdin=_COUNTING)
        during()
        said = json.loads(self.lab.run("hub", ["nft", "-j", "list", "counters"]).stdout)
        counters = {item["counter"]["name"]: item["counter"] for item in said["nftables"] if "counter" in item}
        self.lab.run("hub", ["nft", "delete", "table", "bridge", "benchcount"])
        packets = counters["forwarded"]["packets"]
        return Crossing(packets, counters["forwarded"]["bytes"] / max(1, packets), counters["oversized"]["packets"])

    def _received(self) -> tuple[int, int]:
        """Packets and bytes that both hosts have received; a veth counts as one what it hands on as one."""
        packets = size = 0
        for host in self.lab.host_nodes():
            for line in self.lab.run(host, ["cat", "/proc/net/dev"]).stdout.splitlines():
                name, _, rest = line.partition(":")
                if name.strip() == "eth0":
                    size += int(rest.split()[0])
                    packets += int(rest.split()[1])
        return packets, size

    # What an overlay is built of

    def start(self, host: str, command: Sequence[str], environment: dict[str, str] | None = None) -> Path:
        """Start an overlay's process on a host; the file that it writes to. It is ended with the world."""
        path = self.lab.directory / host / "overlay.log"
        with path.open("ab") as log:
            process = subprocess.Popen(
                self.lab.argv(host, command),
                env={**self.lab.environment(host), **(environment or {})},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        self._started.append(process)
        return path

    def has_device(self, host: str, name: str) -> bool:
        return self.lab.run(host, ["ip", "link", "show", "dev", name], check=False).returncode == 0

    def plug_container(self, host: int, mtu: int) -> None:
        """A bridge on the host and the container's veth on it, in the overlay's own MTU: the shape of layer 2."""
        node, container = self.lab.namespace(f"h{host}"), self.lab.namespace(f"c{host}.1")
        ip_batch(
            [
                f"link add name {BRIDGE} mtu {mtu} type bridge mcast_snooping 0",
                f"link add name vc1 mtu {mtu} type veth peer name eth0 mtu {mtu} netns {container}",
                f"link set dev vc1 master {BRIDGE} up",
                f"link set dev {BRIDGE} up",
            ],
            node,
        )
        ip_batch(["link set dev eth0 up", f"address add {self.lab.address(f'c{host}.1')}/16 dev eth0"], container)

    def route_container(self, host: int, mtu: int, device: str) -> None:
        """The same shape for an overlay of layer 3: the host routes between the container's bridge and the device."""
        self.plug_container(host, mtu)
        container = self.lab.namespace(f"c{host}.1")
        ip_batch(
            [f"address add 10.32.{host}.254/24 dev {BRIDGE}", f"route replace 10.32.{3 - host}.0/24 dev {device}"],
            self.lab.namespace(f"h{host}"),
        )
        address = self.lab.address(f"c{host}.1")
        ip_batch(
            [
                f"address delete {address}/16 dev eth0",
                f"address add {address}/24 dev eth0",
                f"route add default via 10.32.{host}.254",
            ],
            container,
        )
        self.lab.run(f"h{host}", ["sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward"])

    # Traffic

    def serve(self) -> IperfServer:
        """The server that every stream of this world goes to; started when first asked for, ended with the world."""
        if self.server is None:
            self.server = self._stack.enter_context(IperfServer(self.lab, SERVER))
        return self.server

    def processes(self) -> list[Process]:
        """Everything that runs on the two hosts, which is the overlay: traffic comes from the containers."""
        return overlay_processes([self.lab.namespace(host) for host in self.lab.host_nodes()])


def sweep() -> list[str]:
    """Remove the labs of benches that were killed outright; their names. Those of living processes are left alone."""
    swept = []
    for path in sorted(LABS_DIR.glob("wb*")):
        match = _OURS.fullmatch(path.name)
        if match is None or Path(f"/proc/{match[1]}").exists() or int(match[1]) == os.getpid():
            continue
        with contextlib.suppress(LabError), uninterrupted():
            Lab(path.name).down()  # refuses where somebody else holds it
            swept.append(path.name)
    return swept
