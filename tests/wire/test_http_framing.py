"""Tests of requests that two parsers may read in two ways."""

from __future__ import annotations

import pytest

from disagg_wire.http_framing import chunk_problem, framing_problem, head_problem

HOST = (b"host", b"x")


@pytest.mark.parametrize(
    "headers",
    [
        [(b"content-length", b"3"), (b"transfer-encoding", b"chunked")],
        [(b"content-length", b"3"), (b"content-length", b"3")],
        [(b"content-length", b"3, 3")],
        [(b"content-length", b"+3")],
        [(b"transfer-encoding", b"gzip, chunked")],
        [(b"transfer-encoding", b"chunked"), (b"transfer-encoding", b"chunked")],
        [(b"transfer-encoding", b"identity")],
        [HOST],
    ],
)
def test_ambiguous_headers_are_refused(headers: list[tuple[bytes, bytes]]) -> None:
    assert framing_problem(b"1.1", [HOST, *headers])


def test_versions_decide_too() -> None:
    assert framing_problem(b"1.0", [HOST, (b"transfer-encoding", b"chunked")])
    assert framing_problem(b"2.7", [HOST])
    assert framing_problem(b"1.1", [])
    assert not framing_problem(b"1.0", [])


@pytest.mark.parametrize(
    "headers", [[], [(b"content-length", b"0")], [(b"transfer-encoding", b"Chunked")], [(b"a", b"b"), (b"a", b"b")]]
)
def test_plain_headers_are_taken(headers: list[tuple[bytes, bytes]]) -> None:
    assert not framing_problem(b"1.1", [HOST, *headers])


def test_chunks_may_be_refused() -> None:
    assert framing_problem(b"1.1", [HOST, (b"transfer-encoding", b"chunked")], chunked=False)


@pytest.mark.parametrize(
    ("head", "refused"),
    [
        (b"GET / HTTP/1.1\r\nhost: x\r\n\r\n", False),
        (b"POST / HTTP/1.1\r\nContent-Length: 3\r\nhost: x\r\n\r\n", False),
        (b"POST / HTTP/1.1\r\nhost: x\r\nx-content-length: 3\r\n\r\n", False),
        (b"GET / HTTP/1.1\nhost: x\r\n\r\n", True),
        (b"GET / HTTP/1.1\r\nhost: x\r\n\n", True),
        (b"GET / HTTP/1.1\r\na: b\r\n c\r\n\r\n", True),
        (b"GET / HTTP/1.1\r\na: b\r\n\tc\r\n\r\n", True),
        (b"POST / HTTP/1.1\r\nCONTENT-LENGTH: 3\r\na: b\r\ncontent-length: 3\r\n\r\n", True),
        (b"POST / HTTP/1.1\r\nContent-Length: 3\r\nContent-Length: 3\r\n\r\n", True),
        (b"POST / HTTP/1.1\r\nContent-Length: 3, 3\r\n\r\n", True),
    ],
)
def test_heads(head: bytes, refused: bool) -> None:
    assert bool(head_problem(head)) is refused
    assert bool(head_problem(bytearray(head))) is refused


@pytest.mark.parametrize(
    ("line", "refused"),
    [
        (b"3\r\n", False),
        (b"fFfF\r\n", False),
        (b"3;a=b\r\n", True),
        (b"3 \r\n", True),
        (b"\r\n", True),
        (b"0x3\r\n", True),
    ],
)
def test_lines_that_begin_chunks(line: bytes, refused: bool) -> None:
    assert bool(chunk_problem(line)) is refused
