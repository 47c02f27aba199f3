"""Names in whole daemons: asked from containers, with the tools that people use."""

from __future__ import annotations

import json
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mesh.lab import Lab
from mesh.namespaces import CommandFailed, ip_batch, wait_until

pytestmark = pytest.mark.root

SERVER = "169.254.6.53"
SERVER6 = "fe80::6:53%ethwe"
GONE_WITHIN_S = 1.0
DEAD_WITHIN_S = 5.0
UPSTREAM = "203.0.113.53"
FAKE = """
import sys, time
import dns.message, dns.rrset, dns.flags, socket, threading, struct
mode, address = sys.argv[1:]
def answer(data):
    query = dns.message.from_wire(data)
    made = dns.message.make_response(query, recursion_available=True)
    name = str(query.question[0].name)
    if not name.endswith(".example.org."):
        made.set_rcode(3)
        return made.to_wire()
    count = 200 if name.startswith("big") else 1
    for n in range(count):
        made.answer.append(dns.rrset.from_text(query.question[0].name, 60, "IN", "A", f"198.51.{n}.7"))
    return made.to_wire(max_size=65535)
def tcp():
    with socket.create_server((address, 53)) as listener:
        while True:
            connection, _ = listener.accept()
            data = connection.recv(65535)
            made = answer(data[2:])
            connection.sendall(struct.pack("!H", len(made)) + made)
            connection.close()
threading.Thread(target=tcp, daemon=True).start()
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
    udp.bind((address, 53))
    seen = []
    while True:
        data, source = udp.recvfrom(65535)
        print(source[1], struct.unpack("!H", data[:2])[0], flush=True)
        if mode == "answers":
            made = answer(data)
            if len(made) > 512:
                cut = dns.message.make_response(dns.message.from_wire(data), recursion_available=True)
                cut.flags |= dns.flags.TC
                made = cut.to_wire()
            udp.sendto(made, source)
"""

CLOSED = """
table inet closed {
  chain input {
    type filter hook input priority 0; policy drop;
    tcp dport 6783 accept
    udp dport { 6783, 6784 } accept
    iif lo accept
    ct state established accept
  }
}
"""


@pytest.fixture(scope="module")
def lab(make_lab: Callable[..., Lab]) -> Iterator[Lab]:
    """Two hosts; h1's upstreams are one that never answers and one that does."""
    made = make_lab(hosts=2, containers=3)
    made.build()
    for address in (UPSTREAM, "203.0.113.54"):
        made.run("h1", ["ip", "address", "add", f"{address}/32", "dev", "lo"])
    silent = made.popen("h1", [sys.executable, "-c", FAKE, "silent", "203.0.113.54"])
    answers = made.popen("h1", [sys.executable, "-c", FAKE, "answers", UPSTREAM])
    made.launch("h1", ["--dns-upstream", "203.0.113.54", "--dns-upstream", UPSTREAM])
    made.launch("h2", [made.underlay(1)])
    made.wait_connected()
    for node in made.container_nodes():
        made.weft(f"h{node[1]}", ["attach", *made.addresses(node), made.namespace(node), "-h", node.replace(".", "-")])
    made.weft("h1", ["dns-add", made.namespace("c1.1"), "-h", "many"])
    made.weft("h1", ["dns-add", made.namespace("c1.2"), "-h", "many"])
    made.weft("h2", ["dns-add", made.namespace("c2.1"), "-h", "many"])
    wait_until(lambda: len(dig(made, "c1.1", "many")) == 3, 10, "all were told")
    yield made
    for process in (silent, answers):
        process.kill()
        process.communicate()


def dig(lab: Lab, node: str, name: str, *words: str, server: str = SERVER) -> list[str]:
    whole = name if "." in name or name.startswith("-") else f"{name}.weft.local"
    argv = ["dig", "+short", "+time=2", "+tries=1", f"@{server}", *words, whole]
    return lab.run(node, argv, check=False).stdout.split()


def code(lab: Lab, node: str, name: str, *words: str) -> str:
    argv = ["dig", "+time=5", "+tries=1", f"@{SERVER}", *words, name]
    shown = lab.run(node, argv, check=False).stdout
    return shown.partition("status: ")[2].partition(",")[0]


