"""The command's side of prime, rmpeer and `weft ipam`: words to a request, the answer to text.

Imported when one of them runs. Knows nothing of what the daemon does with a request, and of a file of exported
addresses only that it has a list of entries, which may be longer than one request.
"""

from __future__ import annotations

import json
import sys

from mesh import arguments, client
from mesh.errors import UsageError, UserError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from mesh.usage import Parsed

    Row = dict[str, Any]

PRIME_SILENCE_S = 30.0
"""The daemon says every few seconds what it waits for."""
SLOW_ANSWER_S = 60.0
"""Others have to be asked, one after the other."""
TIMEOUT_MAX_S = 365 * 86400
FILE_BYTES_MAX = 64 * 1024 * 1024
PART_ENTRIES = 100
PART_BYTES = 32 * 1024
"""So much of a file goes into one request."""

_SUBVERBS = {"join": (0, 0), "export": (0, 1), "import": (1, 1), "check": (0, 0)}
_OPTIONS = {"--ring": ("join",), "--repair": ("check",), "--force": ("join", "import")}


def prime(parsed: Parsed) -> int:
    """Wait until addresses can be given, and say what for."""
    timeout_s = _seconds(parsed)
    said = ""

    def show(row: Row) -> None:
        nonlocal said
        waiting_for = _printable(str(row.get("waiting_for") or ""))
        if waiting_for != said:
            print(f"weft: waiting for {waiting_for}", file=sys.stderr, flush=True)
            said = waiting_for

    answer = client.call("prime", {"timeout_s": timeout_s}, on_row=show, timeout_s=PRIME_SILENCE_S)
    if parsed.has("--json"):
        _print_json(answer)
    return 0


def _seconds(parsed: Parsed) -> float | None:
    text = parsed.value("--timeout")
    if text is None:
        return None
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds <= TIMEOUT_MAX_S:
        raise UsageError(f"prime: --timeout {text!r} is not a number of seconds")
    return seconds


def rmpeer(parsed: Parsed) -> int:
    """Ask whoever sits there, as `reset` does, then have the peers' addresses taken over."""
    try:
        peers = [arguments.parse_nickname(word) for word in parsed.words]
    except ValueError as error:
        raise UsageError(f"rmpeer: {error}") from None
    force = parsed.has("--force")
    if not force and not _confirmed(peers):
        print("weft: nothing was taken over", file=sys.stderr)
        return 1
    answer = client.call("rmpeer", {"peers": peers, "force": force}, timeout_s=SLOW_ANSWER_S)
    if parsed.has("--json"):
        _print_json(answer)
    else:
        count = answer["addresses"]
        print(f"{_addresses(count)} of {', '.join(peers)} taken over by this host")
    return 0


