"""The command line as one table: verbs, their words and options, their help, and the parser for it.

Help, usage errors and parsing all read the same table, so they cannot disagree. The parser is ours because importing
`argparse` takes half as long as starting the interpreter, because options may stand anywhere between the words
(`attach 10.32.1.5/24 --label a=b c1`), and because an error is one line here. The rules are getopt's: `--name VALUE`,
`--name=VALUE`, `-cVALUE`, `--` ends the options.

This module knows the shape of the words only; what they mean is checked by whoever uses them.
"""

from __future__ import annotations

from mesh.errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

_HELP_COLUMN = 32


class Option:
    """One option of a verb. Without a `metavar` it is a switch; `repeat` collects every value given."""

    __slots__ = ("flag", "help", "metavar", "repeat")

    def __init__(self, flag: str, metavar: str = "", help: str = "", *, repeat: bool = False) -> None:
        self.flag = flag
        self.metavar = metavar
        self.help = help
        """Empty: not shown, for our own use only."""
        self.repeat = repeat


class Verb:
    """One verb: how its words are written, how many it takes, and its options."""

    __slots__ = ("details", "least", "most", "name", "options", "summary", "words")

    def __init__(
        self,
        name: str,
        words: str,
        summary: str,
        *,
        least: int = 0,
        most: int = 0,
        options: tuple[Option, ...] = (),
        details: str = "",
    ) -> None:
        self.name = name
        self.words = words
        self.summary = summary
        self.least = least
        self.most = most
        self.options = options
        self.details = details


class Parsed:
    """What was given for one verb."""

    __slots__ = ("_given", "words")

    def __init__(self) -> None:
        self.words: list[str] = []
        self._given: dict[str, list[str]] = {}

    def add(self, option: Option, value: str) -> None:
        values = self._given.setdefault(option.flag, [])
        if not option.repeat:
            values.clear()  # the last one wins, so that a wrapper script's defaults can be overruled
        values.append(value)

    def has(self, flag: str) -> bool:
        return flag in self._given

    def value(self, flag: str) -> str | None:
        values = self._given.get(flag)
        return values[-1] if values else None

    def values(self, flag: str) -> list[str]:
        return self._given.get(flag, [])


_MANY = 1 << 30
_JSON = Option("--json", "", "print JSON")

STATUS_TOPICS = ("peers", "connections", "targets", "endpoints", "ipam", "dns")

_ADDRESSES = "ADDR is 10.32.1.5/24, ip:10.32.1.5/24 or ip:fd00:32::5/64."
_WANTS = (
    "ADDR is an address, as 10.32.1.5/24, ip:10.32.1.5/24 or ip:fd00:32::5/64; or net:10.32.2.0/24 or\n"
    "net:default for any free one of that subnet."
)
_TARGET = (
    "TARGET is a named network namespace, a path to one, a process id, or a Docker container, by its\n"
    "name, its id, or a beginning of its id. One word that means several is taken in this order."
)
_BACK = (
    "A named namespace that is deleted and a container that stops keep their addresses: when one of\n"
    "that name, or that container, is there again, its interface is as before. `weft ps` shows them\n"
    "as away until then, and `weft detach` forgets them."
)