def resolve(lab: Lab, node: str, name: str) -> list[str]:
    """As programs do that `ip netns exec` starts: by libc and the namespace's resolv.conf."""
    argv = ["ip", "netns", "exec", lab.namespace(node), "getent", "ahosts", name]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=30, check=False)
    return sorted({line.split()[0] for line in done.stdout.splitlines()})


def test_containers_find_each_other_by_name(lab: Lab) -> None:
    """On both hosts, by both families, over UDP and TCP, and the other way round; no host is exposed."""
    for asker in ("c1.1", "c2.1", "h1", "h2"):
        for node in lab.container_nodes():
            name = node.replace(".", "-")
            assert dig(lab, asker, name) == dig(lab, asker, name.upper()) == [lab.address(node)]
            assert dig(lab, asker, name, "AAAA") == [lab.address6(node)]
            assert dig(lab, asker, name, "+tcp") == [lab.address(node)]
            own = f"{lab.namespace(node)}.weft.local."
            assert sorted(dig(lab, asker, lab.address(node), "-x")) == sorted(
                [own, f"{name}.weft.local.", *(["many.weft.local."] if node in ("c1.1", "c1.2", "c2.1") else [])]
            )


def test_libc_finds_names_through_the_files_of_namespaces(lab: Lab) -> None:
    """A bare word, a name with dots, a whole name; and busybox."""
    found = sorted([lab.address("c2.1"), lab.address6("c2.1")])
    for name in ("c2-1", lab.namespace("c2.1"), "C2-1.weft.local"):
        assert resolve(lab, "c1.1", name) == found, name
    ping = ["ip", "netns", "exec", lab.namespace("c1.1"), "busybox", "ping", "-c", "1", "-W", "2", "c2-1"]
    assert subprocess.run(ping, capture_output=True, timeout=30, check=False).returncode == 0


def test_a_container_without_ipv4_asks_over_ipv6(lab: Lab) -> None:
    """And its file says so."""
    lab.add_namespaces(["six"])
    lab.weft("h1", ["attach", "fd00:32::1:66/64", lab.namespace("six"), "-h", "six"])
    path = Path("/etc/netns", lab.namespace("six"), "resolv.conf")
    assert f"nameserver {SERVER6}\n" in path.read_text()
    assert dig(lab, "six", "c2-1", "AAAA", server=SERVER6) == [lab.address6("c2.1")]
    assert lab.address6("c2.1") in resolve(lab, "six", "c2-1")
    lab.weft("h1", ["detach", lab.namespace("six")])
    assert not path.parent.exists()


def test_nearest_first_and_the_others_in_changing_order(lab: Lab) -> None:
    """This host's own before another's."""
    orders = {tuple(dig(lab, "c1.3", "many")) for _ in range(12)}
    assert all(order[2] == lab.address("c2.1") for order in orders) and len(orders) == 2
    assert {dig(lab, "c2.3", "many")[0] for _ in range(4)} == {lab.address("c2.1")}
    assert lab.weft("h2", ["dns-lookup", "many"]).stdout.split()[0] == lab.address("c2.1")
    assert lab.weft("h2", ["dns-args"]).stdout == f"--dns={SERVER} --dns-search=weft.local.\n"


def test_names_leave_within_a_second_of_detach(lab: Lab) -> None:
    """Everywhere, with the file."""
    lab.add_namespaces(["brief"])
    for number in range(3):
        lab.weft("h1", ["attach", "10.32.1.99/16", lab.namespace("brief"), "-h", "brief"])
        wait_until(lambda: dig(lab, "c2.1", "brief") == ["10.32.1.99"], 5, "h2 knew the name")
        assert dig(lab, "c1.1", "brief") == ["10.32.1.99"], number
        lab.weft("h1", ["detach", lab.namespace("brief")])
        assert code(lab, "c1.1", "brief.weft.local") == "NXDOMAIN"
        wait_until(lambda: code(lab, "c2.1", "brief.weft.local") == "NXDOMAIN", GONE_WITHIN_S, "h2 had forgotten it")
        assert not Path("/etc/netns", lab.namespace("brief")).exists()


def test_names_of_a_namespace_that_ended_leave_too(lab: Lab) -> None:
    """Its addresses stay its own; it is away."""
    lab.add_namespaces(["ended"])
    lab.weft("h1", ["attach", "10.32.1.98/16", lab.namespace("ended"), "-h", "ended"])
    wait_until(lambda: dig(lab, "c2.1", "ended") == ["10.32.1.98"], 5, "h2 knew the name")
    ip_batch([f"netns delete {lab.namespace('ended')}"])
    wait_until(lambda: code(lab, "c2.1", "ended.weft.local") == "NXDOMAIN", 2, "h2 had forgotten it")
    lab.weft("h1", ["detach", lab.namespace("ended")])


