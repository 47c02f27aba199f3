"""A Docker Engine in a lab's host, with what tests ask of it and of its containers."""

from __future__ import annotations

import subprocess
import time

from bench.engine import IMAGE, Engine
from mesh.namespaces import wait_until


class RealDocker(Engine):
    """Use as a context manager."""

    def run(self, name: str, *options: str) -> str:
        """A container that sleeps; its id."""
        return self("run", "-d", "--name", name, "--stop-timeout", "0", *options, IMAGE, "sleep", "100000")

    def inside(self, name: str, *words: str) -> subprocess.CompletedProcess[str]:
        """A command in a container's network, run by the machine's tools."""
        pid = self("inspect", "--format", "{{.State.Pid}}", name)
        command = ["nsenter", f"--net=/proc/{pid}/ns/net", "--", *words]
        return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)

    def addresses(self, name: str) -> list[str]:
        """What is set on `ethwe`, link-local addresses aside."""
        words = self.inside(name, "ip", "-br", "address", "show", "dev", "ethwe").stdout.split()
        return sorted(word for word in words[2:] if not word.startswith("fe80"))

    def mac(self, name: str) -> str:
        return self.inside(name, "ip", "-br", "link", "show", "dev", "ethwe").stdout.split()[2]

    def back_within(self, name: str, wanted: list[str], limit_s: float) -> float:
        """Seconds until the container has its addresses."""
        begun = time.monotonic()
        wait_until(lambda: self.addresses(name) == sorted(wanted), limit_s, f"{name} had {wanted} again")
        return time.monotonic() - begun
