"""Requests, as bytes, that two parsers of HTTP may read in two ways."""

from __future__ import annotations

_POST, _CHUNKED = b"POST / HTTP/1.1\r\nhost: x\r\n", b"transfer-encoding: chunked\r\n"
_BODY = b"3\r\nabc\r\n0\r\n\r\n"
PLAIN = _POST + b"content-length: 3\r\n\r\nabc"
IN_CHUNKS = _POST + _CHUNKED + b"\r\n" + _BODY
AMBIGUOUS = {
    "length, coding": _POST + b"content-length: 3\r\n" + _CHUNKED + b"\r\n" + _BODY,
    "coding, length": _POST + _CHUNKED + b"content-length: 3\r\n\r\n" + _BODY,
    "two equal lengths": _POST + b"content-length: 3\r\ncontent-length: 3\r\n\r\nabc",
    "two lengths": _POST + b"content-length: 3\r\ncontent-length: 2\r\n\r\nabc",
    "list of lengths": _POST + b"content-length: 3, 3\r\n\r\nabc",
    "signed length": _POST + b"content-length: +3\r\n\r\nabc",
    "space before the colon": _POST + b"content-length : 3\r\n\r\nabc",
    "folded line": _POST + b"a: b\r\n c\r\ncontent-length: 3\r\n\r\nabc",
    "folded coding": _POST + b"transfer-encoding:\r\n chunked\r\n\r\n" + _BODY,
    "line feed after a line": b"POST / HTTP/1.1\r\nhost: x\na: b\r\ncontent-length: 3\r\n\r\nabc",
    "line feeds alone": b"POST / HTTP/1.1\nhost: x\ncontent-length: 3\n\nabc",
    "line feed at the end": _POST + b"content-length: 3\r\n\nabc",
    "carriage return alone": _POST + b"a: b\rc: d\r\ncontent-length: 3\r\n\r\nabc",
    "null": _POST + b"a: b\x00c\r\ncontent-length: 3\r\n\r\nabc",
    "chunk extension": _POST + _CHUNKED + b"\r\n3;a=b\r\nabc\r\n0\r\n\r\n",
    "space after a chunk's length": _POST + _CHUNKED + b"\r\n3 \r\nabc\r\n0\r\n\r\n",
    "chunk without its end": _POST + _CHUNKED + b"\r\n3\r\nabc\n0\r\n\r\n",
    "negative chunk": _POST + _CHUNKED + b"\r\n-3\r\nabc\r\n0\r\n\r\n",
    "hexadecimal chunk": _POST + _CHUNKED + b"\r\n0x3\r\nabc\r\n0\r\n\r\n",
    "line feed in a trailer": _POST + _CHUNKED + b"\r\n3\r\nabc\r\n0\r\na: b\n\r\n",
    "two codings": _POST + _CHUNKED + _CHUNKED + b"\r\n" + _BODY,
    "chunked twice": _POST + b"transfer-encoding: chunked, chunked\r\n\r\n" + _BODY,
    "another coding": _POST + b"transfer-encoding: gzip, chunked\r\n\r\n" + _BODY,
    "unknown coding": _POST + b"transfer-encoding: xchunked\r\n\r\n" + _BODY,
    "coding after a control character": _POST + b"transfer-encoding: \x0bchunked\r\n\r\n" + _BODY,
    "chunks of version 1.0": b"POST / HTTP/1.0\r\nhost: x\r\n" + _CHUNKED + b"\r\n" + _BODY,
    "two hosts": b"POST / HTTP/1.1\r\nhost: x\r\nhost: y\r\ncontent-length: 3\r\n\r\nabc",
    "no host": b"POST / HTTP/1.1\r\ncontent-length: 3\r\n\r\nabc",
    "line before the first header": b"POST / HTTP/1.1\r\n host: x\r\ncontent-length: 3\r\n\r\nabc",
    "another version": b"POST / HTTP/2.7\r\nhost: x\r\ncontent-length: 3\r\n\r\nabc",
}
