"""Errors that are meant for the person at the terminal.

The text is one line that names the thing, the cause and the cure. Whoever raises one has already said everything, so
the shells print it as it is, without a traceback. Everything else that is raised is a mistake of ours.
"""

from __future__ import annotations


class UserError(Exception):
    """One line for a person: the thing, the cause, the cure."""

    exit_status = 1

    def __init__(self, message: str) -> None:
        # File names, host names and other people's error texts end up in here; none of them may break the one line.
        super().__init__(" ".join(message.split()))


class UsageError(UserError):
    """The command line itself is wrong."""

    exit_status = 2
