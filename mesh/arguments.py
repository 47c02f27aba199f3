"""The words a person may write, and what each looks like when it is right.

Peers to connect to, addresses, labels, names. Every function takes text and returns it in the one form the rest of Weft
uses, or raises `ValueError` with one line that says what is wrong and what would be right. The command line uses them
to answer at once, the API to answer anybody; both say the same. Knows nothing of who exists.
"""

from __future__ import annotations

import ipaddress

DEFAULT_PORT = 6783
PORT_MAX = 65535

ADDRESSES_MAX = 16
LABELS_MAX = 16
NAMES_MAX = 8
"""With these an endpoint stays well within one 8 KB page of its owner's document."""
PEERS_MAX = 256
LABEL_KEY_MAX = 128
LABEL_VALUE_MAX = 253
"""The longest name of a pod, which is a label of it."""
HOST_NAME_MAX = 253
HOST_LABEL_MAX = 63
NICKNAME_MAX = 64
OFFLOADS = ("tap", "udp-segment", "udp-gro", "vxlan-checksum", "vxlan-segment")
"""Those of `dataplane.sleeve.control` and `dataplane.desired`, which the command does not import."""
TARGET_BYTES_MAX = 4096
"""PATH_MAX of Linux."""

RING_DIGITS = 32

DEFAULT_NETWORK = "weft"

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Want = ipaddress.IPv4Interface | ipaddress.IPv6Interface | Network | None
"""An address, a subnet to give one from, or None: the default subnet."""

_ALNUM = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789")
_HOST_CHARS = _ALNUM | frozenset("-_")
_HEX = frozenset("0123456789abcdef")
_LABEL_KEY_CHARS = _ALNUM | frozenset("-_./")

SUBNET_PREFIX = "net:"
DEFAULT_SUBNET = "net:default"
SUBNET_ADDRESSES_MIN = 4
"""Two of them are no host's; fewer than this many are not worth a subnet."""

EVERYBODY = ipaddress.IPv4Address("255.255.255.255")
_NO_HOSTS = tuple(
    (ipaddress.ip_network(text), what)
    for text, what in (
        ("0.0.0.0/8", "this-network"), ("127.0.0.0/8", "loopback"), ("169.254.0.0/16", "link-local"),
        ("224.0.0.0/4", "multicast"), ("::1/128", "loopback"), ("::ffff:0:0/96", "IPv4-mapped"),
        ("fe80::/10", "link-local"), ("ff00::/8", "multicast"),
    )
)  # fmt: skip


def parse_peer(text: str) -> str:
    """`host`, `host:port`, `10.1.2.3`, `fd00::3` or `[fd00::3]:port`, as `format_peer` writes it."""
    return format_peer(*split_peer(text))


def split_peer(text: str) -> tuple[str, int | None]:
    """Host (name or bare address) and port of a peer to connect to, None where no port is given."""
    if text.startswith("["):
        inside, bracket, after = text[1:].partition("]")
        if not bracket or (after and not after.startswith(":")):
            raise ValueError(f"{text!r} is not a peer: an IPv6 address with a port is written [fd00::3]:6783")
        return _peer_address(inside, text), _port(after[1:], text) if after else None
    if text.count(":") > 1:
        return _peer_address(text, text), None
    host, colon, port = text.partition(":")
    return _host(host, text), _port(port, text) if colon else None


def format_peer(host: str, port: int | None) -> str:
    if port is None:
        return host
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def parse_underlay_address(text: str) -> str:
    """An address of a host, for `--host`."""
    return _underlay_address(text, text)


def parse_advertised(text: str) -> str:
    """An address of this host that others can use, for `--advertise`."""
    address = _underlay_address(text, text)
    if ":" in address and ipaddress.ip_address(address).is_link_local:
        raise ValueError(f"{text!r} is a link-local address, which means nothing on another host: give another one")
    return address


def parse_address(text: str) -> ipaddress.IPv4Interface | ipaddress.IPv6Interface:
    """An overlay address with its length: `10.32.1.5/24`, `ip:10.32.1.5/24`, `fd00:32::5/64`."""
    if text.startswith(SUBNET_PREFIX):
        raise ValueError(f"{text!r} names a subnet, and an address is needed here, such as 10.32.1.5/24")
    bare = text.removeprefix("ip:")
    if "/" not in bare:
        raise ValueError(f"{text!r} has no length: an address is written 10.32.1.5/24 or fd00:32::5/64")
    length = bare.rpartition("/")[2]
    if not (length.isascii() and length.isdigit()):  # ipaddress would take a netmask too
        raise ValueError(f"{text!r} is not an address with its length, such as 10.32.1.5/24 or fd00:32::5/64")
    try:
        interface = ipaddress.ip_interface(bare)
    except ValueError:
        raise ValueError(f"{text!r} is not an address with its length, such as 10.32.1.5/24 or fd00:32::5/64") from None
    _check_usable(interface, text)
    return interface


