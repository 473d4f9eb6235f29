"""Log lines that nobody else can write: what somebody has sent begins no line of the log."""

from __future__ import annotations

import logging
import re
import sys

FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
# Control characters, of terminals, too, and what some readers take for the end of a line.
_CONTROL = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u2029]")
_CONTINUED = "\n  | "


def one_record(text: str) -> str:
    """Return the text of a record, in which control characters are escaped, and every line but the
    first one begins with a mark.
    """
    # A tab is harmless, and tracebacks may contain one.
    escaped = _CONTROL.sub(lambda found: found[0] if found[0] == "\t" else f"\\x{ord(found[0]):02x}", text)
    return escaped.replace("\n", _CONTINUED)


class LogFormatter(logging.Formatter):
    """The format of the log of all processes."""

    def __init__(self, form: str = FORMAT) -> None:
        super().__init__(form)

    def format(self, record: logging.LogRecord) -> str:
        return one_record(super().format(record))


def configure(level: str, form: str = FORMAT) -> None:
    """Log records of at least this severity to the standard error stream."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(LogFormatter(form))
    logging.basicConfig(level=level, handlers=[handler])
