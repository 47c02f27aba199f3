"""Changes of this host's addresses as news."""

from __future__ import annotations

import os
import select
from collections.abc import Iterator
from pathlib import Path

import pytest

from dataplane.linux.underlay import AddressWatch
from tests.linux.hosts import Space, run

pytestmark = pytest.mark.root


@pytest.fixture
def space() -> Iterator[Space]:
    made = Space(f"wt{os.getpid()}addresses")
    yield made
    run("ip", "netns", "delete", made.name)


def heard(watch: AddressWatch, timeout_s: float) -> bool:
    if not select.select([watch], [], [], timeout_s)[0]:
        return False
    watch.taken()
    return True


def test_every_change_is_heard_once_and_only_in_its_own_namespace(space: Space) -> None:
    """Both families, coming and going; a watch that is closed leaves no descriptor behind."""
    before = os.listdir("/proc/self/fd")
    watch, elsewhere = space.inside(AddressWatch), AddressWatch()
    try:
        for change in (
            ("add", "10.1.2.3/32"), ("add", "fd00::7/128"), ("delete", "10.1.2.3/32"), ("delete", "fd00::7/128"),
        ):  # fmt: skip
            space.run("ip", "address", change[0], change[1], "dev", "lo")
            assert heard(watch, 2.0), change
            assert not heard(watch, 0.0)
        assert not heard(elsewhere, 0.0)
    finally:
        watch.close()
        elsewhere.close()
    assert os.listdir("/proc/self/fd") == before


def test_more_changes_than_its_buffer_takes_are_still_news(space: Space, tmp_path: Path) -> None:
    watch = space.inside(AddressWatch)
    try:
        batch = tmp_path / "batch"
        batch.write_text("".join(f"address add 10.{a}.{b}.1/32 dev lo\n" for a in range(1, 31) for b in range(250)))
        space.run("ip", "-batch", str(batch))
        assert heard(watch, 2.0)
        while heard(watch, 0.0):
            pass
        space.run("ip", "address", "add", "10.99.0.1/32", "dev", "lo")
        assert heard(watch, 2.0)
    finally:
        watch.close()