def test_no_data_and_no_such_name(lab: Lab) -> None:
    """As the RFCs tell them apart."""
    assert (code(lab, "c1.1", "c2-1.weft.local", "MX"), dig(lab, "c1.1", "c2-1", "MX")) == ("NOERROR", [])
    assert code(lab, "c1.1", "nobody.weft.local") == "NXDOMAIN"
    assert code(lab, "c1.1", "9.9.254.169.in-addr.arpa", "PTR") == "NXDOMAIN"


def test_names_for_addresses(lab: Lab) -> None:
    """`dns-add ADDR`: known on all hosts, kept over a restart, gone by `dns-remove`. Other domains are refused."""
    lab.weft("h2", ["dns-add", "10.32.9.9", "fd00:32::9:9", "-h", "nas", "-h", "store.weft.local"])
    wait_until(lambda: dig(lab, "c1.1", "store") == ["10.32.9.9"], 5, "h1 knew it")
    assert json.loads(lab.weft("h1", ["dns-lookup", "nas", "--json"]).stdout)["addresses"] == [
        "10.32.9.9",
        "fd00:32::9:9",
    ]
    assert lab.weft("h1", ["dns-lookup", "fd00:32::9:9"]).stdout.split() == ["nas.weft.local.", "store.weft.local."]
    lab.weft("h2", ["stop"])
    lab.launch("h2")
    wait_until(lambda: dig(lab, "c1.1", "nas", "AAAA") == ["fd00:32::9:9"], 10, "h1 knew it again")
    for name in ("nas", "store"):
        lab.weft("h2", ["dns-remove", "10.32.9.9", "fd00:32::9:9", "-h", name])
    wait_until(lambda: code(lab, "c1.1", "nas.weft.local") == "NXDOMAIN", GONE_WITHIN_S, "h1 had forgotten it")
    for words, says in (
        (["dns-add", "10.32.9.9", "-h", "www.example.org"], "not under the domain weft.local"),
        (
            ["attach", "10.32.1.97/16", lab.namespace("c1.1"), "-h", "www.example.org"],
            "not under the domain weft.local",
        ),
        (["dns-remove", lab.namespace("c1.1"), "-h", "never"], "never was not added"),
        (["dns-lookup", "nobody"], "nobody.weft.local. is not known"),
    ):
        with pytest.raises(CommandFailed, match=says):
            lab.weft("h1", words)


def test_other_names_are_asked_for_elsewhere(lab: Lab) -> None:
    """The server that is silent costs its time once; from then on the one that answers is asked first."""
    assert dig(lab, "c1.1", "www.example.org") == ["198.51.0.7"]
    start = time.monotonic()
    assert dig(lab, "c1.1", "other.example.org", "+tcp") == ["198.51.0.7"]
    assert dig(lab, "c1.1", "third.example.org") == ["198.51.0.7"]
    assert time.monotonic() - start < 1.0
    assert len(dig(lab, "c1.1", "big.example.org")) == 200, "cut over UDP, so dig asked by TCP"
    shown = lab.weft_json("h1", "status", "dns")
    assert shown["upstreams"] == ["203.0.113.54", UPSTREAM] and shown["counters"]["answers"] >= 4
    assert "NAME" in lab.weft("h1", ["status", "dns"]).stdout


def test_bad_input_is_answered_with_an_error_or_not_at_all(lab: Lab) -> None:
    """Garbage, 64 KB by UDP and by TCP, more connections than there may be: names are answered all the while."""
    program = f"""
import os, socket, struct
udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
for number in range(2000):
    udp.sendto(os.urandom(number % 600), ("{SERVER}", 53))
udp.sendto(bytes(65507), ("{SERVER}", 53))
held = []
for number in range(200):
    tcp = socket.create_connection(("{SERVER}", 53), timeout=5)
    tcp.sendall(struct.pack("!H", 65535) + bytes(1000) if number % 2 else b"\\0")
    held.append(tcp)
"""
    lab.run("c1.1", [sys.executable, "-c", program])
    assert dig(lab, "c1.1", "c2-1") == dig(lab, "c1.1", "c2-1", "+tcp") == [lab.address("c2.1")]
    counters = lab.weft_json("h1", "status", "dns")["counters"]
    assert counters["bad-too-long"] >= 1 and counters["too-long"] >= 40 and counters["connections-pushed-out"] >= 1
    assert sum(count for name, count in counters.items() if name.startswith("bad-")) > 1000


