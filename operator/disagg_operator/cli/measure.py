"""Times a running OpenAI endpoint, briefly: prompts alone, prompts behind others, batches of
streams. What `disagg profile` fits.

Prompts are random token ids, so that no prefix cache helps, and every answer has exactly the tokens
that were asked for.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import httpx

from disagg_operator.performance.fit import DecodePoint, PrefillPoint, ShortAnswer, batch_wait

_IDS = (100, 1000)  # ordinary tokens in every vocabulary that we know of
_TIMEOUT_S = 120.0
_LEAST_STEPS = 24
_LEAST_WINDOW_S = 0.4  # of a batch: events come in bundles
_ALONE_TIMES = 3  # in a round: one alone may have been disturbed
_FEEDS = 3  # short requests under way while it is measured what they cost the others
_PAUSE_S = 0.1  # before a prompt alone: those that come when nothing runs find everything cold
_ALONE_TOKENS = 2  # two, so that the cache is handed over as in real life


class MeasureError(Exception):
    """The endpoint can't be measured; the message says why."""


@dataclass(slots=True)
class Answer:
    """One stream. Times are monotonic; one entry of `events_s` for each event that carried text."""

    sent_s: float
    prompt_tokens: int = 0
    output_tokens: int = 0
    events_s: list[float] = field(default_factory=list)

    @property
    def ttft_s(self) -> float:
        return self.events_s[0] - self.sent_s

    @property
    def tpot_s(self) -> float:
        return (self.events_s[-1] - self.events_s[0]) / max(1, self.output_tokens - 1)


class ServedEndpoint:
    """`POST /completions` of one model.

    `async with`. Chunks are only stamped while they come, and parsed when all are there.
    """

    def __init__(self, url: str, model: str | None, api_key: str | None) -> None:
        headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=256)
        self._http = httpx.AsyncClient(
            base_url=url.rstrip("/") + "/", headers=headers, timeout=_TIMEOUT_S, trust_env=False, limits=limits
        )
        self._random = random.Random()  # never the same prompts again: a prefix cache would answer them
        self.model = model or ""

    async def __aenter__(self) -> ServedEndpoint:
        try:
            self.model = self.model or await self._first_model()
        except BaseException:
            await self._http.aclose()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._http.aclose()

    async def _first_model(self) -> str:
        answer = await self._get("models")
        try:
            return str(answer["data"][0]["id"])
        except (KeyError, IndexError, TypeError):
            raise MeasureError(f"{self._http.base_url}models: lists no model; name one with --model") from None

    async def _get(self, path: str) -> Any:
        try:
            answer = await self._http.get(path)
            answer.raise_for_status()
            return answer.json()
        except (httpx.HTTPError, ValueError) as error:
            raise MeasureError(f"{self._http.base_url}{path}: {error}") from None

    def prompt(self, tokens: int) -> list[int]:
        return [self._random.randrange(*_IDS) for _ in range(tokens)]

    async def ask(self, prompt: list[int], output_tokens: int, on_first: Callable[[], None] | None = None) -> Answer:
        """Stream one answer to its end. Raises MeasureError."""
        body = {
            "model": self.model, "prompt": prompt, "max_tokens": output_tokens, "min_tokens": output_tokens, "ignore_eos": True,
            "temperature": 0, "stream": True, "stream_options": {"include_usage": True},
        }  # fmt: skip
        answer = Answer(time.monotonic())
        chunks: list[tuple[float, bytes]] = []
        try:
            async with self._http.stream("POST", "completions", json=body) as response:
                if response.status_code != 200:
                    raise MeasureError(
                        f"HTTP {response.status_code}: {(await response.aread())[:500].decode(errors='replace')}"
                    )
                async for chunk in response.aiter_raw():
                    if not chunks and on_first is not None:
                        on_first()
                    chunks.append((time.monotonic(), chunk))
        except httpx.HTTPError as error:
            raise MeasureError(f"{self._http.base_url}completions: {error or type(error).__name__}") from None
        _read(answer, chunks)
        return answer


