"""The CNI plugin: one file that `weft setup-cni` copies to where runtimes look, and nothing of Weft is imported here.

A runtime starts it anew for every verb, so it is started isolated and imports next to nothing. It knows CNI's words
(the environment, the configuration on standard input, results in the shape of each version, numbered errors) and turns
them into one request to the daemon's socket; what a network is, it does not know. CNI specification 1.1.0:
https://www.cni.dev/docs/spec/

Where another plugin is to give the addresses (`ipam`), that one is run from here, since its surroundings are ours: it
may need the runtime's folders, not the daemon's.
"""

from __future__ import annotations

import os
import sys

# The halves of `json` and `socket` that are written in C: the other halves take longer to import than all the rest.
from _json import encode_basestring_ascii, make_scanner
from _socket import AF_UNIX, socket

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    Json = dict[str, Any]

RUN_DIR = "/run/weft"
"""Where the daemon's socket is; `setup-cni` writes here what `WEFT_RUN_DIR` was then."""

VERSIONS = ("0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")
VERBS = {
    "ADD": "0.3.0",
    "DEL": "0.3.0",
    "CHECK": "0.4.0",
    "STATUS": "1.1.0",
    "GC": "1.1.0",
    "VERSION": "0.3.0",
}
"""And the version that brought each."""

INCOMPATIBLE, UNSUPPORTED, UNKNOWN, ENVIRONMENT, BAD_IO, BAD_JSON, INVALID = range(1, 8)
TRY_LATER = 11
UNAVAILABLE = 50
OTHER, TAKEN, EXHAUSTED, EXISTS, DELEGATE = range(100, 105)
"""Ours: anything else; an address or a MAC that another has; no address left; an interface that is there already; the
plugin that should have given addresses."""

CODES = {
    "bad-target": ENVIRONMENT,
    "namespace-gone": UNKNOWN,
    "not-attached": UNKNOWN,
    "bad-request": INVALID,
    "outside-range": INVALID,
    "collision": INVALID,
    "not-saved": BAD_IO,
    "stopping": TRY_LATER,
    "busy": TRY_LATER,
    "kernel-slow": TRY_LATER,
    "ipam-waiting": TRY_LATER,
    "ipam-unavailable": UNAVAILABLE,
    "address-taken": TAKEN,
    "mac-taken": TAKEN,
    "ipam-exhausted": EXHAUSTED,
    "name-taken": EXISTS,
}
"""The daemon's words for what went wrong."""

CONFIG_BYTES_MAX = 4 * 1024 * 1024
ANSWER_BYTES_MAX = 1024 * 1024
ANSWER_TIMEOUT_S = 50.0
"""Longer than an ADD may wait for addresses."""
STATUS_TIMEOUT_S = 2.0
NAME_MAX = 128
IFNAME_MAX = 15
DEFAULT_ROUTES = ("0.0.0.0/0", "::/0")

_ALNUM = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789")
_NAME_CHARS = _ALNUM | frozenset("_.-")


class _Plain:
    """How values are read: as `json.loads` does by itself."""

    strict = True
    object_hook = object_pairs_hook = None
    parse_float, parse_int, parse_constant = float, int, float


_scan: Any = make_scanner(_Plain)  # type: ignore[arg-type]
_BLANK = " \t\r\n"


def loads(data: bytes) -> Any:
    """A value from its JSON. Raises ValueError."""
    text = data.decode()
    try:
        value, end = _scan(text, len(text) - len(text.lstrip(_BLANK)))
        if not text[end:].strip(_BLANK):
            return value
    except (StopIteration, SystemError, ValueError):
        pass  # without the rest of `json` it cannot say what is wrong
    import json

    return json.loads(text)


def dumps(value: Any) -> str:
    """The JSON of what `loads` gives."""
    if isinstance(value, str):
        return str(encode_basestring_ascii(value))
    if isinstance(value, dict):
        return "{" + ", ".join(f"{encode_basestring_ascii(key)}: {dumps(each)}" for key, each in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(dumps, value)) + "]"
    return "null" if value is None else repr(value).lower()


