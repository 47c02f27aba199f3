"""A Docker Engine of our own in a lab's host: the distribution's, with one image made of busybox.

It runs in the network namespace of the host, so that its bridge and its firewall rules are that host's, and in a mount
namespace with /run and /etc/docker of its own, so that nothing of it stays on the machine.
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import time
from pathlib import Path
from typing import Self

from mesh.lab import Lab
from mesh.namespaces import NAMESPACES_DIR, LabError, wait_until

READY_TIMEOUT_S = 30.0
IMAGE = "lab:busybox"
COMMAND = shutil.which("docker", path="/usr/bin") or "docker"
"""The one that comes with the engine: a newer one asks for what that does not know."""
CONFIG = Path("/etc/docker")


class Engine:
    """Use as a context manager."""

    def __init__(self, lab: Lab, node: str, directory: Path, plugins: Path | None = None) -> None:
        """`plugins`: the folder in which it finds plugins."""
        self._plugins = plugins
        self._lab = lab
        self._node = node
        self._directory = directory
        self.socket = str(directory / "docker.sock")
        self._process: subprocess.Popen[bytes] | None = None
        self._made_config = False

    def __enter__(self) -> Self:
        if shutil.which("dockerd") is None or shutil.which("busybox") is None:
            raise LabError("dockerd or busybox is missing: install the Debian packages docker.io and busybox-static")
        self._made_config = not CONFIG.exists()
        CONFIG.mkdir(exist_ok=True)
        try:
            self.start()
            self._import()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(subprocess.SubprocessError):
            names = self("ps", "-aq").split()
            if names:
                self("rm", "-f", *names)
        self.stop()
        if self._made_config:
            CONFIG.rmdir()

    def __call__(self, *words: str) -> str:
        """The `docker` command; what it printed."""
        line = [COMMAND, "-H", f"unix://{self.socket}", *words]
        try:
            return subprocess.run(line, capture_output=True, text=True, timeout=60, check=True).stdout.strip()
        except subprocess.CalledProcessError as error:
            error.add_note(error.stderr)
            raise

    def start(self) -> None:
        CONFIG.mkdir(exist_ok=True)
        words = [
            "dockerd", "--data-root", str(self._directory / "data"), "--exec-root", str(self._directory / "exec"),
            "--pidfile", str(self._directory / "docker.pid"), "--storage-driver", "vfs", "-H", f"unix://{self.socket}",
        ]  # fmt: skip
        private = "mount -t tmpfs tmpfs /run && mount -t tmpfs tmpfs /etc/docker"
        if self._plugins is not None:
            private += f" && mkdir -p /run/docker/plugins && mount --bind {self._plugins} /run/docker/plugins"
        private += ' && exec "$@"'
        inside = ["nsenter", f"--net={NAMESPACES_DIR / self._lab.namespace(self._node)}", "--"]
        with (self._directory / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [*inside, "unshare", "--mount", "sh", "-c", private, "sh", *words], stdout=log, stderr=log
            )
        wait_until(self._answers, READY_TIMEOUT_S, f"dockerd answered; its log is {self._directory / 'log'}")

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, (self._directory / "log").read_text()[-2000:]
        with contextlib.suppress(subprocess.SubprocessError):
            return bool(self("version", "--format", "{{.Server.Version}}"))
        return False

    def stop(self) -> None:
        """The engine ends, and by default everything that it runs."""
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(20)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None

    def _import(self) -> None:
        root = self._directory / "root" / "bin"
        root.mkdir(parents=True)
        shutil.copy(str(shutil.which("busybox")), root / "busybox")
        # A static one needs nothing; where the other package is installed, its libraries come along.
        needs = subprocess.run(["ldd", str(root / "busybox")], capture_output=True, text=True, check=False).stdout
        for library in (word for word in needs.split() if word.startswith("/")):
            place = root.parent / library.lstrip("/")
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(library, place)
        for name in ("sh", "sleep", "ip", "ping"):
            (root / name).symlink_to("busybox")
        archive = subprocess.run(["tar", "-C", str(root.parent), "-c", "."], capture_output=True, check=True).stdout
        subprocess.run(
            [COMMAND, "-H", f"unix://{self.socket}", "import", "-", IMAGE], input=archive, capture_output=True,
            timeout=60, check=True,
        )  # fmt: skip

    def run_ms(self, network: str) -> float:
        """Milliseconds of a container that ends at once, from the command to its end. Raises `LabError`."""
        start = time.perf_counter()
        try:
            self("run", "--rm", "--network", network, IMAGE, "busybox", "true")
        except subprocess.CalledProcessError as error:
            raise LabError(f"docker run on {network}: {error.stderr.strip()}") from None
        return (time.perf_counter() - start) * 1e3