def parse_addresses(texts: list[str]) -> list[ipaddress.IPv4Interface | ipaddress.IPv6Interface]:
    """The addresses of one command, in their order, each once."""
    if len(texts) > ADDRESSES_MAX:
        raise ValueError(f"{len(texts)} addresses are too many for one container; at most {ADDRESSES_MAX}")
    interfaces = [parse_address(text) for text in texts]
    seen = set()
    for interface in interfaces:
        if interface.ip in seen:
            raise ValueError(f"the address {interface.ip} is given twice; give it once")
        seen.add(interface.ip)
    return interfaces


def parse_wants(texts: list[str]) -> list[Want]:
    """What an `attach` or `expose` asks for, in its order, each once."""
    if len(texts) > ADDRESSES_MAX:
        raise ValueError(f"{len(texts)} addresses are too many for one container; at most {ADDRESSES_MAX}")
    addresses = iter(parse_addresses([text for text in texts if not text.startswith(SUBNET_PREFIX)]))
    subnets = [text for text in texts if text.startswith(SUBNET_PREFIX)]
    parsed = [parse_subnet(text) for text in subnets]
    for text, subnet in zip(subnets, parsed, strict=True):
        if parsed.count(subnet) > 1:
            raise ValueError(f"{text} is given twice, and one address of a subnet is what one container gets")
    rest = iter(parsed)
    return [next(rest) if text.startswith(SUBNET_PREFIX) else next(addresses) for text in texts]


def format_want(want: Want) -> str:
    """As `parse_wants` reads it."""
    if want is None:
        return DEFAULT_SUBNET
    is_address = isinstance(want, (ipaddress.IPv4Interface, ipaddress.IPv6Interface))
    return str(want) if is_address else f"{SUBNET_PREFIX}{want}"


def parse_subnet(text: str) -> Network | None:
    """`net:10.32.2.0/24`, `net:fd00:32::/64`; None for `net:default`."""
    if text == DEFAULT_SUBNET:
        return None
    network = parse_cidr(text.removeprefix(SUBNET_PREFIX))
    if network.num_addresses < SUBNET_ADDRESSES_MIN:
        longest = network.max_prefixlen - 2
        raise ValueError(f"{text!r} has too few addresses to give one from it: a subnet is a /{longest} or larger")
    return network


def parse_cidr(text: str) -> Network:
    """A network that hosts can have addresses of, written with its length."""
    address, slash, length = text.partition("/")
    if not slash:
        raise ValueError(f"{text!r} has no length: a network is written 10.32.0.0/12 or fd00:32::/64")
    try:
        if not (length.isascii() and length.isdigit()):  # ipaddress would take a netmask too
            raise ValueError
        interface = ipaddress.ip_interface(text)
    except ValueError:
        raise ValueError(f"{text!r} is not a network, such as 10.32.0.0/12 or fd00:32::/64") from None
    network = interface.network
    if "%" in address:
        raise ValueError(f"{text!r} names an interface, and a network of containers has none: leave it out")
    if interface.ip != network.network_address:
        raise ValueError(f"{text!r} is an address of a network: the network itself is written {network}")
    for refused, what in _NO_HOSTS:
        if network.version == refused.version and network.overlaps(refused):
            raise ValueError(f"{text!r} contains {what} addresses ({refused}), which no container can have")
    return network


def parse_mac(text: str) -> bytes:
    """One that an interface can have. Raises ValueError."""
    try:
        mac = bytes.fromhex(text.replace(":", "").replace("-", ""))
    except ValueError:
        mac = b""
    if len(mac) != 6 or mac[0] & 1 or not any(mac):
        raise ValueError(f"{text!r} is not the MAC of an interface, such as 02:42:ac:11:00:02")
    return mac


def parse_label(text: str) -> tuple[str, str]:
    """`key=value`."""
    key, equals, value = text.partition("=")
    if not equals:
        raise ValueError(f"{text!r} is not a label: it is written key=value")
    return check_label(key, value)


def check_label(key: str, value: str) -> tuple[str, str]:
    if not key or len(key) > LABEL_KEY_MAX or not _LABEL_KEY_CHARS.issuperset(key):
        raise ValueError(
            f"{key!r} is not the key of a label: 1 to {LABEL_KEY_MAX} letters, digits and - _ . / are allowed"
        )
    if len(value) > LABEL_VALUE_MAX or not _is_plain_text(value):
        raise ValueError(f"the value of label {key} must be at most {LABEL_VALUE_MAX} printable characters")
    return key, value


