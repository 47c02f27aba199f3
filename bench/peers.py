"""The other overlays: tinc, fastd and openvpn of the distribution, wireguard-go and nebula at their newest.

`python -m bench peers` builds those two with Go where Go is there, into `bench/.peers`, and shows what there is;
`make bench-peers` installs the packages first. Knows each program's configuration and nothing of measures. The one idea
needed to read it: every peer runs as its documentation says, with the fastest cipher it offers by name where there is a
choice, so that none is beaten by its settings.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import ClassVar

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from bench.contestants import Contestant
from bench.harness import say
from bench.underlay import BRIDGE, MTU, World
from mesh.namespaces import LabError, ip_batch, wait_until

BUILT_DIR = Path(__file__).resolve().parent / ".peers"
DEVICE_TIMEOUT_S = 10.0
BUILD_TIMEOUT_S = 600.0
OLDER_TRIED_MAX = 8

GO_PROGRAMS = (
    ("golang.zx2c4.com/wireguard", ("",), ("wireguard",)),
    ("github.com/slackhq/nebula", ("/cmd/nebula", "/cmd/nebula-cert"), ("nebula", "nebula-cert")),
)
"""Module, packages in it, and what they are called when built."""


class Peer(Contestant):
    """A program of somebody else."""

    is_peer = True
    programs: ClassVar[tuple[tuple[str, ...], ...]]
    """Each by all its names, ours first: the one built newest, then the distribution's."""
    package: ClassVar[str]

    def missing(self) -> str | None:
        absent = [names[-1] for names in self.programs if find(names) is None]
        if not absent:
            return None
        return f"{' and '.join(absent)} not installed: make bench-peers"

    def program(self, index: int = 0) -> str:
        path = find(self.programs[index])
        assert path is not None, "missing() was to be asked first"
        return path

    def version(self) -> str:
        return described(self.program(), self.package)

    def wait_device(self, world: World, host: str, name: str) -> None:
        has_device = functools.partial(world.has_device, host, name)
        wait_until(has_device, DEVICE_TIMEOUT_S, f"{self.name} made its device on {host}")

    def bridge(self, world: World, host: int, device: str) -> None:
        """Its TAP becomes a port of the container's bridge."""
        self.wait_device(world, f"h{host}", device)
        ip_batch([f"link set dev {device} master {BRIDGE} up"], world.lab.namespace(f"h{host}"))


def find(names: tuple[str, ...]) -> str | None:
    """Ours, or what is in the PATH."""
    for name in names:
        built = BUILT_DIR / name
        if built.is_file():
            return str(built)
        if (found := shutil.which(name)) is not None:
            return found
    return None


def described(path: str, package: str) -> str:
    """The version of a program: the module it was built from, or the package it came with."""
    if Path(path).parent == BUILT_DIR:
        try:
            return (BUILT_DIR / f"{Path(path).name}.version").read_text().strip()
        except OSError:
            return "built here, version unknown"
    show = ["dpkg-query", "-W", "-f", "${Version}", package]
    try:
        done = subprocess.run(show, capture_output=True, text=True, timeout=10, check=False)
    except OSError:
        return "installed, version unknown"
    return f"{done.stdout.strip()} (package {package})" if done.returncode == 0 else "installed, version unknown"


# Layer 2: a TAP on the container's bridge