VERBS = (
    Verb(
        "launch",
        "[PEER...]",
        "start the daemon on this host and connect it to PEERs",
        most=_MANY,
        details=(
            "Returns when the daemon serves, before any PEER answers. PEERs replace those of the last launch;\n"
            "without any, those are kept. The configuration file has the same settings under the same names."
        ),
        options=(
            Option("--password", "SECRET", "the secret of the mesh: only who has it joins, links are encrypted"),
            Option("--password-file", "FILE", "the same from a file, one a line: the first is sent, all accepted"),
            Option("--port", "PORT", "port of links (TCP) and sleeve (UDP), default 6783; VXLAN's follows"),
            Option("--host", "ADDR", "listen on this address only"),
            Option("--advertise", "ADDR", "tell others to reach us at ADDR; may be repeated", repeat=True),
            Option("--nickname", "NAME", "the name shown beside the peer name, default the host's name"),
            Option("--mtu", "BYTES", "largest packet of the overlay, default what the underlay allows"),
            Option("--no-discovery", "", "connect to the PEERs given only, not to those they know"),
            Option("--no-vxlan", "", "make no plain VXLAN device"),
            Option(
                "--without-offload", "NAME", "no tap, udp-segment, udp-gro, vxlan-checksum, vxlan-segment", repeat=True
            ),
            Option("--ipalloc-range", "CIDR", "give addresses from this range, default 10.32.0.0/12; none: no IPv4"),
            Option("--ipalloc-range6", "CIDR", "the same for IPv6, default made from the cluster; none: no IPv6"),
            Option("--ipalloc-default-subnet", "CIDR", "where no subnet is named, give from this; default the range"),
            Option("--ipalloc-init", "HOW", "consensus[=N], seed=NAME,NAME,... or observer: who may begin"),
            Option("--ipalloc-lease", "SECONDS", "for how long others confirm what a host may give; default 1h"),
            Option("--dns-domain", "NAME", "domain of names, the same on all hosts; default weft.local"),
            Option("--dns-upstream", "ADDR", "whom to ask for other names; may be repeated", repeat=True),
            Option("--no-dns", "", "answer no names on this host"),
            Option("--docker-plugin", "PATH", "Docker's plugin socket; default /run/docker/plugins/weft.sock"),
            Option("--log-level", "LEVEL", "debug, info, warning or error; default info"),
            Option("--config", "FILE", "TOML file, default /etc/weft/weft.toml; need not exist"),
            Option("--foreground", "", "do not go to the background; log to standard error"),
            Option("--ready-fd", "FD"),
        ),
    ),
    Verb("stop", "", "stop the daemon; traffic between running containers goes on"),
    Verb(
        "reset",
        "",
        "remove everything Weft made on this host, its identity too",
        options=(Option("--force", "", "do not ask"),),
    ),
    Verb(
        "connect",
        "PEER...",
        "connect to more peers, and remember them",
        least=1,
        most=_MANY,
        details="PEER is a host name or an address, with an optional port: host2, 10.1.2.3:6783, [fd00::3]:6783.",
        options=(Option("--replace", "", "forget the peers that were given before"), _JSON),
    ),
    Verb("forget", "PEER...", "no longer connect to these peers by ourselves", least=1, most=_MANY, options=(_JSON,)),
    Verb(
        "attach",
        "[ADDR...] TARGET",
        "put a container on the network, with these addresses or free ones",
        least=1,
        most=_MANY,
        details=(
            f"{_WANTS} Without ADDR it keeps what it has, or is given\n"
            "a free address of the default subnet, IPv4 and IPv6.\n"
            f"{_TARGET}\nPrints the addresses, one a line.\n\n{_BACK}"
        ),
        options=(
            Option("--network", "NETWORK", "the network to attach to; only `weft` in this version"),
            Option("--label", "KEY=VALUE", "a label of the endpoint; may be repeated", repeat=True),
            Option("-h", "NAME", "a host name of the endpoint; may be repeated", repeat=True),
            Option("--without-dns", "", "tell no names of it, and write no resolv.conf for it"),
            _JSON,
        ),
    ),
    Verb(
        "detach",
        "[ADDR...] TARGET",
        "take these addresses off a container, or all of them",
        least=1,
        most=_MANY,
        details=(
            f"{_ADDRESSES}\n{_TARGET}\nPrints the addresses it took away, one a line.\n\n"
            "What is away can be detached too, and is forgotten by that."
        ),
        options=(_JSON,),
    ),
    Verb(
        "expose",
        "[ADDR...]",
        "put the host itself on the network, and lead its containers out",
        most=_MANY,
        details=(
            f"{_WANTS}\n"
            "Prints what is exposed then, one a line. Without ADDR it does only that; a host that is not\n"
            "exposed is given a free address of the default subnet, IPv4 and IPv6.\n"
            "Containers in the network of an exposed address reach the outside through it, under an address\n"
            "of the host; nothing comes in unasked."
        ),
        options=(
            Option("--without-masquerade", "", "route the network as it is: no other address, no door closed"),
            _JSON,
        ),
    ),
    Verb(
        "hide",
        "[ADDR...]",
        "take the host off the network again, or some addresses of it",
        most=_MANY,
        details=f"{_ADDRESSES}\nPrints the addresses that were taken off, one a line; without ADDR all are.",
        options=(_JSON,),
    ),
    Verb(
        "dns-add",
        "ADDR...|TARGET",
        "give a container of this host another name, or addresses a name",
        least=1,
        most=_MANY,
        details=(
            "NAME is a word, or a name under the domain of the mesh. A container's names go with it; those of\n"
            "addresses stay until `weft dns-remove`, whoever has them."
        ),
        options=(Option("-h", "NAME", "the name; may be repeated", repeat=True), _JSON),
    ),
    Verb(
        "dns-remove",
        "ADDR...|TARGET",
        "take back what dns-add, or attach -h, gave",
        least=1,
        most=_MANY,
        options=(Option("-h", "NAME", "the name; may be repeated", repeat=True), _JSON),
    ),
    Verb("dns-args", "", "the options by which `docker run` is told of the DNS server", options=(_JSON,)),
    Verb(
        "dns-lookup",
        "NAME",
        "the addresses of a name as this host knows them, nearest first",
        least=1,
        most=1,
        details="Of an address: its names. Exit status 1 where there is none.",
        options=(_JSON,),
    ),
    Verb(
        "status",
        f"[{'|'.join(STATUS_TOPICS)}]",
        "how this peer and the mesh are doing",
        most=1,
        options=(_JSON,),
    ),
    Verb("report", "", "everything the daemon knows, as JSON", options=(_JSON,)),
    Verb("ps", "", "what is attached on this host", options=(_JSON,)),
    Verb(
        "ping",
        "PEER",
        "measure the path that frames take to a peer",
        least=1,
        most=1,
        details="PEER is a peer's name or nickname. Exit status 1 where nothing comes back.",
        options=(
            Option("-c", "COUNT", "how many, default 5"),
            Option("-i", "SECONDS", "time between two, default 1"),
            _JSON,
        ),
    ),
    Verb(
        "setup-cni",
        "",
        "install the CNI plugin and a network for container runtimes",
        details=(
            "Writes the plugin `weft` and the network list `10-weft.conflist`; one that is there already is kept.\n"
            "Kubernetes, containerd, podman and others run the plugin for each container from then on."
        ),
        options=(
            Option("--bin-dir", "DIR", "where the runtime finds plugins, default /opt/cni/bin"),
            Option("--conf-dir", "DIR", "where it finds networks, default /etc/cni/net.d"),
            Option("--uninstall", "", "remove both; run it before `weft reset`"),
            _JSON,
        ),
    ),
    Verb(
        "prime",
        "",
        "wait until this host may give addresses",
        details=(
            "For scripts that attach right after launch: makes the ring that addresses are given from, or waits\n"
            "for it, and says on standard error what for."
        ),
        options=(Option("--timeout", "SECONDS", "give up after so long, with exit status 1"), _JSON),
    ),
    Verb(
        "rmpeer",
        "PEER...",
        "take over the addresses of hosts that are gone for good",
        least=1,
        most=_MANY,
        details=(
            "PEER is a peer's name or nickname. At once, instead of when its lease has run out; where the voters\n"
            "that are left are no majority, name all that are gone. Never for a host that may still run\n"
            "containers: others are given their addresses. A host in reach is left with `weft reset` on it."
        ),
        options=(Option("--force", "", "do not ask, and take hosts in reach too"), _JSON),
    ),
    Verb(
        "ipam",
        "join|export [FILE]|import FILE|check",
        "mend, or carry over, what is known of given addresses",
        least=1,
        most=2,
        details=(
            "join     this host's ring, made while hosts were apart, joins the other one\n"
            "export   what is given on this host, to FILE or standard output\n"
            "import   claims what was exported, each address for its owner\n"
            "check    compares what is given with what is attached"
        ),
        options=(
            Option("--ring", "ID", "join: which ring, where there are several; its first digits will do"),
            Option("--repair", "", "check: claim what is attached, release what is not"),
            Option("--force", "", "join: conflicts or not; import: beside what is given already"),
            _JSON,
        ),
    ),
    Verb("version", "", "print the version, and the running daemon's", options=(_JSON,)),
    Verb("lab", "up|status|exec|down", "a mesh of several hosts inside this machine, to try things", most=_MANY),
)