def _confirmed(peers: list[str]) -> bool:
    if not sys.stdin.isatty():
        return True
    owned: dict[Any, Any] = {}
    for row in client.call("ipam", timeout_s=client.READ_TIMEOUT_S).get("peers") or []:
        owned |= dict.fromkeys((row.get("peer"), row.get("nickname")), row.get("addresses"))
    for peer in peers:
        count = owned.get(peer)
        print(f"{_printable(peer)}: {'no addresses known' if count is None else _addresses(count)}")
    print("This host takes them over and gives them to others. What still runs there and has one of them")
    print("collides with whoever gets it. Only for hosts that are gone for good.")
    print("Go on? [y/N] ", end="", flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def _addresses(count: int) -> str:
    return f"{count:,} address" if count == 1 else f"{count:,} addresses"


def ipam(parsed: Parsed) -> int:
    """The four of `weft ipam`."""
    name, *words = parsed.words
    if name not in _SUBVERBS:
        raise UsageError(f"there is no `ipam {name}`; there are {', '.join(_SUBVERBS)}")
    least, most = _SUBVERBS[name]
    if len(words) < least:
        raise UsageError(f"ipam {name}: FILE is missing; usage: weft ipam {name} FILE")
    if len(words) > most:
        raise UsageError(f"ipam {name}: {words[most]!r} is too much")
    for flag, fitting in _OPTIONS.items():
        if parsed.has(flag) and name not in fitting:
            raise UsageError(f"ipam {name} has no {flag}; it is for `ipam {'` and `ipam '.join(fitting)}`")
    if name == "join":
        return _join(parsed)
    if name == "export":
        return _export(words)
    if name == "import":
        return _import(parsed, words[0])
    return _check(parsed)


def _join(parsed: Parsed) -> int:
    ring = parsed.value("--ring")
    try:
        ring = None if ring is None else arguments.parse_ring(ring)
    except ValueError as error:
        raise UsageError(f"ipam join: {error}") from None
    answer = client.call("ipam-join", {"ring": ring, "force": parsed.has("--force")}, timeout_s=SLOW_ANSWER_S)
    if parsed.has("--json"):
        _print_json(answer)
        return 0
    print(f"joined ring {_printable(str(answer['joined']))}")
    for conflict in answer["conflicts"]:
        both = _printable(f"{conflict['address']}: {conflict['here']} and {conflict['there']}")
        print(f"in use twice: {both}; detach one of them")
    return 0


def _export(words: list[str]) -> int:
    text = json.dumps(client.call("ipam-export", {}), indent=2) + "\n"
    if not words or words[0] == "-":
        sys.stdout.write(text)
        return 0
    with open(words[0], "w", encoding="utf-8") as file:
        file.write(text)
    return 0


def _import(parsed: Parsed, path: str) -> int:
    force, taken = parsed.has("--force"), 0
    refused: list[Row] = []
    for part in _parts(_document(path), path):
        answer = client.call("ipam-import", {"document": part, "force": force}, timeout_s=SLOW_ANSWER_S * 20)
        force = True  # what is given by now is what we brought
        taken += answer["taken"]
        refused += answer["refused"]
    if parsed.has("--json"):
        _print_json({"taken": taken, "refused": refused})
    else:
        print(f"{_addresses(taken)} claimed")
        for row in refused:
            print(_printable(f"{row['address']} of {row['owner']}: {row['problem']}"))
    return 1 if refused else 0


def _document(path: str) -> Row:
    try:
        with open(path, "rb") as file:
            raw = file.read(FILE_BYTES_MAX + 1)
        if len(raw) > FILE_BYTES_MAX:
            raise ValueError
        document = json.loads(raw)
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror}); check its path and mode") from None
    except (ValueError, RecursionError):
        raise _no_export(path) from None
    if not isinstance(document, dict) or not isinstance(document.get("entries"), list):
        raise _no_export(path)
    return document


def _no_export(path: str) -> UserError:
    return UserError(f"{path} is not what `weft ipam export` writes; give a file that is")


def _parts(document: Row, path: str) -> Iterator[Row]:
    """The same as several, each small enough for a request."""
    rest = {key: value for key, value in document.items() if key != "entries"}
    part: list[Any] = []
    size = 0
    for entry in document["entries"]:
        length = len(json.dumps(entry))
        if length > PART_BYTES:
            raise _no_export(path)
        if part and (size + length > PART_BYTES or len(part) == PART_ENTRIES):
            yield {**_brief(rest), "entries": part}
            part, size = [], 0
        part.append(entry)
        size += length
    yield {**_brief(rest), "entries": part}


def _brief(rest: Row) -> Row:
    """Without what may be long: only who reads the file wants that."""
    return {key: value for key, value in rest.items() if not isinstance(value, (list, dict))}


def _check(parsed: Parsed) -> int:
    """Exit status 1 where something differs and was not repaired."""
    findings = client.call("ipam-check", {"repair": parsed.has("--repair")}, timeout_s=SLOW_ANSWER_S * 20)
    if parsed.has("--json"):
        _print_json(findings)
    else:
        for row in findings:
            state = "repaired" if row.get("repaired") else "not repaired" if parsed.has("--repair") else "found"
            why = f" ({row['why']})" if row.get("why") else ""
            print(_printable(f"{row['address']} of {row['owner']}: {row['problem']}; {state}{why}"))
        if not findings:
            print("what is given and what is attached are the same")
    return 1 if any(not row.get("repaired") for row in findings) else 0


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=2))


def _printable(text: str) -> str:
    """Owners and nicknames were written by others: nothing of them may steer a terminal."""
    return "".join(char if char.isprintable() else "?" for char in text)