def test_a_flood_does_not_starve_the_mesh(lab: Lab) -> None:
    """Three seconds of as many questions as a container can send, half of them for other names: nobody falls out of
    reach, and the others' questions are answered."""
    flood = f"""
import socket, struct, time
udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
end, number = time.monotonic() + 3, 0
while time.monotonic() < end:
    for _ in range(100):
        number += 1
        label = b"n%d" % number
        name = bytes((len(label),)) + label + (b"\\x04weft\\x05local\\0" if number % 2 else b"\\x07example\\0")
        udp.sendto(struct.pack("!6H", number & 65535, 256, 1, 0, 0, 0) + name + b"\\0\\1\\0\\1", ("{SERVER}", 53))
"""
    process = lab.popen("c1.1", [sys.executable, "-c", flood])
    answered = 0
    while process.poll() is None:
        answered += dig(lab, "c1.2", "c2-1", "+tcp") == [lab.address("c2.1")]
        assert [row["reachable"] for row in lab.weft_json("h2", "status", "peers")] == [True, True]
    process.communicate()
    assert answered >= 3
    assert dig(lab, "c1.1", "c2-1") == [lab.address("c2.1")]


@pytest.mark.parametrize("strictness", [1, 2])
def test_whatever_the_host_filters(lab: Lab, strictness: int) -> None:
    """Reverse path filters of both kinds, and a firewall that lets nothing into the host."""
    sysctl = [f"net.ipv4.conf.{each}.rp_filter={strictness}" for each in ("all", "default", "weft", "weft-dns")]
    lab.run("h1", ["sysctl", "-qw", *sysctl])
    lab.run("h1", ["nft", "-f", "-"], stdin=CLOSED)
    try:
        assert dig(lab, "c1.1", "c2-1") == dig(lab, "c1.1", "c2-1", "+tcp") == [lab.address("c2.1")]
    finally:
        lab.run("h1", ["nft", "delete", "table", "inet", "closed"])
        lab.run("h1", ["sysctl", "-qw", *(each[:-1] + "0" for each in sysctl)])


def test_nothing_of_it_leaves_the_host(lab: Lab) -> None:
    """Neither questions nor answers nor ARP or ND for the server, whatever a container sends; and nothing comes in."""
    captures = {
        device: lab.popen("h1", ["tcpdump", "-lnni", device, "-Q", "out", f"host {SERVER} or host fe80::6:53 or "
                                 f"(arp and host {SERVER}) or ip6 dst ff02::1:ff06:53"])
        for device in ("weft-vx", "weft-tap")
    }  # fmt: skip
    time.sleep(0.5)
    lab.run("c1.1", ["ip", "neigh", "flush", "dev", "ethwe"])
    dig(lab, "c1.1", "c2-1")
    dig(lab, "c1.1", "c2-1", server=SERVER6)
    dig(lab, "c1.1", "c2-1", "+tcp")
    mac = json.loads(lab.run("c1.1", ["ip", "-j", "neigh", "show", SERVER]).stdout)[0]["lladdr"]
    counters = lab.weft_json("h2", "status", "dns")["counters"]
    # Straight at the MAC of the server on the other host, past its own: all hosts have the same.
    frame = _frame(lab, mac)
    lab.run("c1.1", [sys.executable, "-c", _send(frame)])
    lab.run("c1.1", ["arping", "-c", "2", "-w", "1", "-I", "ethwe", SERVER], check=False)
    time.sleep(0.5)
    for device, capture in captures.items():
        capture.send_signal(signal.SIGINT)
        shown, _ = capture.communicate(timeout=10)
        assert shown.strip() == "", device
    assert lab.weft_json("h2", "status", "dns")["counters"] == counters