class Refused(Exception):
    """What is told to the runtime."""

    def __init__(self, code: int, text: str, details: str = "") -> None:
        super().__init__(text)
        self.code = code
        self.text = text
        self.details = details


def main() -> int:
    if "CNI_COMMAND" not in os.environ:
        print(f"weft: a CNI plugin, run by container runtimes; versions {', '.join(VERSIONS)}", file=sys.stderr)
        return 0
    version = VERSIONS[-1]
    try:
        data = sys.stdin.buffer.read(CONFIG_BYTES_MAX + 1)
        if os.environ["CNI_COMMAND"] == "VERSION":
            answer: Json | None = said_versions(data)
        else:
            config = read_config(data)
            version = requested_version(config)
            answer = answer_to(os.environ, config, version)
    except Exception as error:  # a runtime takes nothing but JSON for an answer
        refused = error if isinstance(error, Refused) else Refused(OTHER, f"a mistake in weft's plugin: {error!r}")
        said = {"cniVersion": version, "code": refused.code, "msg": refused.text}
        print(dumps(said | ({"details": refused.details} if refused.details else {})))
        return 1
    if answer is not None:
        print(dumps(answer))
    return 0


# -- what the runtime says -----------------------------------------------------------------------------


def read_config(data: bytes) -> Json:
    if len(data) > CONFIG_BYTES_MAX:
        raise Refused(BAD_JSON, f"the network configuration is longer than {CONFIG_BYTES_MAX} bytes")
    try:
        config = loads(data)
    except (ValueError, RecursionError) as error:
        raise Refused(BAD_JSON, f"the network configuration on standard input is not JSON: {error}") from None
    if not isinstance(config, dict):
        raise Refused(BAD_JSON, "the network configuration on standard input is not an object")
    return config


def requested_version(config: Json) -> str:
    version = config.get("cniVersion", "0.1.0")
    if version not in VERSIONS:
        known = ", ".join(VERSIONS)
        raise Refused(INCOMPATIBLE, f"CNI version {version!r} is not supported", f"supported: {known}")
    return str(version)


def said_versions(data: bytes) -> Json:
    """The answer to VERSION. A runtime that asks does not know yet what to say, so it may say anything."""
    try:
        version = requested_version(read_config(data))
    except Refused:
        version = VERSIONS[-1]
    return {"cniVersion": version, "supportedVersions": list(VERSIONS)}


def answer_to(environment: Mapping[str, str], config: Json, version: str) -> Json | None:
    """What is printed. Raises `Refused`."""
    command = environment["CNI_COMMAND"]
    if command not in VERBS:
        raise Refused(ENVIRONMENT, f"CNI_COMMAND {command!r} is none of {', '.join(VERBS)}")
    if VERSIONS.index(version) < VERSIONS.index(VERBS[command]):
        raise Refused(INCOMPATIBLE, f"{command} came with CNI version {VERBS[command]}, not with {version}")
    network = _name(config.get("name"), "name", INVALID)
    delegate = delegate_of(config)
    if command == "STATUS":
        if delegate is not None:
            run_delegate(delegate, environment, config)
        ask("cni-status", {"gives": delegate is None}, STATUS_TIMEOUT_S)
        return None
    if command == "GC":
        _collect(network, delegate, environment, config)
        return None
    container = _name(environment.get("CNI_CONTAINERID"), "CNI_CONTAINERID", ENVIRONMENT)
    ifname = _ifname(environment.get("CNI_IFNAME"))
    who = {"network": network, "container": container, "ifname": ifname}
    if command == "DEL":
        ask("cni-del", who)
        if delegate is not None:
            run_delegate(delegate, environment, config)
        return None
    netns = environment.get("CNI_NETNS", "")
    if not netns.startswith("/"):
        raise Refused(ENVIRONMENT, f"CNI_NETNS {netns!r} is not the path of a network namespace")
    if command == "CHECK":
        if not isinstance(config.get("prevResult"), dict):
            raise Refused(INVALID, "CHECK needs the result of ADD, and there is no prevResult in the configuration")
        if delegate is not None:
            run_delegate(delegate, environment, config)
        ask("cni-check", who | {"netns": netns, "addresses": _own_addresses(config["prevResult"], ifname)})
        return None
    return _add(who | {"netns": netns}, delegate, environment, config, version)