def parse_name(text: str) -> str:
    """A host name of an endpoint, in lower case and without a final dot."""
    name = text.lower().removesuffix(".")
    problem = _host_name_problem(name)
    if problem:
        raise ValueError(f"{text!r} is not a host name: {problem}")
    return name


def check_names_told(names: list[str], dns: bool) -> None:
    if names and not dns:
        raise ValueError(f"{names[0]} is a name, and none are to be told: leave out -h or --without-dns")


def parse_network(text: str) -> str:
    if text != DEFAULT_NETWORK:
        raise ValueError(f"there is no network {text!r}: this version has one, {DEFAULT_NETWORK!r}")
    return text


def parse_target(text: str) -> str:
    """A namespace's name, a path to one, a pid, or a container. Whether it exists is for the daemon to find out."""
    if not text:
        raise ValueError("TARGET is empty: give a named network namespace, a path to one, a pid, or a container")
    if len(text.encode(errors="replace")) > TARGET_BYTES_MAX or not _is_plain_text(text):
        raise ValueError(f"TARGET must be at most {TARGET_BYTES_MAX} bytes of printable text")
    return text


def parse_ring(text: str) -> str:
    """The id of a ring, or its first digits, in lower case."""
    ring = text.lower()
    if not ring or len(ring) > RING_DIGITS or not _HEX.issuperset(ring):
        raise ValueError(f"{text!r} is not the id of a ring: up to {RING_DIGITS} digits of 0-9 and a-f")
    return ring


def parse_offloads(text: str) -> tuple[str, ...]:
    """Names with commas between them."""
    names = tuple(name.strip() for name in text.split(","))
    for name in names:
        if name not in OFFLOADS:
            raise ValueError(f"{name!r} is not an offload: there are {', '.join(OFFLOADS)}")
    return names


def parse_nickname(text: str) -> str:
    if not text.strip() or len(text) > NICKNAME_MAX or not _is_plain_text(text):
        raise ValueError(f"{text!r} is not a nickname: 1 to {NICKNAME_MAX} printable characters are allowed")
    return text


def _host(host: str, text: str) -> str:
    if host and all(part.isascii() and part.isdigit() for part in host.split(".")):
        return _underlay_address(host, text)  # 10.1.2.256 is a mistyped address, not a name
    problem = _host_name_problem(host)
    if problem:
        raise ValueError(f"{text!r} is not a peer: {problem}; write a host name or an address, with an optional :port")
    return host.lower()


def _host_name_problem(name: str) -> str | None:
    if not name:
        return "the name is empty"
    if len(name) > HOST_NAME_MAX:
        return f"a name has at most {HOST_NAME_MAX} characters"
    for label in name.removesuffix(".").split("."):
        if not label or len(label) > HOST_LABEL_MAX:
            return f"each part between dots has 1 to {HOST_LABEL_MAX} characters"
        if not _HOST_CHARS.issuperset(label):
            return "only letters, digits, - and _ are allowed"
        if label.startswith("-") or label.endswith("-"):
            return "no part may begin or end with -"
    return None


def _peer_address(text: str, whole: str) -> str:
    address = _underlay_address(text, whole)
    if "%" not in address and ipaddress.ip_address(address).is_link_local:
        raise ValueError(f"{whole!r} is a link-local address: give its interface too, as in fe80::1%eth0")
    return address


def _underlay_address(text: str, whole: str) -> str:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        raise ValueError(f"{whole!r} is not an IP address") from None
    if address.is_unspecified or address.is_multicast or address == EVERYBODY:
        raise ValueError(f"{whole!r} is not the address of one host")
    return str(address)


def _port(text: str, whole: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 5 and 1 <= int(text) <= PORT_MAX):
        raise ValueError(f"{whole!r} has no valid port: a port is a number from 1 to {PORT_MAX}")
    return int(text)


def _check_usable(interface: ipaddress.IPv4Interface | ipaddress.IPv6Interface, text: str) -> None:
    address, network = interface.ip, interface.network
    if "%" in text or (isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped):
        raise ValueError(f"{text!r} cannot be used in a container: give a plain IPv6 address")
    if address.is_multicast or address.is_unspecified or address.is_loopback or address == EVERYBODY:
        raise ValueError(f"{text!r} cannot be used in a container: it is not the address of one host")
    if network.prefixlen == 0:
        raise ValueError(f"{text!r} would make the whole internet local: give the length of its network")
    if network.prefixlen < network.max_prefixlen - 1 and (
        address == network.network_address or (address.version == 4 and address == network.broadcast_address)
    ):
        raise ValueError(f"{text!r} is the first or last address of {network}, which no host can have: give another")


def _is_plain_text(text: str) -> bool:
    """Printable, and real text: not the half characters that bytes which are no UTF-8 become."""
    return text.isprintable()