class Tinc(Peer):
    name = "tinc"
    title = "tinc"
    how = "mode switch, its default cipher (AES-256-CBC, SHA-256)"
    encrypted = True
    programs = (("tincd",),)
    package = "tinc"
    SETTLED = re.compile(r"h\d at .* pmtu (\d+) \(min (\d+) max (\d+)\)")
    SETTLE_TIMEOUT_S = 45.0

    def build(self, world: World) -> None:
        keys = {host: rsa.generate_private_key(public_exponent=65537, key_size=2048) for host in (1, 2)}
        for host in (1, 2):
            world.plug_container(host, MTU)
            directory = world.lab.directory / f"h{host}" / "tinc"
            (directory / "hosts").mkdir(parents=True)
            config = ["Mode = switch", f"Name = h{host}", "AddressFamily = ipv4"]
            config += ["DeviceType = tap", "Interface = tinc0", *(["ConnectTo = h1"] if host == 2 else [])]
            (directory / "tinc.conf").write_text("\n".join(config) + "\n")
            private = keys[host].private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption())
            _write_secret(directory / "rsa_key.priv", private)
            for each, key in keys.items():
                public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.PKCS1).decode()
                (directory / "hosts" / f"h{each}").write_text(f"Address = {world.lab.underlay(each)}\n{public}")
            world.start(f"h{host}", [self.program(), "-D", "-c", str(directory), f"--pidfile={directory}/pid"])
        for host in (1, 2):
            self.bridge(world, host, "tinc0")

    def wait(self, world: World) -> None:
        """It looks for the path's MTU for half a minute, and is slow until then; on SIGUSR2 it tells how far it is."""
        super().wait(world)
        for host in world.lab.host_nodes():
            is_settled = functools.partial(self._is_settled, world, host)
            wait_until(is_settled, self.SETTLE_TIMEOUT_S, f"tinc on {host} had found the path's MTU")

    def _is_settled(self, world: World, host: str) -> bool:
        pid = int((world.lab.directory / host / "tinc" / "pid").read_text().split()[0])
        os.kill(pid, signal.SIGUSR2)
        time.sleep(0.5)
        seen = self.SETTLED.findall((world.lab.directory / host / "overlay.log").read_text())
        others = [(least, most) for pmtu, least, most in seen if int(least) > 0]
        return bool(others) and others[-1][0] == others[-1][1]


class Fastd(Peer):
    name = "fastd"
    title = "fastd"
    how = "mode tap, salsa2012+umac"
    encrypted = True
    programs = (("fastd",),)
    package = "fastd"
    OVERHEAD = 74

    def build(self, world: World) -> None:
        keys = {host: self._keys() for host in (1, 2)}
        for host in (1, 2):
            world.plug_container(host, MTU - self.OVERHEAD)
            # Only one side dials: two handshakes that meet cost it some twenty seconds.
            remote = f" remote {world.lab.underlay(1)}:10000;" if host == 2 else ""
            config = [
                "log level warn;",
                'interface "fastd0";',
                "mode tap;",
                'method "salsa2012+umac";',
                f"bind {world.lab.underlay(host)}:10000;",
                f"mtu {MTU - self.OVERHEAD};",
                f'secret "{keys[host][0]}";',
                f'peer "other" {{ key "{keys[3 - host][1]}";{remote} }}',
            ]
            path = world.lab.directory / f"h{host}" / "fastd.conf"
            _write_secret(path, ("\n".join(config) + "\n").encode())
            world.start(f"h{host}", [self.program(), "--config", str(path)])
        for host in (1, 2):
            self.bridge(world, host, "fastd0")

    def _keys(self) -> tuple[str, str]:
        done = subprocess.run(
            [self.program(), "--generate-key"], capture_output=True, text=True, timeout=20, check=False
        )
        found = dict(re.findall(r"(Secret|Public): ([0-9a-f]{64})", done.stdout))
        if set(found) != {"Secret", "Public"}:
            raise LabError(f"fastd made no keys: {done.stderr.strip()[-200:]}")
        return found["Secret"], found["Public"]