_BY_NAME = {verb.name: verb for verb in VERBS}


def find_verb(name: str) -> Verb:
    """The verb of that name. Raises `UsageError`, naming all of them."""
    verb = _BY_NAME.get(name)
    if verb is None:
        raise UsageError(f"there is no verb {name!r}; there are {', '.join(_BY_NAME)}")
    return verb


def parse(verb: Verb, arguments: Sequence[str]) -> Parsed | None:
    """What `arguments` say, or None where they ask for help. Raises `UsageError`."""
    options = {option.flag: option for option in verb.options}
    parsed = Parsed()
    rest = list(arguments)
    while rest:
        word = rest.pop(0)
        if word == "--":
            parsed.words += rest
            break
        if word == "--help" or (word == "-h" and "-h" not in options):
            return None
        if not word.startswith("-") or word == "-":
            parsed.words.append(word)
            continue
        flag, attached = _split_flag(word)
        option = options.get(flag)
        if option is None:
            raise _wrong(verb, f"unknown option {flag}")
        if not option.metavar:
            if attached is not None:
                raise _wrong(verb, f"{flag} takes no value")
            parsed.add(option, "")
        elif attached is not None:
            parsed.add(option, attached)
        elif not rest or rest[0] in options or rest[0] in ("--", "--help"):
            # A forgotten value must not swallow the next option: `--password --no-vxlan` would set a password.
            raise _wrong(verb, f"{flag} needs a value: {flag} {option.metavar}")
        else:
            parsed.add(option, rest.pop(0))
    _check_count(verb, parsed.words)
    return parsed