def _name(value: object, what: str, code: int) -> str:
    """First a letter or digit, then these and `_.-`."""
    if not isinstance(value, str) or not value:
        raise Refused(code, f"{what} is missing")
    if value[0] not in _ALNUM or not _NAME_CHARS.issuperset(value) or len(value) > NAME_MAX:
        allowed = f"at most {NAME_MAX} letters, digits and _ . - that begin with a letter or digit"
        raise Refused(code, f"{what} {value[:NAME_MAX]!r} is not {allowed}")
    return value


def _ifname(value: str | None) -> str:
    if not value:
        raise Refused(ENVIRONMENT, "CNI_IFNAME is missing")
    # At a % the kernel would put a number of its own.
    is_plain = value.isprintable() and not any(char in "/:%" or char.isspace() for char in value)
    if not is_plain or value in (".", "..") or len(value.encode()) > IFNAME_MAX:
        raise Refused(ENVIRONMENT, f"CNI_IFNAME {value!r} is not the name of an interface")
    return value


def _of(holder: Json, key: str, kind: type, default: Any, where: str = "") -> Any:
    """One value of the configuration, of the right type."""
    value = holder.get(key)
    if value is None:
        return default
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        names = {bool: "true or false", int: "a number", str: "a text", list: "a list", dict: "an object"}
        raise Refused(INVALID, f"{where}{key} is not {names[kind]}: {dumps(value)[:80]}")
    return value


def cni_args(text: str) -> dict[str, str]:
    """`CNI_ARGS`, whatever is in it: runtimes put in what they like."""
    pairs = (pair.partition("=") for pair in text.split(";"))
    return {key: value for key, equals, value in pairs if equals}


# -- ADD -----------------------------------------------------------------------------------------------


def _add(who: Json, delegate: str | None, environment: Mapping[str, str], config: Json, version: str) -> Json:
    request, before = who | wishes(environment, config), _result_before(config)
    if delegate is None:
        return result_of(ask("cni-add", request), who, config, version, before)
    try:
        given = run_delegate(delegate, environment, config)
        answer = ask("cni-add", request | given_by_delegate(given, config))
        return result_of(answer, who, config, version, before, given)
    except Exception:
        undo = dict(environment) | {"CNI_COMMAND": "DEL"}
        try:
            run_delegate(delegate, undo, config)
        except Refused:
            pass  # what went wrong first is what has to be told
        raise


def wishes(environment: Mapping[str, str], config: Json) -> Json:
    """Everything that a runtime may say of an interface, in the daemon's words. Raises `Refused`."""
    for key in ("vlan", "vlanTrunk"):
        if config.get(key):
            raise Refused(UNSUPPORTED, f"{key}: {dumps(config[key])} is not supported by weft")
    arguments = cni_args(environment.get("CNI_ARGS", ""))
    runtime = _of(config, "runtimeConfig", dict, {})
    inline = _of(_of(config, "args", dict, {}), "cni", dict, {}, "args.")
    ipam = _of(config, "ipam", dict, {})
    ips = _of(runtime, "ips", list, None, "runtimeConfig.") or _of(inline, "ips", list, None, "args.cni.")
    if not ips:
        ips = [arguments["IP"]] if arguments.get("IP") else []
    is_default = _of(config, "isDefaultGateway", bool, False)
    masquerades = _of(config, "ipMasq", bool, False)
    routes = [_route(each) for each in [*_of(config, "routes", list, []), *_of(ipam, "routes", list, [], "ipam.")]]
    pod, space = arguments.get("K8S_POD_NAME", ""), arguments.get("K8S_POD_NAMESPACE", "")
    return {
        "addresses": [_text(each, "ips") for each in ips],
        "ranges": _ranges(_of(runtime, "ipRanges", list, None, "runtimeConfig."), ipam),
        "mac": _of(runtime, "mac", str, None, "runtimeConfig.") or inline.get("mac") or arguments.get("MAC"),
        "mtu": _of(config, "mtu", int, None) or None,
        "overlay": _of(config, "network", str, None),
        "hairpin": _of(config, "hairpinMode", bool, _of(config, "hairpin", bool, False)),
        "is_gateway": is_default or masquerades or _of(config, "isGateway", bool, False),
        "leads_out": is_default or any(dst in DEFAULT_ROUTES and not via for dst, via in routes),
        "masquerade": masquerades,
        "gateways": [via for dst, via in routes if dst in DEFAULT_ROUTES and via],
        "routes": [[dst, via] for dst, via in routes if dst not in DEFAULT_ROUTES],
        "names": _aliases(runtime.get("aliases"), config["name"]),
        "called": pod if pod and space in ("", pod) else f"{pod}.{space}" if pod else None,
        "labels": {
            f"io.kubernetes.pod.{name}": arguments[key]
            for key, name in (("K8S_POD_NAMESPACE", "namespace"), ("K8S_POD_NAME", "name"), ("K8S_POD_UID", "uid"))
            if arguments.get(key)
        },
    }