class Openvpn(Peer):
    name = "openvpn"
    title = "openvpn"
    how = "peer to peer, udp, tap, AES-256-GCM, no kernel offload"
    encrypted = True
    programs = (("openvpn",),)
    package = "openvpn"

    def build(self, world: World) -> None:
        prints = {}
        for host in (1, 2):
            directory = world.lab.directory / f"h{host}"
            prints[host] = self._certificate(directory)
        for host in (1, 2):
            directory = world.lab.directory / f"h{host}"
            world.plug_container(host, MTU)
            command = [self.program(), "--dev", "ovpn0", "--dev-type", "tap", "--proto", "udp4", "--verb", "1"]
            command += ["--local", world.lab.underlay(host), "--data-ciphers", "AES-256-GCM", "--disable-dco"]
            command += ["--cert", str(directory / "cert.pem"), "--key", str(directory / "key.pem")]
            command += ["--peer-fingerprint", prints[3 - host]]
            if host == 1:
                command += ["--tls-server", "--dh", "none"]
            else:
                command += ["--tls-client", "--remote", world.lab.underlay(1)]
            world.start(f"h{host}", command)
        for host in (1, 2):
            self.bridge(world, host, "ovpn0")

    def _certificate(self, directory: Path) -> str:
        """A self-signed one and its key, as files; its fingerprint."""
        import datetime

        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, directory.name)])
        now = datetime.datetime.now(datetime.UTC)
        day = datetime.timedelta(days=1)
        builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        certificate = builder.not_valid_before(now - day).not_valid_after(now + day).sign(key, hashes.SHA256())
        (directory / "cert.pem").write_bytes(certificate.public_bytes(Encoding.PEM))
        private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        _write_secret(directory / "key.pem", private)
        digest = hashlib.sha256(certificate.public_bytes(Encoding.DER)).hexdigest().upper()
        return ":".join(digest[at : at + 2] for at in range(0, len(digest), 2))


# Layer 3: routed between the container's bridge and a TUN


class WireguardGo(Peer):
    name = "wireguard-go"
    title = "wireguard-go"
    how = "ChaCha20-Poly1305, its default MTU; layer 3"
    encrypted = True
    programs = (("wireguard", "wireguard-go"),)
    package = "wireguard-go"
    OVERHEAD = 80
    PORT = 51820
    SOCKETS = Path("/var/run/wireguard")

    def build(self, world: World) -> None:
        keys = {host: X25519PrivateKey.generate() for host in (1, 2)}
        for host in (1, 2):
            device = self._device(host)
            world.start(f"h{host}", [self.program(), "-f", device], {"LOG_LEVEL": "error"})
        for host in (1, 2):
            device = self._device(host)
            wait_until((self.SOCKETS / f"{device}.sock").exists, DEVICE_TIMEOUT_S, f"wireguard-go served {device}")
            other = keys[3 - host].public_key().public_bytes(Encoding.Raw, PublicFormat.Raw).hex()
            settings = {
                "set": "1",
                "private_key": keys[host].private_bytes(Encoding.Raw, PrivateFormat.Raw, NoEncryption()).hex(),
                "listen_port": str(self.PORT),
                "public_key": other,
                "endpoint": f"{world.lab.underlay(3 - host)}:{self.PORT}",
                "allowed_ip": f"10.32.{3 - host}.0/24",
            }
            self._set(device, settings)
            mtu = MTU - self.OVERHEAD
            ip_batch([f"link set dev {device} mtu {mtu} up"], world.lab.namespace(f"h{host}"))
            world.route_container(host, mtu, device)

    def _device(self, host: int) -> str:
        """Its control socket is a file whose name all namespaces share, so ours carries our process id."""
        return f"wb{os.getpid()}h{host}"

    def _set(self, device: str, settings: dict[str, str]) -> None:
        with socket.socket(socket.AF_UNIX) as control:
            control.settimeout(DEVICE_TIMEOUT_S)
            control.connect(str(self.SOCKETS / f"{device}.sock"))
            control.sendall("".join(f"{key}={value}\n" for key, value in settings.items()).encode() + b"\n")
            said = control.recv(4096).decode()
        if "errno=0" not in said:
            raise LabError(f"wireguard-go refused its configuration: {said.strip()}")