def _read(answer: Answer, chunks: list[tuple[float, bytes]]) -> None:
    """Fill the answer in from what came when. Raises MeasureError."""
    rest = b""
    for at_s, chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            if not line.startswith(b"data: {"):
                continue
            event = json.loads(line[6:])
            if "error" in event:
                raise MeasureError(f"the answer failed: {event['error']}")
            if usage := event.get("usage"):
                answer.prompt_tokens, answer.output_tokens = usage["prompt_tokens"], usage["completion_tokens"]
            if event.get("choices"):
                answer.events_s.append(at_s)
    if not answer.events_s or not answer.output_tokens:
        raise MeasureError(
            "an answer without tokens or without usage: the endpoint must support stream_options.include_usage"
        )


# ---- what is measured ----


async def alone(endpoint: ServedEndpoint, tokens: int) -> Answer:
    """A prompt that has the endpoint to itself."""
    return await endpoint.ask(endpoint.prompt(tokens), _ALONE_TOKENS)


async def queued(endpoint: ServedEndpoint, tokens: int, prompts: int) -> float:
    """Seconds that a prompt takes while exactly one other waits behind it: what the worker itself
    needs.
    """
    firsts_s: list[float] = []
    room = asyncio.Semaphore(2)

    def first() -> None:
        firsts_s.append(time.monotonic())
        room.release()

    asked: list[asyncio.Task[Answer]] = []
    try:
        for _ in range(prompts):
            async with asyncio.timeout(_TIMEOUT_S):
                await room.acquire()
            for task in asked:
                if task.done():
                    task.result()
            asked.append(asyncio.create_task(endpoint.ask(endpoint.prompt(tokens), _ALONE_TOKENS, first)))
        await asyncio.gather(*asked)
    except TimeoutError:
        raise MeasureError(f"no first token within {_TIMEOUT_S:g} s") from None
    finally:
        await _cancel(asked)
    # From the second on: the first two are sent at once, and may have been one batch.
    return (firsts_s[-1] - firsts_s[1]) / (len(firsts_s) - 2)


async def batch(endpoint: ServedEndpoint, sequences: int, prompt_tokens: int, output_tokens: int) -> DecodePoint | None:
    """So many streams at once: the step while all of them run.

    None: they never did for long enough.
    """
    tasks = [asyncio.create_task(endpoint.ask(endpoint.prompt(prompt_tokens), output_tokens)) for _ in range(sequences)]
    try:
        answers = await asyncio.gather(*tasks)
    finally:
        await _cancel(tasks)
    return _together(answers, [])


async def answered(endpoint: ServedEndpoint, prompt_tokens: int) -> ShortAnswer:
    """A whole short answer that comes when nothing runs."""
    await asyncio.sleep(_PAUSE_S)
    a = await endpoint.ask(endpoint.prompt(prompt_tokens), _LEAST_STEPS)
    return ShortAnswer(a.prompt_tokens, a.output_tokens, a.events_s[-1] - a.events_s[0])


def _together(answers: list[Answer], short: list[Answer]) -> DecodePoint | None:
    """The step while all the answers run; of the short ones, each took part in one step."""
    begin_s = max(a.events_s[min(1, len(a.events_s) - 1)] for a in answers)
    end_s = min(a.events_s[-1] for a in answers)
    steps, held = 0.0, 0.0
    for a in answers:
        per_event = a.output_tokens / len(a.events_s)
        before = sum(t < begin_s for t in a.events_s) * per_event
        made = sum(begin_s < t <= end_s for t in a.events_s) * per_event
        steps += made / len(answers)
        held += a.prompt_tokens + before + made / 2
    if steps < _LEAST_STEPS:
        return None
    new = [a.prompt_tokens for a in short if begin_s < a.events_s[-1] <= end_s]
    return DecodePoint(
        len(answers) + len(new) / steps, held + sum(new) / steps, (end_s - begin_s) / steps, len(new) / steps
    )


async def joined(
    endpoint: ServedEndpoint, sequences: int, output_tokens: int, prompt_tokens: int
) -> DecodePoint | None:
    """So many streams at once while short requests come and go, as many as the prefill worker
    makes: what they cost the others.
    """
    long = [asyncio.create_task(endpoint.ask(endpoint.prompt(16), output_tokens)) for _ in range(sequences)]
    short: list[Answer] = []

    async def feed() -> None:
        while not any(t.done() for t in long):
            short.append(await endpoint.ask(endpoint.prompt(prompt_tokens), _ALONE_TOKENS))

    feeds = [asyncio.create_task(feed()) for _ in range(_FEEDS)]
    try:
        answers = await asyncio.gather(*long)
        await asyncio.gather(*feeds)
    finally:
        await _cancel([*long, *feeds])
    return _together(answers, short)


@contextlib.asynccontextmanager
async def decoding(endpoint: ServedEndpoint, tokens: int) -> AsyncIterator[None]:
    """One stream after another meanwhile, so that decode decodes as in life: workers that share a
    machine's memory slow each other down.
    """

    async def go() -> None:
        while True:
            await endpoint.ask(endpoint.prompt(16), tokens)

    task = asyncio.create_task(go())
    try:
        yield
        if task.done():
            task.result()
    finally:
        await _cancel([task])


async def rush(endpoint: ServedEndpoint, requests: int) -> float:
    """Seconds from one request to the next at the router when many come at once: prompts of one
    token, which keep no worker busy.
    """
    alone_s = median([(await alone(endpoint, 1)).ttft_s for _ in range(_ALONE_TIMES)])
    begin_s = time.monotonic()
    tasks = [asyncio.create_task(alone(endpoint, 1)) for _ in range(requests)]
    try:
        answers = await asyncio.gather(*tasks)
    finally:
        await _cancel(tasks)
    last_s = max(a.events_s[0] for a in answers)
    return max(0.0, last_s - begin_s - alone_s) / (requests - 1)


async def _cancel(tasks: Sequence[asyncio.Task[Any]]) -> None:
    for task in tasks:
        task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await asyncio.gather(*tasks, return_exceptions=True)


# ---- the whole measurement ----


@dataclass(frozen=True, slots=True)
class Extent:
    """How far to measure and how long."""

    max_prompt_tokens: int = 1024
    max_batch: int = 64
    seconds: float = 60.0

    def lengths(self) -> list[int]:
        """Prompts from 16 tokens on, growing by half to twofold."""
        found, n = [], 16.0
        while n < self.max_prompt_tokens * 0.8:
            found.append(round(n))
            n *= 1.5 if n >= 64 else 2
        return [*found, self.max_prompt_tokens]

    def batches(self) -> list[int]:
        found, n = [], 1
        while n < self.max_batch:
            found.append(n)
            n *= 2
        return [*found, self.max_batch]


@dataclass(frozen=True, slots=True)
class Measured:
    """Everything that is fitted."""

    prefill: tuple[PrefillPoint, ...]
    decode: tuple[DecodePoint, ...]
    answers: tuple[ShortAnswer, ...]
    front_s: float = 0.0


async def measure(endpoint: ServedEndpoint, extent: Extent, say: Callable[[str], None]) -> Measured:
    """Rounds over all lengths, then over all batches, for as long as `extent` says; at least one of
    each. Raises MeasureError.
    """
    await alone(endpoint, 32)  # connections, first-call work
    say(f"prompts of {extent.lengths()[0]} to {extent.max_prompt_tokens} tokens")
    prefill = await _prefill(endpoint, extent)
    say(f"batches of 1 to {extent.max_batch} streams")
    decode, answers = await _decode(endpoint, extent, prefill)
    front_s = median([await rush(endpoint, extent.max_batch) for _ in range(_ALONE_TIMES)])
    return Measured(tuple(prefill), tuple(decode), tuple(answers), front_s)


async def _rounds(seconds: float, once: Callable[[], Awaitable[None]]) -> AsyncIterator[int]:
    begin_s, n = time.monotonic(), 0
    while n == 0 or (time.monotonic() - begin_s) * (n + 1) / n < seconds:
        await once()
        n += 1
        yield n


async def _prefill(endpoint: ServedEndpoint, extent: Extent) -> list[PrefillPoint]:
    """First when nothing else runs, for the rule of batches; then, for all times, while decode
    decodes.
    """
    quiet_s: dict[int, list[float]] = {n: [] for n in extent.lengths()}
    for n, found in quiet_s.items():
        found += [(await alone(endpoint, n)).ttft_s for _ in range(_ALONE_TIMES)]
    full_tokens = await _find_wait(endpoint, quiet_s)
    # The shortest that can queue: of long prompts the overhead is too small a part to be told from
    # a batch's fixed one.
    shortest = [full_tokens + full_tokens // 16] if full_tokens else []
    alone_s: dict[int, list[float]] = {n: [] for n in sorted({*quiet_s, *shortest})}
    queued_s: dict[int, list[float]] = {
        n: [] for n in alone_s if n in shortest or (n >= extent.max_prompt_tokens / 5 and n in extent.lengths())
    }

    async def once() -> None:
        for n, found in alone_s.items():
            for _ in range(_ALONE_TIMES):
                await asyncio.sleep(_PAUSE_S)
                found.append((await alone(endpoint, n)).ttft_s)
        for n, found in queued_s.items():
            found += [await queued(endpoint, n, 8) for _ in range(2 if n in shortest else 1)]

    async with decoding(endpoint, extent.max_prompt_tokens - 16):
        async for _ in _rounds(0.5 * extent.seconds, once):
            pass
    return [
        PrefillPoint(
            n, median(s), median(queued_s[n]) if n in queued_s else None, min(quiet_s[n]) if n in quiet_s else None
        )
        for n, s in alone_s.items()
    ]


async def _find_wait(endpoint: ServedEndpoint, alone_s: dict[int, list[float]]) -> int:
    """From how many tokens on prompts do not wait to fill a batch: halves the gap between the
    longest that does and the shortest that does not. 0: none waits.
    """
    wait_s, full_tokens = batch_wait([(n, min(s)) for n, s in alone_s.items()])
    below = max((n for n in alone_s if n < full_tokens), default=full_tokens)
    base_s = min(alone_s[full_tokens]) if full_tokens else 0.0
    while full_tokens - below > max(4, full_tokens // 50):
        middle = (below + full_tokens) // 2
        found = alone_s.setdefault(middle, [])
        for _ in range(_ALONE_TIMES):
            found.append((await alone(endpoint, middle)).ttft_s)
        if min(found) > base_s + wait_s / 3:
            below = middle
        else:
            full_tokens = middle
    return full_tokens


async def _decode(
    endpoint: ServedEndpoint, extent: Extent, prefill: list[PrefillPoint]
) -> tuple[list[DecodePoint], list[ShortAnswer]]:
    most = prefill[-1]
    per_prompt_s = (most.queued_s or most.alone_s) / most.tokens
    found: dict[tuple[int, int], list[DecodePoint]] = {}
    answers: list[ShortAnswer] = []
    half, typical = extent.max_prompt_tokens // 2, max(16, extent.max_prompt_tokens // 6)
    probe = await batch(endpoint, 1, 16, 2 * _LEAST_STEPS)
    first_s = probe.step_s if probe is not None else 0.01

    async def once() -> None:
        step_s = first_s
        for longest in (16, half):
            for sequences in extent.batches():
                # All streams run together only if the prompts are computed within a third of the
                # longest answer.
                prompt = max(16, min(longest, int(half / 3 * step_s / (sequences * per_prompt_s))))
                ramp = (
                    sequences * prompt * per_prompt_s / step_s
                )  # tokens that the first stream makes until the last one runs
                output = int(1.5 * _LEAST_STEPS + max(_LEAST_STEPS, _LEAST_WINDOW_S / step_s) + 1.5 * ramp)
                if (point := await batch(endpoint, sequences, prompt, min(output, half))) is not None:
                    found.setdefault((sequences, longest), []).append(point)
                    step_s = point.step_s
        for sequences in sorted({1, min(4, extent.max_batch), min(12, extent.max_batch)}):
            if (point := await joined(endpoint, sequences, half, typical)) is not None:
                found.setdefault((sequences, -1), []).append(point)
        for _ in range(2 * _ALONE_TIMES):
            answers.append(await answered(endpoint, typical))

    async for _ in _rounds(0.5 * extent.seconds, once):
        pass
    return [_middle(p) for p in found.values()], answers


def _middle(points: list[DecodePoint]) -> DecodePoint:
    columns = ([getattr(p, name) for p in points] for name in ("sequences", "kv_tokens", "step_s", "joined"))
    return DecodePoint(*(median(column) for column in columns))
