"""Log lines: `2026-01-31T12:00:00.123Z info link-up peer=host2 address=10.1.2.3:6783`.

One formatter, an event's name and then fields, so that a line can be searched by machine and read by people. Values
with spaces or anything a terminal would act on are quoted: what a stranger on the network chose as a nickname cannot
forge a line. Levels: error, a person must act; warning, we recovered; info, the topology or an endpoint changed; debug,
the rest. Nothing is logged per frame.
"""

from __future__ import annotations

import json
import logging
import logging.handlers
import os
import time
from typing import Any

LOG_BYTES_MAX = 10 * 1024 * 1024
LOG_FILES_KEPT = 3
"""Rotated files beside the current one, `weft.log.1` the youngest: 40 MiB in all at most."""

VALUE_CHARS_MAX = 1024
"""Longer values are cut: one hostile error text must not fill the log."""


class EventLog:
    """The log of one area (`links`, `attach`): its methods take an event's name and fields."""

    __slots__ = ("_logger",)

    def __init__(self, area: str) -> None:
        self._logger = logging.getLogger(f"weft.{area}")

    def debug(self, event: str, /, **fields: object) -> None:
        self._log(logging.DEBUG, event, fields)

    def info(self, event: str, /, **fields: object) -> None:
        self._log(logging.INFO, event, fields)

    def warning(self, event: str, /, **fields: object) -> None:
        self._log(logging.WARNING, event, fields)

    def error(self, event: str, /, **fields: object) -> None:
        self._log(logging.ERROR, event, fields)

    def exception(self, event: str, /, **fields: object) -> None:
        """An error with the traceback of the exception being handled: for our own mistakes only."""
        self._log(logging.ERROR, event, fields, exc_info=True)

    def _log(self, level: int, event: str, fields: dict[str, Any], exc_info: bool = False) -> None:
        if self._logger.isEnabledFor(level):
            self._logger.log(level, event, extra={"fields": fields}, exc_info=exc_info)


class EventFormatter(logging.Formatter):
    """The one formatter. Records of libraries, which have no fields, become an event of the library's name."""

    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, object] | None = getattr(record, "fields", None)
        if fields is None:
            event, fields = record.name, {"message": record.getMessage()}
        else:
            event = record.getMessage()
        seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line = f"{seconds}.{int(record.msecs):03d}Z {record.levelname.lower()} {event}"
        line += "".join(f" {key}={format_value(value)}" for key, value in fields.items())
        if record.exc_info:
            line += "\n  " + self.formatException(record.exc_info).replace("\n", "\n  ")
        return line


def format_value(value: object) -> str:
    """A value as one word: quoted as in JSON where it is not one already."""
    text = str(value)
    if len(text) > VALUE_CHARS_MAX:
        text = text[:VALUE_CHARS_MAX] + "..."
    if text and text.isprintable() and not any(char in ' "=' for char in text):
        return text
    return json.dumps(text, ensure_ascii=not text.isprintable())


class _LogFile(logging.handlers.RotatingFileHandler):
    """The log file, rotated by size. Standard output and error of the daemon follow it into the new file, because
    what the interpreter itself has to say in a crash goes there."""

    def __init__(self, path: str) -> None:
        super().__init__(path, maxBytes=LOG_BYTES_MAX, backupCount=LOG_FILES_KEPT, encoding="utf-8", errors="replace")
        self._take_standard_streams()

    def doRollover(self) -> None:
        super().doRollover()
        self._take_standard_streams()

    def _open(self) -> Any:
        stream = super()._open()
        os.fchmod(stream.fileno(), 0o600)
        return stream

    def _take_standard_streams(self) -> None:
        if self.stream is not None:
            for descriptor in (1, 2):
                os.dup2(self.stream.fileno(), descriptor)


def configure(level: str, log_file: str | None) -> None:
    """Send everything to `log_file`, or to standard error where there is none. Once, at the daemon's start."""
    handler = _LogFile(log_file) if log_file else logging.StreamHandler()
    handler.setFormatter(EventFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.raiseExceptions = False  # a full disk costs log lines, never the daemon
