"""PURE: What workers say that they keep of streams, and what a router makes of it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from disagg_router.workers.worker_info import Worker
from disagg_wire.protocol import MAX_TOKENS

_LEGS = ("prefill", "decode")


@dataclass(frozen=True, slots=True)
class KeptStream:
    """One worker's part of one attempt at one choice of an answer."""

    worker: Worker
    name: str
    """The name of the choice, which only a router can know."""
    run: str
    """The answer that it is a part of."""
    epoch: int
    """The number of the attempt."""
    leg: str
    """`prefill` or `decode`."""
    body: str
    """What two requests have in common that ask for the same."""
    began_ms: int
    seed: int
    prompt_tokens: int
    tokens: int
    """The tokens that are known, from the first one of the answer on."""
    first: Mapping[str, Any] | None
    """The event of the first token that this worker has made, if it says more than its ID."""


def parse_streams(worker: Worker, body: bytes) -> list[KeptStream]:
    """Return what a worker says that it keeps. Raises ValueError."""
    try:
        return [_parsed(worker, entry) for entry in json.loads(body)["streams"]]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{worker.pod} garbles what it keeps: {error}") from None


def _parsed(worker: Worker, entry: Mapping[str, Any]) -> KeptStream:
    first, leg = entry["first"], str(entry["leg"])
    numbers = [entry[name] for name in ("epoch", "began_ms", "seed", "prompt_tokens", "tokens")]
    if leg not in _LEGS or not (first is None or isinstance(first, dict)):
        raise TypeError("leg or first")
    if any(isinstance(n, bool) or not isinstance(n, int) or n < 0 for n in numbers) or numbers[-1] > MAX_TOKENS:
        raise TypeError("a number")
    epoch, began_ms, seed, prompt_tokens, tokens = numbers
    name, run, asked = (str(entry[key]) for key in ("name", "run", "body"))
    return KeptStream(worker, name, run, epoch, leg, asked, began_ms, seed, prompt_tokens, tokens, first)


@dataclass(frozen=True, slots=True)
class KeptChoice:
    """What is known of one choice: the stream to read on, and events of single tokens, by index,
    that say more than that one.
    """

    stream: KeptStream
    events: Mapping[int, Mapping[str, Any]]


def last_run(found: Iterable[KeptStream], body: str) -> list[KeptStream]:
    """Return the parts of the last answer to a request.

    An answer to another request under the same name is none.
    """
    same = [s for s in found if s.body == body]
    if not same:
        return []
    last = max(same, key=lambda s: (s.began_ms, s.run))
    return [s for s in same if (s.run, s.worker.digest) == (last.run, last.worker.digest)]


def choices_of(parts: Iterable[KeptStream], names: Sequence[str]) -> list[KeptChoice | None]:
    """Return what is known of each choice of one answer, None for those of which nothing is left.

    The last attempt counts, and of its workers the one that knows most.
    """
    by_name: dict[str, list[KeptStream]] = {}
    for part in parts:
        by_name.setdefault(part.name, []).append(part)
    out: list[KeptChoice | None] = []
    for name in names:
        listed = by_name.get(name)
        if listed is None:
            out.append(None)
            continue
        stream = max(listed, key=lambda s: (s.epoch, s.tokens, s.leg == "decode"))
        events = {int(s.first["index"]): s.first for s in listed if s.first and isinstance(s.first.get("index"), int)}
        out.append(KeptChoice(stream, events))
    return out
