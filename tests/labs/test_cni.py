"""The CNI plugin as runtimes run it: every verb in every version, chains with other plugins, bad input, crashes."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from bench.traffic import ping
from mesh.lab import Lab
from mesh.namespaces import wait_until
from tests.labs.cni import CniError, Runtime, addresses_of, new_id

pytestmark = pytest.mark.root

VERSIONS = ("0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")
Json = dict[str, Any]


@pytest.fixture(scope="module")
def lab(make_lab: Callable[..., Lab]) -> Lab:
    """Two hosts that talk, nothing attached."""
    lab = make_lab(hosts=2, containers=4)
    lab.build()
    lab.launch("h1")
    lab.launch("h2", [lab.underlay(1)])
    lab.wait_connected()
    lab.weft("h1", ["prime"])
    lab.weft("h2", ["prime"])
    return lab


@pytest.fixture
def here(lab: Lab) -> Iterator[Runtime]:
    """The runtime of the first host; afterwards nothing is attached there, and no interface is left."""
    runtime = Runtime(lab, "h1")
    yield runtime
    for container, ifname in list(runtime.results):
        runtime.plugins = [{"type": "weft"}]
        runtime.name = "weft"
        runtime.delete(container, ifname=ifname)
    lab.weft("h1", ["hide"])
    assert lab.weft_json("h1", "ps") == []
    assert "vw" not in lab.run("h1", ["ip", "-br", "link", "show", "type", "veth"]).stdout.replace("vwdns", "")


@pytest.fixture
def there(lab: Lab) -> Iterator[Runtime]:
    runtime = Runtime(lab, "h2")
    yield runtime
    for container, ifname in list(runtime.results):
        runtime.delete(container, ifname=ifname)


@contextlib.contextmanager
def gone(lab: Lab, node: str) -> Iterator[None]:
    """Without that namespace; afterwards there is another one of the name."""
    lab.run("h1", ["ip", "netns", "delete", lab.namespace(node)])
    try:
        yield
    finally:
        lab.run("h1", ["ip", "netns", "add", lab.namespace(node)])


def refused(call: Callable[[], object]) -> CniError:
    with pytest.raises(CniError) as caught:
        call()
    assert "\n" not in caught.value.text
    return caught.value


# -- what each version gives ---------------------------------------------------------------------------


@pytest.mark.parametrize("version", VERSIONS)
def test_a_result_has_the_shape_of_its_version(here: Runtime, version: str) -> None:
    here.version = version
    here.plugins = [{"type": "weft", "isDefaultGateway": True, "ipMasq": True}]
    pod = new_id()
    result = here.add(pod, "c1.1")
    bridge, host, inside = result["interfaces"]
    assert bridge["name"] == "weft" and host["name"].startswith("vw")
    assert inside["name"] == "eth0" and inside["sandbox"] == here.netns("c1.1")
    assert ("mtu" in inside) == (version == "1.1.0")
    link = here.lab.run("c1.1", ["ip", "-o", "link", "show", "eth0"]).stdout
    assert inside["mac"] in link and (version != "1.1.0" or f"mtu {inside['mtu']} " in link)
    low, high = result["ips"]
    assert {low["interface"], high["interface"]} == {2}
    assert (low.get("version"), high.get("version")) == (("4", "6") if version < "1.0.0" else (None, None))
    shown = here.lab.run("c1.1", ["ip", "-o", "addr", "show", "eth0"]).stdout
    assert low["address"] in shown and high["address"] in shown
    assert {route["dst"]: route["gw"] for route in result["routes"]} == {
        "0.0.0.0/0": low["gateway"], "::/0": high["gateway"],
    }  # fmt: skip
    assert f"default via {low['gateway']} dev eth0" in here.lab.run("c1.1", ["ip", "route"]).stdout
    assert result["dns"]["nameservers"] == ["169.254.6.53"]
    assert ping(here.lab, "c1.1", low["gateway"]).lost == []
    if version >= "0.4.0":
        here.check(pod, "c1.1")
    else:
        assert refused(lambda: here.check(pod, "c1.1")).code == 1
    here.delete(pod, "c1.1")
    assert here.lab.run("c1.1", ["ip", "link", "show", "eth0"], check=False).returncode != 0


def test_the_versions_are_said_and_others_refused(here: Runtime) -> None:
    for version in VERSIONS:
        said = {"cniVersion": version, "supportedVersions": list(VERSIONS)}
        assert here.ask("VERSION", {"cniVersion": version}) == said
    for config in ({"cniVersion": "0.2.0"}, {"cniVersion": "1.2.0"}, {}, "", "{"):  # who asks does not know yet
        assert here.ask("VERSION", config) == {"cniVersion": "1.1.0", "supportedVersions": list(VERSIONS)}
    words = {"CONTAINERID": "a", "NETNS": "/run/netns/x", "IFNAME": "eth0"}
    for version in ("0.1.0", "0.2.0", "1.2.0", "nonsense", 1, None):
        config = {"cniVersion": version, "name": "weft", "type": "weft"}
        assert refused(lambda config=config: here.ask("ADD", config, **words)).code == 1  # type: ignore[misc]
    assert refused(lambda: here.ask("ADD", {"name": "weft"}, **words)).code == 1  # no version is 0.1.0
    for verb in ("GC", "STATUS"):
        assert refused(lambda verb=verb: here.ask(verb, {"cniVersion": "1.0.0", "name": "weft"})).code == 1  # type: ignore[misc]


# -- what it does --------------------------------------------------------------------------------------


def test_containers_of_two_hosts_talk_as_soon_as_add_returns(here: Runtime, there: Runtime) -> None:
    far = addresses_of(there.add(new_id(), "c2.1", args="IgnoreUnknown=1;K8S_POD_NAMESPACE=db;K8S_POD_NAME=one"))
    here.add(new_id(), "c1.1")
    for address in far:
        assert ping(here.lab, "c1.1", address).lost == []
    assert here.lab.weft("h1", ["dns-lookup", "one.db.weft.local"]).stdout.split()[0] in far
    (row,) = [row for row in here.lab.weft_json("h1", "status", "endpoints") if row["labels"]]
    assert row["labels"] == {"io.kubernetes.pod.namespace": "db", "io.kubernetes.pod.name": "one"}
    assert "default" not in here.lab.run("c1.1", ["ip", "route"]).stdout  # nobody asked for it


def test_a_pod_may_have_the_longest_name_that_there_is(here: Runtime) -> None:
    name, space = ".".join(["n" * 62] * 4), "s" * 63
    here.add(new_id(), "c1.1", args=f"K8S_POD_NAMESPACE={space};K8S_POD_NAME={name}")
    (row,) = [row for row in here.lab.weft_json("h1", "ps") if row["labels"]]
    assert row["labels"]["io.kubernetes.pod.name"] == name and row["id"] == f"{name}.{space}"


def test_of_several_ranges_the_next_one_serves_when_one_is_used_up(here: Runtime) -> None:
    one = {"subnet": "10.34.0.0/24", "rangeStart": "10.34.0.9", "rangeEnd": "10.34.0.9"}
    here.plugins = [{"type": "weft", "ipam": {"ranges": [[one, {"subnet": "10.34.1.0/24"}]]}}]
    first, second = (addresses_of(here.add(new_id(), pod)) for pod in ("c1.1", "c1.2"))
    assert first == ["10.34.0.9"] and second[0].startswith("10.34.1.")


def test_what_the_runtime_chooses_it_gets(here: Runtime) -> None:
    """Addresses, a MAC, an MTU, routes, names; each capability only where it is declared."""
    runtime = {
        "ips": ["10.33.1.7/24", "10.32.7.9"], "mac": "02:11:22:33:44:55", "aliases": ["chosen"],
        "ipRanges": [[{"subnet": "10.34.0.0/24", "rangeStart": "10.34.0.100", "rangeEnd": "10.34.0.101"}]],
    }  # fmt: skip
    plugin = {
        "type": "weft", "capabilities": dict.fromkeys(runtime, True), "mtu": 1200, "hairpinMode": True,
        "routes": [{"dst": "10.99.0.0/16", "gw": "10.33.1.1"}, {"dst": "10.98.0.0/16"}],
        "dns": {"nameservers": ["10.1.1.1"]},
    }  # fmt: skip
    here.plugins = [plugin]
    result = here.add(new_id(), "c1.1", runtime=runtime)
    given = [each["address"] for each in result["ips"]]
    assert given[0] == "10.33.1.7/24" and given[2].startswith("10.32.7.9/")
    assert given[1] in ("10.34.0.100/24", "10.34.0.101/24")
    assert result["interfaces"][2]["mac"] == "02:11:22:33:44:55"
    assert result["dns"] == {"nameservers": ["10.1.1.1"]}
    link = here.lab.run("c1.1", ["ip", "-o", "link", "show", "eth0"]).stdout
    assert "mtu 1200" in link and "02:11:22:33:44:55" in link
    routes = here.lab.run("c1.1", ["ip", "route"]).stdout
    assert "10.99.0.0/16 via 10.33.1.1 dev eth0" in routes and "10.98.0.0/16 dev eth0" in routes
    port = here.lab.run("h1", ["bridge", "-d", "link", "show", "dev", result["interfaces"][1]["name"]]).stdout
    assert "hairpin on" in port
    assert here.lab.weft("h1", ["dns-lookup", "chosen"]).stdout
    assert refused(lambda: here.add(new_id(), "c1.2", runtime={"mac": "02:11:22:33:44:55"})).code == 101
    assert refused(lambda: here.add(new_id(), "c1.2", runtime={"ips": ["10.33.1.7/24"]})).code == 101
    plain = here.add(new_id(), "c1.2", args="IP=10.33.1.8/24")
    assert addresses_of(plain) == ["10.33.1.8"]


def test_a_container_may_have_several_interfaces(here: Runtime) -> None:
    pod = new_id()
    first = here.add(pod, "c1.1")
    here.plugins = [{"type": "weft", "ipam": {"subnet": "10.35.1.0/24"}}]
    second = here.add(pod, "c1.1", ifname="net1")
    attached = here.lab.attach("c1.1", addresses=["10.36.1.1/24"])
    shown = here.lab.run("c1.1", ["ip", "-o", "addr"]).stdout
    for address in (*addresses_of(first), *addresses_of(second), attached.partition("/")[0]):
        assert address in shown
    assert addresses_of(second)[0].startswith("10.35.1.")
    here.delete(pod, "c1.1", ifname="net1")
    shown = here.lab.run("c1.1", ["ip", "-o", "addr"]).stdout
    assert "net1" not in shown and "eth0" in shown and "ethwe" in shown
    here.lab.weft("h1", ["detach", here.lab.namespace("c1.1")])
    assert "eth0" in here.lab.run("c1.1", ["ip", "-o", "addr"]).stdout


def test_the_way_out_is_made_once_and_masqueraded(here: Runtime) -> None:
    """The first ADD that asks exposes the host; the underlay then answers."""
    here.plugins = [{"type": "weft", "isDefaultGateway": True, "ipMasq": True}]
    pods = [new_id(), new_id()]
    gateways = {here.add(pod, node)["ips"][0]["gateway"] for pod, node in zip(pods, ("c1.1", "c1.2"), strict=True)}
    assert len(gateways) == 1
    assert ping(here.lab, "c1.1", here.lab.underlay(2)).lost == []


# -- endings -------------------------------------------------------------------------------------------


def test_del_succeeds_however_often_and_whatever_is_gone(here: Runtime) -> None:
    pod, lost, never = new_id(), new_id(), new_id()
    result = here.add(pod, "c1.1")
    for _ in range(3):
        here.delete(pod, "c1.1")
    here.delete(never)
    here.add(lost, "c1.2")
    with gone(here.lab, "c1.2"):
        here.delete(lost, "c1.2")
    assert here.add(new_id(), "c1.1")["ips"] != result["ips"]  # what was released rests


def test_a_namespace_that_went_without_del_leaves_nothing(here: Runtime) -> None:
    pod = new_id()
    here.add(pod, "c1.2")
    with gone(here.lab, "c1.2"):
        wait_until(lambda: here.lab.weft_json("h1", "ps") == [], 10, "it was noticed")
    assert refused(lambda: here.check(pod, "c1.2")).code == 3
    here.add(pod, "c1.2")  # the same words, a new sandbox
    here.delete(pod, "c1.2")


def test_a_failed_add_leaves_nothing(here: Runtime) -> None:
    given = here.lab.weft("h1", ["ipam", "export"]).stdout
    here.lab.run("c1.1", ["ip", "link", "add", "eth0", "type", "bridge"])
    error = refused(lambda: here.add(new_id(), "c1.1"))
    assert error.code == 103 and "eth0" in error.text
    here.lab.run("c1.1", ["ip", "link", "del", "eth0"])
    pod = new_id()
    here.add(pod, "c1.1")
    assert refused(lambda: here.add(pod, "c1.1")).code == 103
    here.delete(pod)
    error = refused(lambda: here.ask("ADD", here._config({"type": "weft"}, None, None), CONTAINERID="x",
                                     NETNS="/run/netns/no-such", IFNAME="eth0"))  # fmt: skip
    assert error.code == 4
    assert refused(lambda: here.add(new_id(), "c1.1", args="IP=192.168.77.1")).code == 7
    for before in (7, {"interfaces": 7}, {"ips": "x"}, {"routes": {}}, {"dns": []}):
        config = here._config({"type": "weft"}, None, None) | {"prevResult": before}
        words = {"CONTAINERID": "x", "NETNS": here.netns("c1.1"), "IFNAME": "eth0"}
        error = refused(lambda config=config, words=words: here.ask("ADD", config, **words))  # type: ignore[misc]
        assert error.code == 7 and "prevResult" in error.text
    assert here.lab.weft_json("h1", "ps") == []
    assert here.lab.weft("h1", ["ipam", "export"]).stdout == given


def test_check_says_what_is_not_as_add_left_it(here: Runtime) -> None:
    """What the daemon can mend it mends; what it cannot, another sandbox or another address, is an error."""
    pod = new_id()
    result = here.add(pod, "c1.1")
    here.lab.run("c1.1", ["ip", "addr", "flush", "dev", "eth0"])
    here.check(pod, "c1.1")
    assert addresses_of(result)[0] in here.lab.run("c1.1", ["ip", "-o", "addr"]).stdout
    error = refused(lambda: here.check(pod, "c1.2"))
    assert error.code == 100 and here.netns("c1.2") in error.text
    result["ips"][0]["address"] = "10.32.99.99/12"
    error = refused(lambda: here.check(pod, "c1.1"))
    assert error.code == 100 and "10.32.99.99/12" in error.text


def test_gc_removes_exactly_what_is_not_valid(here: Runtime) -> None:
    here.version = "1.1.0"
    pods = [new_id() for _ in range(3)]
    for pod, node in zip(pods, ("c1.1", "c1.2", "c1.3"), strict=True):
        here.add(pod, node)
    here.name = "another"
    other = new_id()
    here.add(other, "c1.4")
    here.lab.weft("h1", ["attach", "10.37.1.1/24", here.lab.namespace("c1.4")])
    config = {"cniVersion": "1.1.0", "name": "weft", "type": "weft"}
    valid = [{"containerID": pods[0], "ifname": "eth0"}, {"containerID": pods[1], "ifname": "eth1"}]
    valid += [{"containerID": f"{number:064x}", "ifname": "eth0"} for number in range(5000)]
    assert here.ask("GC", config | {"cni.dev/valid-attachments": valid}) == {}
    left = {row["cni"]["container"] for row in here.lab.weft_json("h1", "ps") if row.get("cni")}
    assert left == {pods[0], other}
    assert refused(lambda: here.ask("GC", config)).code == 7
    assert here.ask("GC", config | {"cni.dev/valid-attachments": None}) == {}
    assert {row["cni"]["container"] for row in here.lab.weft_json("h1", "ps") if row.get("cni")} == {other}
    here.lab.weft("h1", ["detach", here.lab.namespace("c1.4")])
    here.delete(other)
    here.name = "weft"


def test_many_at_once(here: Runtime) -> None:
    """Each has addresses of its own, and DEL of all leaves nothing."""
    nodes = ["c1.1", "c1.2", "c1.3", "c1.4"]
    pods = [(new_id(), node, ifname) for node in nodes for ifname in ("eth0", "eth1", "eth2")]
    with ThreadPoolExecutor(12) as pool:
        results = list(pool.map(lambda pod: here.add(*pod), pods))
        assert len({address for result in results for address in addresses_of(result)}) == 24
        list(pool.map(lambda pod: here.delete(*pod), pods))


def test_a_del_that_overtakes_its_add_has_the_last_word(here: Runtime) -> None:
    pod = new_id()
    with ThreadPoolExecutor(2) as pool:
        adding = pool.submit(lambda: here.add(pod, "c1.1"))
        deleting = pool.submit(lambda: here.delete(pod, "c1.1"))
        deleting.result()
        adding.result()
    here.delete(pod, "c1.1")
    assert here.lab.weft_json("h1", "ps") == []


def test_a_daemon_that_dies_loses_nothing_and_leaks_nothing(here: Runtime) -> None:
    pods = [new_id(), new_id()]
    result = here.add(pods[0], "c1.1")
    here.add(pods[1], "c1.2")
    pid = here.lab.daemon_pid("h1")
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: here.lab.daemon_pid("h1") is None, 5, "the daemon had died")
    config = {"cniVersion": "1.1.0", "name": "weft", "type": "weft"}
    assert refused(lambda: here.ask("STATUS", config)).code == 50
    assert refused(lambda: here.add(new_id(), "c1.3")).code == 11
    assert refused(lambda: here.delete(pods[1], "c1.2")).code == 11
    with gone(here.lab, "c1.2"):
        here.lab.launch("h1")
        wait_until(lambda: not _is_refused(lambda: here.ask("STATUS", config)), 15, "an ADD would be served")
        here.check(pods[0], "c1.1")
        assert addresses_of(result)[0] in here.lab.run("c1.1", ["ip", "-o", "addr"]).stdout
        wait_until(lambda: len(here.lab.weft_json("h1", "ps")) == 1, 10, "the vanished one is gone")
        here.delete(pods[1])


def _is_refused(call: Callable[[], object]) -> bool:
    try:
        call()
    except CniError:
        return True
    return False


# -- chains --------------------------------------------------------------------------------------------


def test_a_full_disk_refuses_and_loses_nothing(here: Runtime, tmp_path: Path) -> None:
    config = {"cniVersion": "1.1.0", "name": "weft", "type": "weft"}
    with small_disk(here.lab, tmp_path) as state:
        kept = new_id()
        result = here.add(kept, "c1.1")
        with (state / "filler").open("wb", buffering=0) as filler, contextlib.suppress(OSError):
            while True:
                filler.write(b"x" * 4096)
        for number in range(3):
            with contextlib.suppress(CniError):  # what fits into the last block is served
                here.add(new_id(), f"c1.{2 + number % 3}")
        failure = refused(lambda: here.add(new_id(), "c1.4", ifname="eth7"))
        assert failure.code == 5 and "space" in failure.text
        assert refused(lambda: here.ask("STATUS", config)).code == 50
        assert "eth7" not in here.lab.run("c1.4", ["ip", "-br", "link"]).stdout
        assert addresses_of(result)[0] in here.lab.run("c1.1", ["ip", "-o", "addr"]).stdout
        (state / "filler").unlink()
        wait_until(lambda: not _is_refused(lambda: here.ask("STATUS", config)), 15, "an ADD would be served")
        here.check(kept, "c1.1")
        for container, ifname in list(here.results):
            here.delete(container, ifname=ifname)
        here.add(again := new_id(), "c1.4")
        here.delete(again)


@contextlib.contextmanager
def small_disk(lab: Lab, aside: Path) -> Iterator[Path]:
    """The first host's state on a disk of 600 KB, for as long as the block lasts."""
    state = lab.state_dir("h1")
    lab.weft("h1", ["stop"])
    shutil.copytree(state, aside / "before")
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=600k,mode=700", "tmpfs", str(state)], check=True)
    try:
        copy_state(aside / "before", state)
        lab.launch("h1")
        yield state
    finally:
        lab.weft("h1", ["stop"])
        shutil.copytree(state, aside / "after")
        subprocess.run(["umount", str(state)], check=True)
        copy_state(aside / "after", state)
        lab.launch("h1")


def copy_state(source: Path, target: Path) -> None:
    """All but the logs."""
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("*.log"), dirs_exist_ok=True)


def test_in_a_chain_with_the_reference_plugins(here: Runtime, there: Runtime) -> None:
    """Tuning, bandwidth, firewall and portmap after ours: a published port answers from another host."""
    here.plugins = [
        {"type": "weft", "isDefaultGateway": True, "ipMasq": True, "hairpinMode": True},
        {"type": "tuning", "sysctl": {"net.core.somaxconn": "500"}},
        {"type": "portmap", "capabilities": {"portMappings": True}, "snat": True},
        {"type": "firewall"},
        {"type": "bandwidth", "capabilities": {"bandwidth": True}},
    ]  # fmt: skip
    rate = {"ingressRate": 8_000_000, "ingressBurst": 800_000, "egressRate": 8_000_000, "egressBurst": 800_000}
    runtime = {
        "portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}], "bandwidth": rate,
    }  # fmt: skip
    pod = new_id()
    result = here.add(pod, "c1.1", runtime=runtime)
    veth = result["interfaces"][1]["name"]
    assert "rate 8Mbit" in here.lab.run("h1", ["tc", "qdisc", "show", "dev", veth]).stdout
    chain = here.plugins
    # Debian's portmap 1.1.1 fails its own CHECK, also after the reference bridge.
    here.plugins = [plugin for plugin in chain if plugin["type"] != "portmap"]
    here.check(pod, "c1.1", runtime=runtime)
    here.plugins = chain
    server = here.lab.popen("c1.1", ["python3", "-m", "http.server", "80", "--directory", "/sys/class/net"])
    try:
        url = f"http://{here.lab.underlay(1)}:8080/"
        fetch = ["python3", "-c", f"import urllib.request as u; u.urlopen({url!r}, timeout=2).read()"]
        wait_until(lambda: here.lab.run("h2", fetch, check=False).returncode == 0, 15, "the port was published")
    finally:
        server.kill()
        server.wait()
    here.delete(pod, "c1.1", runtime=runtime)


def test_addresses_may_come_from_another_plugin(here: Runtime) -> None:
    """host-local gives them, and has them back: also where our part of an ADD fails."""
    data = here.lab.directory / "host-local"
    ipam = {
        "type": "host-local", "dataDir": str(data), "ranges": [[{"subnet": "10.22.0.0/24"}]],
        "routes": [{"dst": "0.0.0.0/0"}],
    }  # fmt: skip
    here.plugins = [{"type": "weft", "isGateway": True, "ipMasq": True, "ipam": ipam}]
    pod = new_id()
    result = here.add(pod, "c1.1")
    assert addresses_of(result) == ["10.22.0.2"] and result["ips"][0]["gateway"] == "10.22.0.1"
    assert "default via 10.22.0.1 dev eth0" in here.lab.run("c1.1", ["ip", "route"]).stdout
    assert ping(here.lab, "c1.1", here.lab.underlay(2)).lost == []
    here.check(pod, "c1.1")
    here.lab.run("c1.2", ["ip", "link", "add", "eth0", "type", "bridge"])
    assert refused(lambda: here.add(new_id(), "c1.2")).code == 103
    here.lab.run("c1.2", ["ip", "link", "del", "eth0"])
    here.delete(pod, "c1.1")
    held = [path.name for path in (data / "weft").iterdir() if path.name[0].isdigit()]
    assert held == []
    for kind, code in (("../host-local", 7), ("no-such-plugin", 104)):
        here.plugins = [{"type": "weft", "ipam": {"type": kind}}]
        assert refused(lambda: here.add(new_id(), "c1.1")).code == code
    here.lab.weft("h1", ["hide"])


def test_after_others_in_a_chain_it_adds_to_their_result(here: Runtime) -> None:
    here.plugins = [{"type": "loopback"}, {"type": "weft"}]
    config = here._config({"type": "weft"}, None, None)
    before = {
        "cniVersion": "1.0.0", "interfaces": [{"name": "lo", "sandbox": here.netns("c1.1")}],
        "ips": [{"address": "127.0.0.1/8", "interface": 0}],
    }  # fmt: skip
    pod = new_id()
    words = {"CONTAINERID": pod, "NETNS": here.netns("c1.1"), "IFNAME": "eth0"}
    result = here.ask("ADD", config | {"prevResult": before}, **words)
    here.results[pod, "eth0"] = result
    assert [each["name"] for each in result["interfaces"]][::3] == ["lo", "eth0"]
    assert result["ips"][0] == before["ips"][0] and {each["interface"] for each in result["ips"][1:]} == {3}


# -- bad input -----------------------------------------------------------------------------------------

GOOD = {"cniVersion": "1.0.0", "name": "weft", "type": "weft"}
WORDS = {"CONTAINERID": "good", "IFNAME": "eth0"}


@pytest.mark.parametrize(
    ("config", "words", "drop", "code", "says"),
    [
        ("", {}, "", 6, "not JSON"),
        ("{", {}, "", 6, "not JSON"),
        ("[1]", {}, "", 6, "not an object"),
        ("[" * 100_000, {}, "", 6, "not JSON"),
        (GOOD | {"name": None}, {}, "", 7, "name is missing"),
        (GOOD | {"name": "../../etc"}, {}, "", 7, "name"),
        (GOOD | {"name": "n" * 129}, {}, "", 7, "name"),
        (GOOD, {}, "CNI_CONTAINERID", 4, "CNI_CONTAINERID"),
        (GOOD, {}, "CNI_IFNAME", 4, "CNI_IFNAME"),
        (GOOD, {}, "CNI_NETNS", 4, "CNI_NETNS"),
        (GOOD, {"CONTAINERID": "../x"}, "", 4, "CNI_CONTAINERID"),
        (GOOD, {"IFNAME": "a/b"}, "", 4, "CNI_IFNAME"),
        (GOOD, {"IFNAME": "sixteencharacter"}, "", 4, "CNI_IFNAME"),
        (GOOD, {"IFNAME": ".."}, "", 4, "CNI_IFNAME"),
        (GOOD, {"IFNAME": "eth%d"}, "", 4, "CNI_IFNAME"),
        (GOOD, {"NETNS": "/etc/hostname"}, "", 4, "/etc/hostname"),
        (GOOD | {"mtu": "large"}, {}, "", 7, "mtu"),
        (GOOD | {"mtu": 10}, {}, "", 7, "mtu"),
        (GOOD | {"isDefaultGateway": "yes"}, {}, "", 7, "isDefaultGateway"),
        (GOOD | {"vlan": 7}, {}, "", 2, "vlan: 7"),
        (GOOD | {"dns": "10.1.1.1"}, {}, "", 7, "dns"),
        (GOOD | {"prevResult": {"ips": ["10.1.1.1/8"]}}, {}, "", 7, "prevResult.ips"),
        (GOOD | {"network": "no such"}, {}, "", 7, "network"),
        (GOOD | {"routes": [{"gw": "10.0.0.1"}]}, {}, "", 7, "dst"),
        (GOOD | {"routes": [{"dst": "10.0.0.1/8"}]}, {}, "", 7, "10.0.0.1/8"),
        (GOOD | {"ipam": {"subnet": "192.168.1.0/24"}}, {}, "", 7, "range"),
        (GOOD | {"ipam": {"subnet": "10.32.1.0/24", "gateway": "10.32.1.1"}}, {}, "", 2, "gateway"),
        (GOOD | {"ipam": {"ranges": [{"subnet": "10.32.1.0/24"}]}}, {}, "", 7, "ranges"),
        (GOOD | {"runtimeConfig": {"mac": "01:00:00:00:00:00"}}, {}, "", 7, "MAC"),
        (GOOD | {"runtimeConfig": {"ips": ["10.32.300.1"]}}, {}, "", 7, "10.32.300.1"),
        (GOOD | {"runtimeConfig": {"ips": [7]}}, {}, "", 7, "ips"),
    ],
)  # fmt: skip
def test_bad_input_has_its_code_and_line(
    here: Runtime, config: Json | str, words: dict[str, str], drop: str, code: int, says: str
) -> None:
    good = WORDS | {"NETNS": here.netns("c1.1")}
    error = refused(lambda: here.ask("ADD", config, drop=drop, **(good | words)))
    assert (error.code, says in error.text) == (code, True), error.text


def test_what_has_no_verb_or_a_wrong_one(here: Runtime) -> None:
    done = here.run("", GOOD, drop="CNI_COMMAND")
    assert done.returncode == 0 and done.stdout == "" and "CNI plugin" in done.stderr
    assert refused(lambda: here.ask("EXPLODE", GOOD)).code == 4
    words = WORDS | {"NETNS": here.netns("c1.1")}
    assert refused(lambda: here.ask("CHECK", GOOD, **words)).code == 7
    error = refused(lambda: here.ask("CHECK", GOOD | {"prevResult": {"ips": 7, "interfaces": "x"}}, **words))
    assert error.code == 3


# -- installing ----------------------------------------------------------------------------------------


def test_what_is_installed_is_kept_renewed_and_removed(here: Runtime) -> None:
    words = ["setup-cni", "--bin-dir", str(here.bin_dir), "--conf-dir", str(here.conf_dir)]
    conflist = here.conf_dir / "10-weft.conflist"
    conflist.write_text(conflist.read_text().replace('"weft",\n  "plugins"', '"mine",\n  "plugins"'))
    plugin = here.bin_dir / "weft"
    plugin.write_text(plugin.read_text() + "# older\n")
    said = here.lab.weft("h1", words).stdout
    assert f"wrote {plugin}" in said and f"kept {conflist}" in said and '"mine"' in conflist.read_text()
    assert here.lab.weft("h1", words).stdout.startswith("unchanged")
    assert sorted(path.name for path in (*here.bin_dir.iterdir(), *here.conf_dir.iterdir())) == [
        "10-weft.conflist", "weft",
    ]  # fmt: skip
    assert here.lab.weft("h1", [*words, "--uninstall"]).stdout.count("removed") == 2
    assert here.lab.weft("h1", [*words, "--uninstall"]).stdout.count("was not there") == 2
    plugin.write_text("#!/bin/sh\n")
    said = here.lab.weft("h1", words, check=False).stderr
    assert "is not Weft's" in said and said.count("\n") == 1
    here.lab.weft("h1", [*words, "--uninstall"])
    assert plugin.read_text() == "#!/bin/sh\n"
