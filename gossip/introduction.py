"""How the two ends of a link show who they are: each signs what only this link has in common.

A link is sealed before anybody says a name; its handshake hash is known to its two ends and to nobody else, whatever a
third has relayed. A hello signs that hash with the identity key. The role of its sender is signed with it, so that a
hello cannot be sent back to its author. Whether the name is welcome is the node's affair; what
hosts are told where two have one name is said here.
"""

from __future__ import annotations

from gossip.errors import ProtocolError
from gossip.identity import Identity, signature_is_valid
from gossip.linkstate import LinkState
from gossip.names import PeerName, format_name, name_of_key
from gossip.peers import PeerRecord
from gossip.wire import Hello

_LABEL = b"weft hello 1\x00"


def introduce(identity: Identity, record: PeerRecord, link: LinkState) -> Hello:
    """Our hello on `link`."""
    signature = identity.sign(_signed_text(link.initiator, link.handshake_hash))
    return Hello(
        identity.public_key, signature, record.instance, link.hello_sequence, record.nickname, observed=link.remote
    )


def identify_untrusted(hello: Hello, link: LinkState) -> PeerName:
    """Who is at the other end of `link`. Raises `ProtocolError` where it has not shown it."""
    if not signature_is_valid(hello.public_key, hello.signature, _signed_text(not link.initiator, link.handshake_hash)):
        raise ProtocolError("bad-identity", "the hello is not signed by the key that it names")
    return name_of_key(hello.public_key)


def also_used_by(name: PeerName, link: LinkState) -> str:
    """What the host that has a name is told of another one, at the end of `link`."""
    return (
        f"another live host ({link.remote}) uses this peer's identity {format_name(name)}; if its state directory was "
        "copied, run `weft reset` on one of them to give it an identity of its own"
    )


def in_use_by(name: PeerName, link: LinkState) -> str:
    """What a host is told that comes with the name of the one at the end of `link`."""
    return (
        f"the peer name {format_name(name)} is in use by a live host at {link.remote}; if the state directory was "
        "copied from there, run `weft reset` here to get an identity of its own"
    )


def _signed_text(initiator: bool, handshake_hash: bytes) -> bytes:
    return _LABEL + (b"i" if initiator else b"r") + handshake_hash
