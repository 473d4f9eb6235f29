"""PURE: Requests that two parsers of HTTP may read in two ways.

Where a proxy and the server behind it do not agree on where a request ends, one client can put
words into the request of another one (request smuggling). Such requests are refused, whatever the
parser makes of them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

_LENGTH, _CODING, _HOST = b"content-length", b"transfer-encoding", b"host"
# A line that ends without a carriage return, or one that continues the one before it.
_LOOSE_LINE = re.compile(rb"(?<!\r)\n|\n[ \t]")
_CHUNK = re.compile(rb"[0-9A-Fa-f]{1,16}\r\n")


def framing_problem(version: bytes, headers: Iterable[tuple[bytes, bytes]], *, chunked: bool = True) -> str:
    """Return what is ambiguous in the headers of a request, or "". Names are in lower case.

    `chunked` says whether a body may come in chunks.
    """
    lengths, codings, hosts = [], [], 0
    for name, value in headers:
        if name == _LENGTH:
            lengths.append(value)
        elif name == _CODING:
            codings.append(value.strip().lower())
        elif name == _HOST:
            hosts += 1
    if lengths and codings:
        return "both content-length and transfer-encoding"
    if len(lengths) > 1 or (lengths and not lengths[0].strip().isdigit()):
        return "more than one content-length, or none that is a number"
    if codings and not (chunked and codings == [b"chunked"] and version == b"1.1"):
        return "a transfer-encoding that is not taken here"
    if version not in (b"1.0", b"1.1"):
        return "another version than 1.0 and 1.1"
    if hosts > 1 or (not hosts and version != b"1.0"):
        return "not exactly one host"
    return ""


def head_problem(head: bytes | bytearray) -> str:
    """Return what is ambiguous in the bytes of a head, or "".

    It ends with the empty line. Only what a lenient parser no longer shows afterwards is looked
    for: how lines end, and how often there is a length.
    """
    if _LOOSE_LINE.search(head):
        return "a line that ends with a line feed alone, or goes on in the next one"
    lowered = head.lower()
    at = lowered.find(b"\ncontent-length:")
    if at < 0:
        return ""
    length, _, rest = lowered[at + len(b"\ncontent-length:") :].partition(b"\r\n")
    if not length.strip().isdigit() or (b"\n" + rest).find(b"\ncontent-length:") >= 0:
        return "more than one content-length, or none that is a number"
    return ""


def chunk_problem(line: bytes | bytearray) -> str:
    """Return what is ambiguous in the line that begins a chunk, or ""."""
    return "" if _CHUNK.fullmatch(line) else "a chunk that begins with more than its length"
