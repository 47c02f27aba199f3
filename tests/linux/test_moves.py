"""An address that moves: containers that talked to the old owner find the new one at once."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dataplane.desired import Desired, Port
from tests.linux.hosts import Host, Lab, Space, guest_addresses, guest_mac, peer, port, remote, until

pytestmark = pytest.mark.root

MOVED_V4, MOVED_V6 = "10.32.2.1", "fd00:32::2:1"


class Three:
    """Host 1 with a client that talks to the address; hosts 2 and 3, of which one has it."""

    def __init__(self, lab: Lab) -> None:
        self.hosts: dict[int, Host] = {number: lab.host(number) for number in (1, 2, 3)}
        self.client = lab.space("c1")
        self.spaces: dict[int, Space] = {number: lab.space(f"c{number}") for number in (2, 3)}
        for host in self.hosts.values():
            host.start()

    def place(self, owner: int | None, mac: bytes, only: tuple[int, ...] = (1, 2, 3)) -> None:
        """Every host learns who has the address now (None: nobody)."""
        for number in only:
            host = self.hosts[number]
            ports: tuple[Port, ...] = (port(self.client, 1, 1),) if number == 1 else ()
            if number == owner:
                ports = (port(self.spaces[number], number, 1, mac, guest_addresses(2, 1)),)
            endpoints = tuple(remote(1, 1) for _ in range(number != 1))
            if owner is not None and owner != number:
                endpoints += (replace(remote(2, 1, mac), destination=peer(owner).destination),)
            peers = tuple(peer(other) for other in (1, 2, 3) if other != number)
            assert host.publish(Desired(host.segment(), ports, peers, (endpoints,))).faults == ()

    def reachable(self) -> bool:
        return self.client.ping(MOVED_V4, count=1) and self.client.ping(MOVED_V6, count=1)


@pytest.mark.parametrize("new_mac", [guest_mac(2, 1), guest_mac(3, 1)], ids=["same-mac", "new-mac"])
@pytest.mark.parametrize("detached", [False, True], ids=["directly", "with-a-gap"])
def test_an_address_moves_to_another_host_under_a_running_conversation(
    lab: Lab, new_mac: bytes, detached: bool
) -> None:
    """IPv4 and IPv6; the client has the old MAC in its cache, fresh and confirmed."""
    three = Three(lab)
    three.place(2, guest_mac(2, 1))
    assert three.reachable()
    if detached:
        three.place(None, guest_mac(2, 1))
    three.place(3, new_mac, only=(3, 2, 1))
    took = until(three.reachable, timeout_s=3.0)
    assert took < 0.5
    cache = three.client.run("ip", "neigh", "show", "dev", "ethwe")
    assert cache.count(new_mac.hex(":")) == 2


def test_an_announcement_stays_on_the_host(lab: Lab) -> None:
    """It is for our own containers; the other hosts make their own."""
    three = Three(lab)
    three.place(2, guest_mac(2, 1))
    assert three.reachable()
    before = three.hosts[1].run("ip", "-s", "link", "show", "weft-vx")
    three.place(2, guest_mac(3, 1), only=(1,))
    assert "STALE" in three.client.run("ip", "neigh", "show", MOVED_V4)
    after = three.hosts[1].run("ip", "-s", "link", "show", "weft-vx")
    assert before.splitlines()[5] == after.splitlines()[5]
