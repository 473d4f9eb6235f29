"""Writes samples of any time into a Prometheus, by its remote-write protocol."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable

import httpx

_SERIES = re.compile(r"([a-zA-Z_:][\w:]*)(?:\{(.*)\})? (\S+)")
_LABEL = re.compile(r'(\w+)="([^"]*)"')
_MOST_LITERAL = 1 << 16

Samples = dict[str, list[tuple[float, float]]]


def add_page(samples: Samples, text: str, at_s: float, labels: str) -> None:
    """Add the samples of a page of /metrics, with more labels, such as `pod="a"`."""
    for line in text.splitlines():
        if (found := _SERIES.fullmatch(line)) is not None:
            words = ",".join(filter(None, (f'__name__="{found[1]}"', found[2], labels)))
            samples.setdefault(words, []).append((at_s, float(found[3])))


def write(url: str, samples: Samples) -> None:
    """Write all samples, those of a series in order of time."""
    body = b"".join(_field(1, _series(labels, points)) for labels, points in samples.items())
    headers = {
        "content-encoding": "snappy",
        "content-type": "application/x-protobuf",
        "x-prometheus-remote-write-version": "0.1.0",
    }
    answer = httpx.post(f"{url}/api/v1/write", content=_snappy(body), headers=headers, trust_env=False, timeout=60)
    assert answer.status_code == 204, answer.text


def _series(labels: str, points: Iterable[tuple[float, float]]) -> bytes:
    words = sorted(_LABEL.findall(labels))
    shown = b"".join(_field(1, _field(1, k.encode()) + _field(2, v.encode())) for k, v in words)
    return shown + b"".join(
        _field(2, b"\x09" + struct.pack("<d", value) + b"\x10" + _varint(round(1000 * at_s))) for at_s, value in points
    )


def _field(number: int, content: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _snappy(content: bytes) -> bytes:
    """Return a Snappy block of literals, which is not smaller than its content."""
    out = [_varint(len(content))]
    for start in range(0, len(content), _MOST_LITERAL):
        part = content[start : start + _MOST_LITERAL]
        out += [bytes([61 << 2]), struct.pack("<H", len(part) - 1), part]
    return b"".join(out)
