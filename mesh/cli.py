"""The command `weft`: one function a verb, each a question to the daemon and its answer as text.

Start-up is what people feel, so a verb imports what it needs when it runs, and nothing here knows what the daemon does
with a request. Every error is one line on standard error; exit status 1, 2 for wrong usage.
"""

from __future__ import annotations

import sys

from mesh import usage
from mesh.errors import UsageError, UserError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from typing import Any

    from mesh.usage import Parsed

INTERRUPTED = 130
"""What a shell reports for a command that Ctrl-C ended: 128 and SIGINT's number."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit status. The only place that prints an error."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        status = _run(arguments)
        sys.stdout.flush()  # here, where a full disk behind it still makes a line and an exit status
    except UserError as error:
        print(f"weft: {error}", file=sys.stderr)
        return error.exit_status
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        _forget_stdout()
        return 1
    except OSError as error:
        _forget_stdout()
        where = error.filename or "standard output"
        print(f"weft: cannot use {where} ({error.strerror or error}); free space or check it", file=sys.stderr)
        return 1
    return status


def _forget_stdout() -> None:
    """Nobody reads us any more (`weft ps | head -1`): what is still buffered must not fail again at exit."""
    import os

    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def _run(arguments: list[str]) -> int:
    sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]  # a nickname in a terminal without UTF-8
    if not arguments:
        print(usage.general_help(), file=sys.stderr)
        return UsageError.exit_status
    name, *rest = arguments
    if name in ("--help", "-h", "help"):
        print(usage.verb_help(usage.find_verb(rest[0])) if rest else usage.general_help())
        return 0
    if name == "--version":
        name = "version"
    verb = usage.find_verb(name)
    if name == "lab":
        return _lab(rest)
    parsed = usage.parse(verb, rest)
    if parsed is None:
        print(usage.verb_help(verb))
        return 0
    return _VERBS[name](parsed)


def _lab(arguments: list[str]) -> int:
    from mesh.lab import main as lab

    return lab(arguments)


def _launch(parsed: Parsed) -> int:
    from mesh import launch

    return launch.launch(parsed)


def _stop(_: Parsed) -> int:
    from mesh import shutdown

    shutdown.stop()
    return 0


def _reset(parsed: Parsed) -> int:
    from mesh import shutdown

    return shutdown.reset(force=parsed.has("--force"))


def _connect(parsed: Parsed) -> int:
    answer = _ask("connect", {"peers": _peers(parsed.words), "replace": parsed.has("--replace")})
    return _tell(parsed, answer, ())


def _forget(parsed: Parsed) -> int:
    return _tell(parsed, _ask("forget", {"peers": _peers(parsed.words)}), ())


def _tell(parsed: Parsed, answer: Any, lines: Iterable[str]) -> int:
    """What the daemon answered, for scripts or in these lines for people."""
    if parsed.has("--json"):
        _print_json(answer)
    else:
        for line in lines:
            print(line)
    return 0


def _peers(words: list[str]) -> list[str]:
    from mesh import arguments

    with _WrongUsage():
        return [arguments.parse_peer(word) for word in words]


def _attach(parsed: Parsed) -> int:
    from mesh import arguments

    *addresses, target = parsed.words
    with _WrongUsage():
        request: dict[str, Any] = {
            "target": _target(target),
            "addresses": _wants(addresses),
            "network": arguments.parse_network(parsed.value("--network") or arguments.DEFAULT_NETWORK),
            "labels": dict(arguments.parse_label(label) for label in parsed.values("--label")),
            "names": [arguments.parse_name(name) for name in parsed.values("-h")],
            "dns": not parsed.has("--without-dns"),
        }
        arguments.check_names_told(request["names"], request["dns"])
    answer = _ask("attach", request)
    return _tell(parsed, answer, answer["addresses"])


def _detach(parsed: Parsed) -> int:
    from mesh import arguments

    *addresses, target = parsed.words
    with _WrongUsage():
        request = {
            "target": _target(target),
            "addresses": [str(address) for address in arguments.parse_addresses(addresses)],
        }
    answer = _ask("detach", request)
    return _tell(parsed, answer, answer["addresses"])


def _expose(parsed: Parsed) -> int:
    with _WrongUsage():
        request = {"addresses": _wants(parsed.words), "masquerade": not parsed.has("--without-masquerade")}
    answer = _ask("expose", request)
    return _tell(parsed, answer, answer["addresses"])


def _hide(parsed: Parsed) -> int:
    from mesh import arguments

    with _WrongUsage():
        request = {"addresses": [str(address) for address in arguments.parse_addresses(parsed.words)]}
    answer = _ask("hide", request)
    return _tell(parsed, answer, answer["addresses"])


def _wants(words: list[str]) -> list[str]:
    from mesh import arguments

    return [arguments.format_want(want) for want in arguments.parse_wants(words)]


def _target(text: str) -> str:
    """TARGET as the daemon can read it: its working directory and its `self` are not ours."""
    import os

    from mesh import arguments

    if _is_address(text):
        raise ValueError(f"the last word is TARGET, and {text!r} is an address: name the container after it")
    if text.startswith(("/proc/self/", "/proc/thread-self/")):
        raise ValueError(f"TARGET {text} would be this command's own namespace, which ends with it: give a process id")
    return arguments.parse_target(os.path.abspath(text) if "/" in text else text)


def _is_address(text: str) -> bool:
    from mesh import arguments

    if text.startswith(("ip:", arguments.SUBNET_PREFIX)):
        return True
    try:
        arguments.parse_address(text if "/" in text else f"{text}/32")
    except ValueError:
        return False
    return True


def _status(parsed: Parsed) -> int:
    topic = parsed.words[0] if parsed.words else "status"
    if parsed.words and topic not in usage.STATUS_TOPICS:
        raise UsageError(f"there is no `status {topic}`; there are {', '.join(usage.STATUS_TOPICS)}")
    answer = _ask(topic)
    if parsed.has("--json"):
        _print_json(answer)
        return 0
    from mesh import render

    if topic == "connections":
        import time

        print(render.connections(answer, time.time()))
    else:
        renderers: dict[str, Callable[[Any], str]] = {
            "status": render.status,
            "peers": render.peers,
            "targets": render.targets,
            "endpoints": render.endpoints,
            "ipam": render.ipam,
            "dns": render.dns,
        }
        print(renderers[topic](answer))
    return 0


def _report(_: Parsed) -> int:
    _print_json(_ask("report"))
    return 0


def _ps(parsed: Parsed) -> int:
    answer = _ask("ps")
    if parsed.has("--json"):
        _print_json(answer)
        return 0
    import time

    from mesh import render

    print(render.ps(answer, time.time()))
    return 0


def _ping(parsed: Parsed) -> int:
    from mesh import client, render

    as_json = parsed.has("--json")
    count = _number(parsed, "-c", default=5, least=1, most=100_000, whole=True)
    interval_s = _number(parsed, "-i", default=1.0, least=0.01, most=60.0, whole=False)

    def show(row: Any) -> None:
        if as_json:
            _print_json(row, indent=None)
        else:
            print(render.ping_row(row))
        sys.stdout.flush()

    request = {"peer": parsed.words[0], "count": int(count), "interval_s": interval_s}
    answer = client.call("ping", request, on_row=show, timeout_s=client.ANSWER_TIMEOUT_S + interval_s)
    if as_json:
        _print_json(answer, indent=None)
    else:
        print(render.ping_summary(answer))
    return 0 if answer["received"] else 1


def _number(parsed: Parsed, flag: str, *, default: float, least: float, most: float, whole: bool) -> float:
    text = parsed.value(flag)
    if text is None:
        return default
    try:
        number = int(text) if whole else float(text)
    except ValueError:
        number = least - 1
    if not least <= number <= most:
        raise UsageError(f"ping: {flag} {text!r} is not a number from {least} to {most}")
    return number


def _dns_change(verb: str, parsed: Parsed) -> int:
    from mesh.dns import words

    with _WrongUsage():
        request = words.change_words(verb, parsed.words, parsed.values("-h"))
        if request["target"] is not None:
            request["target"] = _target(request["target"])
    answer = _ask(verb, request)
    return _tell(parsed, answer, answer["names"])


def _dns_lookup(parsed: Parsed) -> int:
    from mesh.dns import words

    answer = _ask("dns-lookup", {"name": parsed.words[0]})
    return _tell(parsed, answer, [words.lookup_text(answer)])


def _dns_args(parsed: Parsed) -> int:
    answer = _ask("dns")
    if not answer["enabled"]:
        raise UserError("DNS is off on this host; launch without --no-dns")
    options = [f"--dns={answer['address']}", f"--dns-search={answer['domain']}"]
    return _tell(parsed, {"args": options}, [" ".join(options)])


def _prime(parsed: Parsed) -> int:
    from mesh import ipamcli

    return ipamcli.prime(parsed)


def _rmpeer(parsed: Parsed) -> int:
    from mesh import ipamcli

    return ipamcli.rmpeer(parsed)


def _ipam(parsed: Parsed) -> int:
    from mesh import ipamcli

    return ipamcli.ipam(parsed)


def _setup_cni(parsed: Parsed) -> int:
    from mesh.cni import setup

    return setup.setup_cni(parsed)


def _version(parsed: Parsed) -> int:
    from mesh import client
    from mesh.version import VERSION

    try:
        daemon = client.call("status", timeout_s=2.0)["version"]
    except UserError:
        daemon = None  # no daemon, or not for us to ask: our own version is what was wanted
    if parsed.has("--json"):
        _print_json({"version": VERSION, "daemon": daemon})
    else:
        print(f"weft {VERSION}" + (f" (running daemon: {daemon})" if daemon else ""))
    return 0


def _ask(verb: str, args: dict[str, Any] | None = None) -> Any:
    from mesh import client

    return client.call(verb, args, timeout_s=client.READ_TIMEOUT_S if args is None else client.ANSWER_TIMEOUT_S)


def _print_json(value: Any, indent: int | None = 2) -> None:
    import json

    print(json.dumps(value, indent=indent))


class _WrongUsage:
    """What `mesh.arguments` says is wrong with a word is wrong usage here."""

    def __enter__(self) -> None: ...

    def __exit__(self, _kind: object, error: BaseException | None, _traceback: object) -> None:
        if isinstance(error, ValueError):
            raise UsageError(str(error)) from None


_VERBS = {
    "launch": _launch,
    "stop": _stop,
    "reset": _reset,
    "connect": _connect,
    "forget": _forget,
    "attach": _attach,
    "detach": _detach,
    "expose": _expose,
    "hide": _hide,
    "status": _status,
    "report": _report,
    "ps": _ps,
    "ping": _ping,
    "prime": _prime,
    "rmpeer": _rmpeer,
    "ipam": _ipam,
    "setup-cni": _setup_cni,
    "version": _version,
    "dns-add": lambda parsed: _dns_change("dns-add", parsed),
    "dns-remove": lambda parsed: _dns_change("dns-remove", parsed),
    "dns-lookup": _dns_lookup,
    "dns-args": _dns_args,
}