def _frame(lab: Lab, mac: str) -> bytes:
    """A question by UDP, addressed to everybody: what is broadcast goes to all hosts."""
    question = struct.pack("!6H", 7, 256, 1, 0, 0, 0) + b"\x04c2-1\x04weft\x05local\0\0\1\0\1"
    udp = struct.pack("!4H", 5353, 53, 8 + len(question), 0) + question
    source, destination = (socket.inet_aton(each) for each in (lab.address("c1.1"), SERVER))
    head = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + len(udp), 0, 0, 64, 17, 0, source, destination)
    total = sum(struct.unpack("!10H", head))
    total = (total & 0xFFFF) + (total >> 16)
    head = head[:10] + struct.pack("!H", ~total & 0xFFFF) + head[12:]
    own = lab.run("c1.1", ["cat", "/sys/class/net/ethwe/address"], check=False).stdout.strip()
    assert len(mac) == 17
    sender = bytes.fromhex(own.replace(":", "")) if own else bytes(6)
    return bytes.fromhex(mac.replace(":", "")) + sender + b"\x08\0" + head + udp


def _send(frame: bytes) -> str:
    return (
        "import socket\n"
        "raw = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)\n"
        "raw.bind(('ethwe', 0))\n"
        f"[raw.send(bytes.fromhex('{frame.hex()}')) for _ in range(5)]\n"
    )


def test_a_daemon_that_is_down_refuses_at_once_and_the_next_one_answers(lab: Lab) -> None:
    """Containers do not wait for time-outs; the next daemon finds everything as it wants it."""
    lab.weft("h1", ["stop"])
    start = time.monotonic()
    assert dig(lab, "c1.1", "c2-1") == [] or time.monotonic() - start < 1.0
    assert time.monotonic() - start < 1.0
    lab.launch("h1")
    assert dig(lab, "c1.1", "c1-2") == [lab.address("c1.2")]
    assert lab.weft_json("h1", "report")["counters"]["kernel"]["applied"] == 0
    wait_until(lambda: dig(lab, "c1.1", "c2-1") == [lab.address("c2.1")], 10, "h2's names were known again")
    path = Path("/etc/netns", lab.namespace("c1.3"))
    assert path.exists()
    lab.weft("h1", ["detach", lab.namespace("c1.3")])
    assert not path.exists(), "what an earlier life wrote goes too"
    lab.weft("h1", ["attach", *lab.addresses("c1.3"), lab.namespace("c1.3"), "-h", "c1-3"])


def test_names_of_a_dead_host_leave_within_five_seconds(lab: Lab) -> None:
    """A host that is cut off says nothing more; its names come back with it."""
    lab.cut("h2")
    took = wait_until(lambda: code(lab, "c1.1", "c2-1.weft.local") == "NXDOMAIN", DEAD_WITHIN_S, "the name had left")
    assert took <= DEAD_WITHIN_S and sorted(dig(lab, "c1.3", "many")) == [lab.address("c1.1"), lab.address("c1.2")]
    lab.heal()
    wait_until(lambda: dig(lab, "c1.1", "c2-1") == [lab.address("c2.1")], 30, "it was back")


def test_without_dns(lab: Lab) -> None:
    """An attachment may have no names, and a host no server; then nothing of it is left there."""
    lab.add_namespaces(["mute"])
    lab.weft("h1", ["attach", "10.32.1.96/16", lab.namespace("mute"), "--without-dns"])
    assert not Path("/etc/netns", lab.namespace("mute")).exists()
    assert code(lab, "c1.1", f"{lab.namespace('mute')}.weft.local") == "NXDOMAIN"
    lab.weft("h1", ["detach", lab.namespace("mute")])
    lab.weft("h2", ["stop"])
    lab.launch("h2", ["--no-dns"])
    assert "--no-dns" in lab.weft("h2", ["status", "dns"]).stdout
    assert lab.run("h2", ["ip", "link", "show", "weft-dns"], check=False).returncode != 0
    wait_until(lambda: SERVER not in lab.run("c2.1", ["ip", "route"]).stdout, 10, "the way to it was gone")
    assert not Path("/etc/netns", lab.namespace("c2.1")).exists()


def test_a_reset_leaves_no_file_and_no_server(lab: Lab) -> None:
    assert Path("/etc/netns", lab.namespace("c1.1"), "resolv.conf").exists()
    lab.weft("h1", ["reset", "--force"])
    assert not [each for each in os.listdir("/etc/netns") if each.startswith(f"{lab.name}-c1")]
    assert lab.run("h1", ["ip", "link", "show", "weft-dns"], check=False).returncode != 0
