"""The mount table as news of named namespaces."""

from __future__ import annotations

import os
import select
import subprocess
import time
from collections.abc import Iterator

import pytest

from dataplane.linux import find_namespace
from dataplane.linux.mounts import MountWatch

pytestmark = pytest.mark.root


@pytest.fixture
def name() -> Iterator[str]:
    made = f"wt{os.getpid()}mounts"
    yield made
    subprocess.run(["ip", "netns", "delete", made], check=False, stderr=subprocess.DEVNULL)


def heard(watch: MountWatch, timeout_s: float) -> bool:
    if not select.select([watch], [], [], timeout_s)[0]:
        return False
    watch.taken()
    return True


def test_a_named_namespace_is_heard_of_when_it_can_be_used(name: str) -> None:
    """And when its name has gone; a watch that is closed leaves no descriptor behind."""
    before = os.listdir("/proc/self/fd")
    watch = MountWatch()
    try:
        for _ in range(3):
            adding = subprocess.Popen(["ip", "netns", "add", name])
            deadline = time.monotonic() + 5
            while not os.path.ismount(f"/run/netns/{name}"):
                assert heard(watch, 5) and time.monotonic() < deadline
            assert find_namespace(name).path == f"/run/netns/{name}"
            adding.wait()
            while heard(watch, 0.1):
                pass  # what adding a first name does to the folder itself, and whatever else goes on
            subprocess.run(["ip", "netns", "delete", name], check=True)
            assert heard(watch, 5)
    finally:
        watch.close()
    assert os.listdir("/proc/self/fd") == before