def _split_flag(word: str) -> tuple[str, str | None]:
    if word.startswith("--"):
        flag, equals, value = word.partition("=")
        return flag, value if equals else None
    return word[:2], word[2:] or None


def _check_count(verb: Verb, words: list[str]) -> None:
    if len(words) < verb.least:
        missing = verb.words.split()[-1].strip("[].")
        if verb.words[0].islower():  # words of ours, of which one is to be chosen
            missing = f"one of {verb.words}"
        raise _wrong(verb, f"{missing} is missing")
    if len(words) > verb.most:
        raise _wrong(verb, f"{words[verb.most]!r} is too much")


def _wrong(verb: Verb, what: str) -> UsageError:
    return UsageError(f"{verb.name}: {what}; usage: {synopsis(verb)}, more with `weft {verb.name} --help`")


def synopsis(verb: Verb) -> str:
    parts = ["weft", verb.name, "[OPTION...]" if verb.options else "", verb.words]
    return " ".join(part for part in parts if part)


def general_help() -> str:
    lines = [
        "weft: containers on many hosts talk as if plugged into one switch",
        "",
        "usage: weft VERB [OPTION...] [WORD...]    `weft VERB --help` says more about one",
        "",
        *(_entry(f"{verb.name} {verb.words}", verb.summary) for verb in VERBS),
        "",
        "Environment: WEFT_RUN_DIR (/run/weft), WEFT_STATE_DIR (/var/lib/weft), WEFT_PASSWORD,",
        "WEFT_DOCKER_SOCKET (/var/run/docker.sock, or what DOCKER_HOST=unix://... says).",
    ]
    return "\n".join(lines)


def verb_help(verb: Verb) -> str:
    lines = [f"usage: {synopsis(verb)}", "", f"{verb.summary[0].upper()}{verb.summary[1:]}."]
    if verb.details:
        lines += ["", verb.details]
    shown = [option for option in verb.options if option.help]
    if shown:
        lines += ["", *(_entry(f"{option.flag} {option.metavar}", option.help) for option in shown)]
    return "\n".join(lines)


def _entry(left: str, right: str) -> str:
    left = left.rstrip()
    if len(left) > _HELP_COLUMN - 4:
        return f"  {left}\n{' ' * _HELP_COLUMN}{right}"
    return f"  {left:<{_HELP_COLUMN - 2}}{right}"