def _aliases(value: object, network: str) -> list[str]:
    """A list, or, as podman has it, one for each network."""
    names = value.get(network) if isinstance(value, dict) else value
    if names is None:
        return []
    if not isinstance(names, list):
        raise Refused(INVALID, f"runtimeConfig.aliases is neither a list nor one by network: {dumps(value)[:80]}")
    return [_text(each, "aliases") for each in names]


def _text(value: object, what: str) -> str:
    if not isinstance(value, str):
        raise Refused(INVALID, f"{what}: {dumps(value)[:80]} is not a text")
    return value


def _route(value: object) -> tuple[str, str | None]:
    if not isinstance(value, dict) or not isinstance(value.get("dst"), str):
        raise Refused(INVALID, f'routes: {dumps(value)[:80]} is not an object with a "dst"')
    return value["dst"], _of(value, "gw", str, None, "routes.") or None


def _ranges(from_runtime: list[Any] | None, ipam: Json) -> list[Json]:
    """One for each address wanted: the first range of each set, and those that are as good."""
    sets = from_runtime or _of(ipam, "ranges", list, [], "ipam.")
    if not sets and ipam.get("subnet"):
        sets = [[ipam]]
    ranges = []
    for one in sets:
        if not isinstance(one, list) or not one:
            raise Refused(INVALID, f"ranges: {dumps(one)[:80]} is not a list of ranges")
        first, *others = map(_range, one)
        ranges.append(first | {"others": others})
    return ranges


def _range(one: object) -> Json:
    if not isinstance(one, dict) or not one.get("subnet"):
        raise Refused(INVALID, f'ranges: {dumps(one)[:80]} is not an object with a "subnet"')
    if one.get("gateway"):
        why = "on a network of many hosts each has a gateway of its own; leave it out"
        raise Refused(UNSUPPORTED, f"gateway: {dumps(one['gateway'])} is not supported by weft: {why}")
    keys = (("subnet", "subnet"), ("rangeStart", "first"), ("rangeEnd", "last"))
    return {ours: _of(one, theirs, str, None, "ranges.") for theirs, ours in keys}


def _own_addresses(result: Json, ifname: str) -> list[str]:
    """Those of a result that are of the interface of that name inside."""
    interfaces = result.get("interfaces")
    interfaces = interfaces if isinstance(interfaces, list) else []
    found = []
    for each in result["ips"] if isinstance(result.get("ips"), list) else []:
        index = each.get("interface") if isinstance(each, dict) else None
        interface = interfaces[index] if isinstance(index, int) and 0 <= index < len(interfaces) else None
        if isinstance(interface, dict) and interface.get("name") == ifname and interface.get("sandbox"):
            found.append(str(each.get("address")))
    return found


