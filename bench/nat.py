"""A router that masquerades, between a host of a lab and the hub: what most people have at home."""

from __future__ import annotations

from mesh.lab import Lab
from mesh.namespaces import ip_batch

_RULES = """\
table ip nat {
 chain out {
  type nat hook postrouting priority srcnat;
  oifname "outside" masquerade
 }
 chain in {
  type filter hook input priority 0;
  iifname "outside" ct state new drop
 }
}
"""
"""One mapping for each inner port, whoever is spoken to; and only who was spoken to may answer."""


def put_behind_nat(lab: Lab, host: int) -> str:
    """Before its daemon runs. The address at which others will see it."""
    node, router, seen = f"h{host}", f"r{host}", lab.underlay(100 + host)
    lab.add_namespaces([router])
    hub, inside = lab.namespace("hub"), lab.namespace(router)
    ip_batch([f"link set {node} netns {inside}"], hub)
    ip_batch(
        [f"link add name {node} type veth peer name outside netns {inside}", f"link set dev {node} master hub up"], hub
    )
    commands = [
        f"link set dev {node} name inside",
        "link set dev inside up",
        f"address add 192.168.{host}.1/24 dev inside",
        "link set dev outside up",
        f"address add {seen}/24 dev outside",
    ]
    ip_batch(commands, inside)
    lab.run(router, ["sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward"])
    lab.run(router, ["nft", "-f", "-"], stdin=_RULES)
    commands = [
        "address flush dev eth0",
        f"address add 192.168.{host}.2/24 dev eth0",
        f"route add default via 192.168.{host}.1",
    ]
    ip_batch(commands, lab.namespace(node))
    return seen
