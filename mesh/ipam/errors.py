"""What the pure parts of address allocation raise."""

from __future__ import annotations


class Refused(Exception):
    """A request that cannot be done. `code` is for programs, the message one line for people."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