def _result_before(config: Json) -> Json:
    """What plugins before us said. Looked at before anything is done, since a failed ADD must leave nothing; and so is
    the `dns` of the configuration, which goes into the result as it is."""
    before: Json = _of(config, "prevResult", dict, {})
    _of(config, "dns", dict, None)
    lists = {key: _of(before, key, list, [], "prevResult.") for key in ("interfaces", "ips", "routes")}
    for key, each in [(key, each) for key, found in lists.items() for each in found]:
        if not isinstance(each, dict):
            raise Refused(INVALID, f"prevResult.{key}: {dumps(each)[:80]} is not an object")
    return lists | {"dns": _of(before, "dns", dict, None, "prevResult.")}


def result_of(answer: Json, who: Json, config: Json, version: str, before: Json, given: Json | None = None) -> Json:
    """The result of an ADD, after what plugins before us said."""
    interfaces = list(before["interfaces"])
    ours = len(interfaces) + 2
    interfaces += [
        {"name": answer["bridge"], "mac": answer["bridge_mac"]},
        {"name": answer["host_ifname"]},
        {"name": who["ifname"], "mac": answer["mac"], "sandbox": who["netns"]},
    ]
    if version == "1.1.0":
        for each in interfaces[-3:]:
            each["mtu"] = answer["mtu"]
    ips = list(before["ips"])
    for each in answer["addresses"]:
        ip = {"address": each["address"], "interface": ours}
        if each["gateway"]:
            ip["gateway"] = each["gateway"]
        if version < "1.0.0":
            ip["version"] = "6" if ":" in each["address"] else "4"
        ips.append(ip)
    routes = before["routes"] + answer["routes"]
    result: Json = {"cniVersion": version, "interfaces": interfaces, "ips": ips}
    if routes:
        result["routes"] = routes
    dns = config.get("dns") or (given or {}).get("dns") or before["dns"] or answer["dns"]
    if dns:
        result["dns"] = dns
    return result


# -- GC ------------------------------------------------------------------------------------------------


def _collect(network: str, delegate: str | None, environment: Mapping[str, str], config: Json) -> None:
    valid = config.get("cni.dev/valid-attachments", False)
    if valid is None:  # how a runtime in Go writes a list of none
        valid = []
    if not isinstance(valid, list):
        raise Refused(INVALID, "GC needs the list cni.dev/valid-attachments, and it is not in the configuration")
    pairs = []
    for each in valid:
        if not isinstance(each, dict) or not all(isinstance(each.get(key), str) for key in ("containerID", "ifname")):
            raise Refused(INVALID, f"cni.dev/valid-attachments: {dumps(each)[:80]} has no containerID and ifname")
        pairs.append([each["containerID"], each["ifname"]])
    troubles = []
    try:
        ask("cni-gc", {"network": network, "valid": pairs})
    except Refused as refused:
        troubles.append(refused)
    if delegate is not None:
        try:
            run_delegate(delegate, environment, config)
        except Refused as refused:
            troubles.append(refused)
    if troubles:
        raise Refused(troubles[0].code, "; ".join(each.text for each in troubles), troubles[0].details)


# -- whoever else gives addresses ----------------------------------------------------------------------


def delegate_of(config: Json) -> str | None:
    """The type of the plugin that gives addresses; None where Weft does it itself."""
    kind = _of(_of(config, "ipam", dict, {}), "type", str, "weft", "ipam.")
    if kind in ("", "weft"):
        return None
    if kind[0] not in _ALNUM or not _NAME_CHARS.issuperset(kind):
        raise Refused(INVALID, f"ipam.type {kind!r} is not the bare name of a plugin")
    return str(kind)


def run_delegate(kind: str, environment: Mapping[str, str], config: Json) -> Json:
    """Its answer; empty where it gives none. Raises `Refused`."""
    import subprocess

    folders = [folder for folder in environment.get("CNI_PATH", "").split(":") if folder.startswith("/")]
    paths = [f"{folder}/{kind}" for folder in folders]
    path = next((path for path in paths if os.access(path, os.X_OK) and os.path.isfile(path)), None)
    if path is None:
        raise Refused(DELEGATE, f"the plugin {kind} that ipam.type names is not in CNI_PATH ({':'.join(folders)})")
    try:
        done = subprocess.run(
            [path], input=dumps(config).encode(), capture_output=True, env=dict(environment), check=False
        )
    except OSError as error:
        raise Refused(DELEGATE, f"{path} cannot be run: {error.strerror}") from None
    try:
        answer = loads(done.stdout) if done.stdout.strip() else {}
    except (ValueError, RecursionError):
        answer = None
    if not isinstance(answer, dict):
        raise Refused(DELEGATE, f"{path} answers what is not JSON", done.stderr.decode(errors="replace")[:400])
    if done.returncode != 0:
        code = answer.get("code")
        said = answer.get("msg") or done.stderr.decode(errors="replace").strip()[:400] or f"exit {done.returncode}"
        raise Refused(code if type(code) is int else DELEGATE, f"{kind}: {said}", str(answer.get("details", "")))
    return answer


def given_by_delegate(given: Json, config: Json) -> Json:
    """Addresses, gateways and routes that a delegate has chosen, in place of what the configuration says of them."""
    ips = [each for each in _of(given, "ips", list, []) if isinstance(each, dict)]
    addresses = [each["address"] for each in ips if isinstance(each.get("address"), str)]
    if not addresses:
        raise Refused(DELEGATE, f"{config['ipam']['type']} gave no address")
    with_gateway = [each for each in ips if isinstance(each.get("gateway"), str) and each.get("address") in addresses]
    gateways = [each["gateway"] for each in with_gateway]
    _of(given, "dns", dict, None)
    routes = [_route(each) for each in [*_of(config, "routes", list, []), *_of(given, "routes", list, [])]]
    out = [(dst, via) for dst, via in routes if dst in DEFAULT_ROUTES]
    is_default = config.get("isDefaultGateway") is True
    to_gateway = {":" in dst for dst, via in out if not via} | ({True, False} if is_default else set())
    leads = [via for _, via in out if via] + [each for each in gateways if (":" in each) in to_gateway]
    by_family = {":" in each: each for each in reversed(leads)}
    return {
        "addresses": addresses,
        "ranges": [],
        "bridge_addresses": [f"{each['gateway']}/{each['address'].rpartition('/')[2]}" for each in with_gateway],
        "leads_out": False,
        "gateways": [by_family[family] for family in sorted(by_family)],
        "routes": [[dst, via] for dst, via in routes if dst not in DEFAULT_ROUTES],
    }


# -- the daemon ----------------------------------------------------------------------------------------


def ask(verb: str, args: Json, timeout_s: float = ANSWER_TIMEOUT_S) -> Json:
    """The daemon's answer to one request. Raises `Refused`."""
    path = f"{RUN_DIR}/weft.sock"
    connection = socket(AF_UNIX)
    connection.settimeout(timeout_s)
    try:
        connection.connect(path)
        connection.sendall(dumps({"verb": verb, "args": args}).encode() + b"\n")
        chunks = [b""]
        while not chunks[-1].endswith(b"\n"):
            chunk = connection.recv(65536)
            if not chunk or sum(map(len, chunks)) > ANSWER_BYTES_MAX:
                break
            chunks.append(chunk)
    except TimeoutError:
        raise Refused(TRY_LATER, f"the weft daemon does not answer on {path} (waited {timeout_s:g} s)") from None
    except OSError as error:
        code = UNAVAILABLE if verb == "cni-status" else TRY_LATER
        text = f"the weft daemon is not running (no answer on {path}: {error.strerror}); start it with `weft launch`"
        raise Refused(code, text) from None
    finally:
        connection.close()
    try:
        answer = loads(b"".join(chunks))
        if "ok" in answer:
            return answer["ok"] or {}
        why, text = str(answer["error"]["code"]), str(answer["error"]["message"])
    except (ValueError, KeyError, TypeError):
        raise Refused(TRY_LATER, f"the weft daemon broke off without an answer on {path}") from None
    raise Refused(CODES.get(why, OTHER), text, why)


if __name__ == "__main__":
    sys.exit(main())