class Nebula(Peer):
    name = "nebula"
    title = "nebula"
    how = "AES-256-GCM, its default MTU of 1300; layer 3"
    encrypted = True
    programs = (("nebula",), ("nebula-cert",))
    package = "nebula"
    INNER_MTU = 1300
    PORT = 4242

    def build(self, world: World) -> None:
        authority = world.lab.directory / "h1"
        ca = ["-out-crt", str(authority / "ca.crt"), "-out-key", str(authority / "ca.key")]
        self._certify(["ca", "-name", "bench", *ca])
        for host in (1, 2):
            directory = world.lab.directory / f"h{host}"
            signer = ["-ca-crt", str(authority / "ca.crt"), "-ca-key", str(authority / "ca.key")]
            out = ["-out-crt", str(directory / "host.crt"), "-out-key", str(directory / "host.key")]
            inner = ["-name", f"h{host}", "-ip", f"10.42.0.{host}/24", "-subnets", f"10.32.{host}.0/24"]
            self._certify(["sign", *signer, *inner, *out])
        for host in (1, 2):
            directory, other = world.lab.directory / f"h{host}", 3 - host
            anything = [{"port": "any", "proto": "any", "host": "any"}]
            config = {
                "pki": {
                    "ca": str(authority / "ca.crt"),
                    "cert": str(directory / "host.crt"),
                    "key": str(directory / "host.key"),
                },
                "static_host_map": {f"10.42.0.{other}": [f"{world.lab.underlay(other)}:{self.PORT}"]},
                "lighthouse": {"am_lighthouse": True},
                "listen": {"host": "0.0.0.0", "port": self.PORT},
                "cipher": "aes",
                "tun": {
                    "dev": "nebula1",
                    "mtu": self.INNER_MTU,
                    "tx_queue": 500,
                    "unsafe_routes": [{"route": f"10.32.{other}.0/24", "via": f"10.42.0.{other}"}],
                },
                "firewall": {"default_local_cidr_any": True, "inbound": anything, "outbound": anything},
                "logging": {"level": "error"},
            }
            path = directory / "nebula.yml"
            path.write_text(json.dumps(config))  # every JSON text is YAML
            world.start(f"h{host}", [self.program(), "-config", str(path)])
        for host in (1, 2):
            self.wait_device(world, f"h{host}", "nebula1")
            world.route_container(host, self.INNER_MTU, "nebula1")

    def _certify(self, arguments: list[str]) -> None:
        command = [self.program(1), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
        if done.returncode != 0:
            raise LabError(f"nebula-cert {arguments[0]}: {(done.stderr or done.stdout).strip()[-200:]}")


def _write_secret(path: Path, content: bytes) -> None:
    path.touch(mode=0o600)
    path.write_bytes(content)


# Building the two that are wanted at their newest


def main() -> int:
    """Build what can be built, then show what is there. 0 also where some are missing: the bench says which."""
    if shutil.which("go") is None:
        say("no go here: wireguard-go and nebula are the distribution's, if any")
    else:
        for module, packages, names in GO_PROGRAMS:
            _build(module, packages, names)
    for contestant in (Tinc(), Fastd(), Openvpn(), WireguardGo(), Nebula()):
        print(f"{contestant.name:14}{contestant.missing() or contestant.version()}")
    return 0


def _build(module: str, packages: tuple[str, ...], names: tuple[str, ...]) -> None:
    """The newest that this Go can build; a module may ask for a newer Go than is here."""
    BUILT_DIR.mkdir(exist_ok=True)
    refused = ""
    for version in ("latest", *reversed(_versions(module)[-OLDER_TRIED_MAX:])):
        say(f"== building {module}@{version}")
        wanted = [f"{module}{package}@{version}" for package in packages]
        done = _go(["install", *wanted])
        if done.returncode == 0:
            for name in names:
                built = re.search(r"^\s*mod\s+\S+\s+(\S+)", _go(["version", "-m", str(BUILT_DIR / name)]).stdout, re.M)
                told = f"{built[1] if built else version}{refused}"
                (BUILT_DIR / f"{name}.version").write_text(told + "\n")
            return
        why = (done.stderr.strip().splitlines() or ["it failed"])[-1]
        say(f"   {why}")
        if not refused and (newest := re.search(r"@(v[0-9.]+) requires (go >= [0-9.]+)", done.stderr)):
            refused = f" (the newest, {newest[1]}, requires {newest[2]})"
    say(f"   {module} could not be built")


def _versions(module: str) -> list[str]:
    """Those that were ever released, the oldest first."""
    return _go(["list", "-m", "-versions", module]).stdout.split()[1:]


def _go(arguments: list[str]) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "GOBIN": str(BUILT_DIR)}
    command = ["go", *arguments]
    with contextlib.chdir(BUILT_DIR):  # outside of any module
        return subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=BUILD_TIMEOUT_S, check=False
        )
