"""Offloads of the VXLAN device, as this kernel has them: switched off and on again, and seen by others."""

from __future__ import annotations

import errno
import re
from dataclasses import replace
from itertools import chain, combinations

import pytest

from dataplane.desired import VXLAN_CHECKSUM, VXLAN_OFFLOADS
from dataplane.linux import features
from tests.linux.hosts import Lab, Pair, Space, differences

pytestmark = pytest.mark.root

SUBSETS = list(chain.from_iterable(combinations(VXLAN_OFFLOADS, count) for count in range(3)))


def in_effect(space: Space) -> set[str]:
    """What ethtool says that the device does."""
    return set(re.findall(r"^\s*(\S+): on", space.run("ethtool", "-k", "weft-vx"), re.MULTILINE))


@pytest.fixture
def space(lab: Lab) -> Space:
    made = lab.space("f")
    made.run("ip", "link", "add", "weft-vx", "type", "vxlan", "id", "7", "dstport", "6784")
    return made


@pytest.mark.parametrize("off", SUBSETS, ids=lambda off: "+".join(off) or "none")
def test_what_is_switched_off_is_off_and_nothing_else_is(space: Space, off: tuple[str, ...]) -> None:
    """Whatever it was before. Without checksums the kernel cuts too, whoever asks for it."""
    everything = in_effect(space)
    for before in SUBSETS:
        space.inside(lambda before=before: features.set_offloads_off("weft-vx", before))
        space.inside(lambda: features.set_offloads_off("weft-vx", off))
        assert space.inside(lambda: features.offloads_off("weft-vx")) == off
        named = {feature for name in off for feature in features.FEATURES[name]}
        left = in_effect(space)
        assert not left & named
        if VXLAN_CHECKSUM in off:
            assert not left & {feature for features_of in features.FEATURES.values() for feature in features_of}
        else:
            assert everything - left <= named | {"tcp-segmentation-offload", "tx-tcp-mangleid-segmentation"}


def test_a_device_that_is_not_there_is_said_to_be_so(space: Space) -> None:
    """And nothing works it."""
    with pytest.raises(OSError) as raised:
        space.inside(lambda: features.offloads_off("weft-no"))
    assert raised.value.errno == errno.ENODEV
    assert space.inside(lambda: features.driver_of("weft-no")) == ""
    assert space.inside(lambda: features.driver_of("weft-vx")).startswith("vxlan")


def test_offloads_follow_what_is_wanted(pair: Pair) -> None:
    """Off while wanted off, on again after; and packets pass all the while."""
    for off in (*SUBSETS, ()):
        desired = replace(pair.desired_a, segment=replace(pair.desired_a.segment, offloads_off=off))
        assert pair.a.publish(desired).faults == ()
        assert differences(pair.a, desired) == []
        assert ("tx-checksum-ip-generic" in in_effect(pair.a)) == (VXLAN_CHECKSUM not in off)
        assert ("tx-tcp-segmentation" in in_effect(pair.a)) == (not off)
        assert pair.ca.ping("10.32.2.1", "-s", "1400") and pair.ca.ping("fd00:32::2:1")
