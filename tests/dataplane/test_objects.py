"""Objects as found against objects as wanted: what needs no operation."""

from __future__ import annotations

from dataplane.objects import Guest, GuestAddress, Unavailable, Veth, fits

WANTED = Guest("ethwe", bytes.fromhex("020000000001"), 1450)


def test_what_does_not_matter_fits() -> None:
    """Settings nobody asked for, kernels without IPv6, addresses that somebody set before us, things not to be had."""
    assert fits(WANTED, replace_guest(WANTED, ipv6=False)) and fits(WANTED, replace_guest(WANTED, accept_ra=None))
    assert not fits(WANTED, replace_guest(WANTED, accept_ra=1)) and not fits(WANTED, replace_guest(WANTED, mtu=1))
    assert not fits(replace_guest(WANTED, ipv6=True), replace_guest(WANTED, ipv6=False))
    assert fits(GuestAddress(), GuestAddress(ours=False))
    assert fits(True, Unavailable("no such thing here"))
    assert not fits(Veth(1450, (1, 2)), (1450, (1, 2)))  # type: ignore[arg-type]


def replace_guest(guest: Guest, **changes: object) -> Guest:
    return guest._replace(**changes)  # type: ignore[arg-type]
