"""containerd and podman of the distribution, each in a lab's host, with folders of its own: real clients of CNI.

Both run their containers with the network that a list in their CNI folder names. containerd's `ctr` looks for it in
/etc/cni/net.d and nowhere else, so it runs in a mount namespace in which that is a folder of the lab.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tarfile
from pathlib import Path

from mesh.lab import Lab
from mesh.namespaces import NAMESPACES_DIR, wait_until

READY_TIMEOUT_S = 30.0
COMMAND_TIMEOUT_S = 60.0
DEBIAN_PLUGINS = "/usr/lib/cni"
_COMMANDS = ("sh", "sleep", "ip", "ping", "nslookup", "nc", "httpd", "mkdir")


def make_root(directory: Path) -> Path:
    """A root file system made of busybox."""
    root = directory / "rootfs"
    (root / "bin").mkdir(parents=True)
    for name in ("proc", "sys", "dev", "tmp", "etc", "run"):
        (root / name).mkdir()
    shutil.copy("/bin/busybox", root / "bin/busybox")
    for command in _COMMANDS:
        (root / "bin" / command).symlink_to("busybox")
    return root


class _Runtime:
    def __init__(self, lab: Lab, node: str, directory: Path) -> None:
        """Installs the plugin for this host's daemon."""
        self.node = node
        self._lab = lab
        self._directory = directory
        directory.mkdir(parents=True)
        self._bin, self._conf = directory / "cni-bin", directory / "cni-conf"
        self._bin.mkdir()
        for name in ("portmap", "loopback"):
            shutil.copy(f"{DEBIAN_PLUGINS}/{name}", self._bin / name)
        lab.weft(node, ["setup-cni", "--bin-dir", str(self._bin), "--conf-dir", str(self._conf)])
        self._inside = ["nsenter", f"--net={NAMESPACES_DIR / lab.namespace(node)}", "--"]

    def _run(self, argv: list[str]) -> str:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=COMMAND_TIMEOUT_S, check=False)
        assert done.returncode == 0, f"{' '.join(argv)}: {done.stdout}{done.stderr}"
        return done.stdout.strip()


class Containerd(_Runtime):
    """Use as a context manager."""

    def __enter__(self) -> Containerd:
        self._root = make_root(self._directory)
        self._address = str(self._directory / "containerd.sock")
        over = "".join(
            f"mkdir -p {self._directory}/{name} && mount -t overlay overlay -o lowerdir=/{name},"
            f"upperdir={self._directory}/{name}/up,workdir={self._directory}/{name}/work /{name} && "
            for name in ("etc", "opt")
        )
        for name in ("etc/up/cni", "etc/work", "opt/up/cni", "opt/work"):
            (self._directory / name).mkdir(parents=True)
        os.symlink(self._conf, self._directory / "etc/up/cni/net.d")
        os.symlink(self._bin, self._directory / "opt/up/cni/bin")
        words = [
            "containerd", "--root", str(self._directory / "root"), "--state", str(self._directory / "state"),
            "--address", self._address,
        ]  # fmt: skip
        with (self._directory / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [*self._inside, "unshare", "--mount", "sh", "-c", f'{over} exec "$@"', "sh", *words],
                stdout=log, stderr=log,
            )  # fmt: skip
        wait_until(self._answers, READY_TIMEOUT_S, f"containerd answered; its log is {self._directory / 'log'}")
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(AssertionError, subprocess.SubprocessError):
            for name in self("task", "ls", "-q").split():
                self.remove(name)
        self._process.terminate()
        self._process.wait(10)

    def _answers(self) -> bool:
        assert self._process.poll() is None, (self._directory / "log").read_text()[-2000:]
        try:
            return bool(self("version"))
        except AssertionError:
            return False

    def __call__(self, *words: str) -> str:
        """The `ctr` command; what it printed."""
        inside = ["nsenter", "-t", str(self._process.pid), "--mount", "--net", "--"]
        return self._run([*inside, "ctr", "--address", self._address, *words])

    def run(self, name: str, *words: str, publish: str = "") -> None:
        """A container in the background."""
        assert not publish, "ctr publishes nothing"
        self("run", "--detach", "--cni", "--env", "PATH=/bin", "--rootfs", str(self._root), name, *words)

    def execute(self, name: str, *words: str) -> str:
        return self("task", "exec", "--exec-id", f"e{os.urandom(4).hex()}", name, *words)

    def remove(self, name: str) -> None:
        self("task", "kill", "--signal", "9", name)
        self("task", "delete", "--force", name)
        self("container", "delete", name)


class Podman(_Runtime):
    """Use as a context manager."""

    def __enter__(self) -> Podman:
        (self._directory / "containers.conf").write_text(
            f'[network]\nnetwork_backend = "cni"\ncni_plugin_dirs = ["{self._bin}"]\n'
            f'network_config_dir = "{self._conf}"\ndefault_network = "weft"\n'
            f'[engine]\ncgroup_manager = "cgroupfs"\nevents_logger = "file"\n'
            '[containers]\ndefault_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]\n'
        )
        root = make_root(self._directory)
        archive = self._directory / "rootfs.tar"
        with tarfile.open(archive, "w") as tar:
            tar.add(root, arcname=".")
        self("import", str(archive), "lab:busybox")
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(AssertionError, subprocess.SubprocessError):
            self("rm", "--all", "--force", "--time", "0")

    def __call__(self, *words: str) -> str:
        """The `podman` command; what it printed."""
        where = ["--root", str(self._directory / "root"), "--runroot", str(self._directory / "run")]
        options = [*where, "--storage-driver", "vfs", "--runtime", "runc"]
        settings = ["env", f"CONTAINERS_CONF={self._directory / 'containers.conf'}", f"TMPDIR={self._directory}"]
        return self._run([*settings, *self._inside, "podman", *options, *words])

    def run(self, name: str, *words: str, publish: str = "") -> None:
        """A container in the background."""
        ports = ["--publish", publish] if publish else []
        self("run", "--detach", "--name", name, "--network", "weft", *ports, "lab:busybox", *words)

    def execute(self, name: str, *words: str) -> str:
        return self("exec", name, *words)

    def remove(self, name: str) -> None:
        self("rm", "--force", "--time", "0", name)
