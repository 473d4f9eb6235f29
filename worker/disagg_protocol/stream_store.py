"""PURE: What is kept of streams that clients may resume: their tokens, for a while, in few bytes.

docs/protocol.md says what routers do with it.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from disagg_protocol.bodies import ENDS, DecodeRequest, Line, PrefillRequest, encode_line, encode_token

# About what a record takes beside its tokens, and a line beside its text.
_RECORD_BYTES, _LINE_BYTES = 1024, 120
_TOKEN_BYTES = array("i").itemsize


class StreamKey(NamedTuple):
    """The name of one worker's part of one attempt."""

    name: str
    run: str
    epoch: int
    leg: str
    """`prefill` or `decode`."""


@dataclass(slots=True, eq=False)
class StreamRecord:
    """The tokens of one choice of an answer, from its first one on, as far as this worker knows
    them.
    """

    key: StreamKey
    body: str
    """What two requests have in common that ask for the same."""
    began_ms: int
    seed: int
    prompt_tokens: int
    cached_tokens: int | None = None
    tokens: array[int] = field(default_factory=lambda: array("i"))
    end: Line | None = None
    """The line that has ended the stream; None while it runs, or if it was broken off."""
    unread_since_s: float | None = None
    """Since when it has ended or has no reader; None before that."""
    is_whole: bool = True
    """Whether no token is missing between those that are known."""
    size_bytes: int = _RECORD_BYTES
    first_own: int = 0
    """The index of the first token that was made here."""
    _told: dict[int, bytes] = field(default_factory=dict)

    def take(self, line: Line) -> None:
        """Keep what a line says of the stream."""
        kind = line["type"]
        if kind == "token":
            self._token(line)
        elif kind == "accepted" and line.get("first_token") is not None:
            # The one that prefill has sent to the router: here, no more than its ID is known.
            self.tokens.append(line["first_token"])
            self.size_bytes += _TOKEN_BYTES
        elif kind in ENDS:
            self.end = line

    def _token(self, line: Line) -> None:
        index = line["index"]
        if index != len(self.tokens):
            self.is_whole = False
            return
        self.tokens.append(line["token"])
        self.size_bytes += _TOKEN_BYTES
        if len(line) > 3:  # more than its type, index and token
            told = self._told[index] = encode_line(line)
            self.size_bytes += len(told) + _LINE_BYTES

    def lines(self) -> bytes:
        """Return the events of all tokens."""
        told = self._told
        found = [told.get(i) or encode_token(i, token) for i, token in enumerate(self.tokens)]
        if found and 0 not in told and self.cached_tokens is not None:
            first = {"type": "token", "index": 0, "token": self.tokens[0], "cached_tokens": self.cached_tokens}
            found[0] = encode_line(first)
        return b"".join(found)

    def described(self) -> dict[str, Any]:
        """Return what a router is told that looks for it. `first` is the first token made here."""
        told = self._told.get(self.first_own)
        return {
            **self.key._asdict(),
            "body": self.body,
            "began_ms": self.began_ms,
            "seed": self.seed,
            "prompt_tokens": self.prompt_tokens,
            "tokens": len(self.tokens),
            "first": None if told is None else json.loads(told),
        }


def record_of(request: DecodeRequest | PrefillRequest) -> StreamRecord | None:
    """Return the record of a request that begins; None if nothing is to be kept of it."""
    resume, emitted = request.resume, request.tokens[request.prompt_tokens :]
    if resume is None:
        return None
    leg = "decode" if isinstance(request, DecodeRequest) else "prefill"
    return StreamRecord(
        key=StreamKey(resume.name, resume.run, request.epoch, leg),
        body=resume.body,
        began_ms=resume.began_ms,
        seed=request.sampling.seed,
        prompt_tokens=request.prompt_tokens,
        cached_tokens=resume.cached_tokens,
        tokens=array("i", emitted),
        size_bytes=_RECORD_BYTES + _TOKEN_BYTES * len(emitted),
        first_own=len(emitted),
    )


class StreamStore:
    """The records of a worker, bounded in bytes and in time."""

    def __init__(self, keep_s: float, most_bytes: int) -> None:
        self._keep_s = keep_s
        self._most_bytes = most_bytes
        self._by_name: dict[str, dict[StreamKey, StreamRecord]] = {}
        # Both in the order in which they came.
        self._read: dict[StreamKey, StreamRecord] = {}
        self._unread: dict[StreamKey, StreamRecord] = {}
        self.size_bytes = 0

    def __len__(self) -> int:
        return len(self._read) + len(self._unread)

    def __contains__(self, record: StreamRecord) -> bool:
        return self._by_name.get(record.key.name, {}).get(record.key) is record

    def begin(self, record: StreamRecord, now_s: float) -> None:
        """Keep a record. It takes the place of what is kept of another answer to the same request:
        its client has begun anew.
        """
        self.expire(now_s)
        key = record.key
        for other in list(self._by_name.get(key.name, {}).values()):
            if other.key == key or other.key.run != key.run:
                self.drop(other)
        self._by_name.setdefault(key.name, {})[key] = self._read[key] = record
        self.size_bytes += record.size_bytes
        self._make_room()

    def take(self, record: StreamRecord, line: Line) -> None:
        """Add a line to a record, if it is still kept."""
        if record not in self:
            return
        before = record.size_bytes
        record.take(line)
        self.size_bytes += record.size_bytes - before
        if not record.is_whole:
            self.drop(record)
        self._make_room()

    def unread(self, record: StreamRecord, now_s: float) -> None:
        """Note that a record has ended or has no reader any more: its time begins."""
        if record in self:
            self._remove(record)
            record.unread_since_s = now_s
            self._unread[record.key] = record

    def read(self, record: StreamRecord) -> None:
        """Note that a record that has not ended has a reader again."""
        if record in self:
            self._remove(record)
            record.unread_since_s = None
            self._read[record.key] = record

    def find(self, names: Iterable[str], now_s: float) -> list[StreamRecord]:
        """Return what is kept under some names."""
        self.expire(now_s)
        return [record for name in names for record in self._by_name.get(name, {}).values()]

    def get(self, key: StreamKey, now_s: float) -> StreamRecord | None:
        """Return a record, if it is kept."""
        self.expire(now_s)
        return self._by_name.get(key.name, {}).get(key)

    def expire(self, now_s: float) -> None:
        """Drop what nobody has read for too long."""
        while self._unread:
            oldest = next(iter(self._unread.values()))
            if now_s - (oldest.unread_since_s or 0.0) < self._keep_s:
                return
            self.drop(oldest)

    def drop(self, record: StreamRecord) -> None:
        """Forget a record (idempotent)."""
        if record not in self:
            return
        self._remove(record)
        self.size_bytes -= record.size_bytes
        named = self._by_name[record.key.name]
        del named[record.key]
        if not named:
            del self._by_name[record.key.name]

    def _remove(self, record: StreamRecord) -> None:
        self._read.pop(record.key, None)
        self._unread.pop(record.key, None)

    def _make_room(self) -> None:
        """Drop the oldest records until all fit: those that nobody reads first."""
        while self.size_bytes > self._most_bytes:
            self.drop(next(iter((self._unread or self._read).values())))
