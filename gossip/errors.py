"""The one exception that bytes from the network may cause.

`reason` is a short stable word for counters and tests (`bad-magic`, `too-long`, `wrong-password`); the message is for
people. Our own mistakes are `assert`s and never this.
"""

from __future__ import annotations


class ProtocolError(Exception):
    """The other side broke the rules. What raised it is finished: the link is closed, the document dropped."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason
