"""A Docker Engine of the bench's own, in a lab's host: how long `docker run` takes on one network and on another."""

from __future__ import annotations

import shutil
import subprocess
import tarfile
import time
from pathlib import Path
from types import TracebackType

from mesh.lab import Lab
from mesh.namespaces import NAMESPACES_DIR, LabError, wait_until

READY_LIMIT_S = 30.0
IMAGE = "bench:busybox"
COMMAND = shutil.which("docker", path="/usr/bin") or "docker"
CONFIG = Path("/etc/docker")


class Engine:
    """Use as a context manager. `plugins`: the folder in which it finds plugins, outside of /run."""

    def __init__(self, lab: Lab, node: str, folder: Path, plugins: Path) -> None:
        self._lab, self._node, self._folder, self._plugins = lab, node, folder, plugins
        self.socket = str(folder / "docker.sock")
        self._made_config = False

    def __enter__(self) -> Engine:
        if shutil.which("dockerd") is None or not Path("/bin/busybox").exists():
            raise LabError("dockerd or busybox is missing: install the Debian packages docker.io and busybox-static")
        self._made_config = not CONFIG.exists()
        CONFIG.mkdir(exist_ok=True)
        words = [
            "dockerd", "--data-root", str(self._folder / "data"), "--exec-root", str(self._folder / "exec"),
            "--pidfile", str(self._folder / "docker.pid"), "--storage-driver", "vfs", "-H", f"unix://{self.socket}",
        ]  # fmt: skip
        private = (
            "mount -t tmpfs tmpfs /run && mkdir -p /run/docker/plugins && "
            f"mount --bind {self._plugins} /run/docker/plugins && mount -t tmpfs tmpfs {CONFIG} && exec \"$@\""
        )
        inside = ["nsenter", f"--net={NAMESPACES_DIR / self._lab.namespace(self._node)}", "--"]
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [*inside, "unshare", "--mount", "sh", "-c", private, "sh", *words], stdout=log, stderr=log
            )
        wait_until(lambda: self._runs("version"), READY_LIMIT_S, f"dockerd answered; its log: {self._folder / 'log'}")
        archive = self._folder / "image.tar"
        with tarfile.open(archive, "w") as tar:
            tar.add("/bin/busybox", "bin/busybox")
        self("import", str(archive), IMAGE)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._process.terminate()
        self._process.wait(20)
        if self._made_config:
            CONFIG.rmdir()

    def _runs(self, *words: str) -> bool:
        return subprocess.run(self._line(*words), capture_output=True, check=False).returncode == 0

    def _line(self, *words: str) -> list[str]:
        return [COMMAND, "-H", f"unix://{self.socket}", *words]

    def __call__(self, *words: str) -> str:
        """The `docker` command; what it printed. Raises `LabError`."""
        done = subprocess.run(self._line(*words), capture_output=True, text=True, check=False)
        if done.returncode:
            raise LabError(f"docker {' '.join(words)}: {done.stderr.strip()}")
        return done.stdout.strip()

    def run_ms(self, network: str) -> float:
        """Milliseconds of a container that ends at once, from the command to its end."""
        start = time.perf_counter()
        self("run", "--rm", "--network", network, IMAGE, "/bin/busybox", "true")
        return (time.perf_counter() - start) * 1e3
