"""The measurement of a running OpenAI endpoint, to which `disagg profile` fits a profile.

It measures prompts alone, prompts behind others, and batches of streams.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from disagg_operator.cli.served_endpoint import TIMEOUT_S, Answer, MeasureError, ServedEndpoint
from disagg_operator.performance.fit import DecodePoint, PrefillPoint, ShortAnswer, batch_wait
from disagg_operator.performance.fit_quality import Repeated

_LEAST_STEPS = 24
_LEAST_WINDOW_S = 0.4  # minimum time of a batch, because events arrive in bundles
_ALONE_TIMES = 3  # measurements of a prompt alone in a round, because a single one may be disturbed
_FEEDS = 3  # concurrent short requests while their cost to the other streams is measured
_PAUSE_S = 0.1  # before a prompt alone, because a prompt that arrives when nothing runs finds cold caches
_ALONE_TOKENS = 2  # two, so that the cache is handed over as in real use


# ---- single measurements ----


async def alone(endpoint: ServedEndpoint, tokens: int) -> Answer:
    """Measure a prompt that has the endpoint to itself."""
    return await endpoint.ask(endpoint.prompt(tokens), _ALONE_TOKENS)


async def queued(endpoint: ServedEndpoint, tokens: int, prompts: int) -> float:
    """Measure the seconds of a prompt while exactly one other prompt waits behind it.

    This is the time that the worker itself needs.
    """
    firsts_s: list[float] = []
    room = asyncio.Semaphore(2)

    def first() -> None:
        firsts_s.append(time.monotonic())
        room.release()

    asked: list[asyncio.Task[Answer]] = []
    try:
        for _ in range(prompts):
            async with asyncio.timeout(TIMEOUT_S):
                await room.acquire()
            for task in asked:
                if task.done():
                    task.result()
            asked.append(asyncio.create_task(endpoint.ask(endpoint.prompt(tokens), _ALONE_TOKENS, first)))
        await asyncio.gather(*asked)
    except TimeoutError:
        raise MeasureError(f"no first token within {TIMEOUT_S:g} s") from None
    finally:
        await _cancel(asked)
    # The first two prompts are sent at the same time and may have been one batch, so the time is
    # measured from the second one.
    return (firsts_s[-1] - firsts_s[1]) / (len(firsts_s) - 2)


async def batch(endpoint: ServedEndpoint, sequences: int, prompt_tokens: int, output_tokens: int) -> DecodePoint | None:
    """Measure the decode step of a number of streams while all of them run.

    Returns None if they did not run together for long enough.
    """
    tasks = [asyncio.create_task(endpoint.ask(endpoint.prompt(prompt_tokens), output_tokens)) for _ in range(sequences)]
    try:
        answers = await asyncio.gather(*tasks)
    finally:
        await _cancel(tasks)
    return _together(answers, [])


async def answered(endpoint: ServedEndpoint, prompt_tokens: int) -> ShortAnswer:
    """Measure a whole short answer that arrives when nothing runs."""
    await asyncio.sleep(_PAUSE_S)
    a = await endpoint.ask(endpoint.prompt(prompt_tokens), _LEAST_STEPS)
    return ShortAnswer(a.prompt_tokens, a.output_tokens, a.events_s[-1] - a.events_s[0])


def _together(answers: list[Answer], short: list[Answer]) -> DecodePoint | None:
    """Return the mean step while all answers run, or None if that was too short.

    Each of the short answers took part in one step.
    """
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
    """Measure the decode step of a number of streams while short requests join and leave.

    There are as many short requests as the prefill worker can compute.
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
    """Keep decode busy with one stream after another within the context.

    This is closer to real use, because workers that share the memory of a machine slow each other
    down.
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
    """Measure the seconds between two requests at the router when many arrive at once.

    The prompts have one token, which keeps no worker busy.
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
    """The range and the duration of a measurement."""

    max_prompt_tokens: int = 1024
    """The length of the longest prompt; the longest answer has half as many tokens."""
    max_batch: int = 64
    """The maximum number of concurrent streams."""
    seconds: float = 60.0

    def lengths(self) -> list[int]:
        """Return the lengths of prompts from 16 tokens, each 1.5 to 2 times the previous one."""
        found, n = [], 16.0
        while n < self.max_prompt_tokens * 0.8:
            found.append(round(n))
            n *= 1.5 if n >= 64 else 2
        return [*found, self.max_prompt_tokens]

    def batches(self) -> list[int]:
        """Return the numbers of concurrent streams: the powers of two, and the maximum."""
        found, n = [], 1
        while n < self.max_batch:
            found.append(n)
            n *= 2
        return [*found, self.max_batch]


@dataclass(frozen=True, slots=True)
class Measured:
    """The measured times, to which a profile is fitted."""

    prefill: tuple[PrefillPoint, ...]
    decode: tuple[DecodePoint, ...]
    answers: tuple[ShortAnswer, ...]
    front_s: float = 0.0
    """The seconds of the router for one request."""
    repeated: tuple[Repeated, ...] = ()
    """All times of prompts alone."""


async def measure(endpoint: ServedEndpoint, extent: Extent, say: Callable[[str], None]) -> Measured:
    """Measure rounds over all lengths, then over all batches, within the time of `extent`.

    There is at least one round of each. Raises MeasureError.
    """
    await alone(endpoint, 32)  # opens connections and triggers the work of a first call
    say(f"prompts of {extent.lengths()[0]} to {extent.max_prompt_tokens} tokens")
    prefill, repeated = await _prefill(endpoint, extent)
    say(f"batches of 1 to {extent.max_batch} streams")
    decode, answers = await _decode(endpoint, extent, prefill)
    front_s = median([await rush(endpoint, extent.max_batch) for _ in range(_ALONE_TIMES)])
    return Measured(tuple(prefill), tuple(decode), tuple(answers), front_s, repeated)


async def _rounds(seconds: float, once: Callable[[], Awaitable[None]]) -> AsyncIterator[int]:
    begin_s, n = time.monotonic(), 0
    while n == 0 or (time.monotonic() - begin_s) * (n + 1) / n < seconds:
        await once()
        n += 1
        yield n


async def _prefill(endpoint: ServedEndpoint, extent: Extent) -> tuple[list[PrefillPoint], tuple[Repeated, ...]]:
    """Measure prompts, and return their times and all times of prompts alone.

    The first measurement is made when nothing else runs, to find the rule by which batches wait.
    All other times are measured while decode is busy.
    """
    quiet_s: dict[int, list[float]] = {n: [] for n in extent.lengths()}
    for n, found in quiet_s.items():
        found += [(await alone(endpoint, n)).ttft_s for _ in range(_ALONE_TIMES)]
    full_tokens = await _find_wait(endpoint, quiet_s)
    # The shortest prompt that can queue is also measured: in the time of a long prompt the overhead
    # is too small to be distinguished from the fixed time of a batch.
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
    points = [
        PrefillPoint(
            n, median(s), median(queued_s[n]) if n in queued_s else None, min(quiet_s[n]) if n in quiet_s else None
        )
        for n, s in alone_s.items()
    ]
    return points, tuple(Repeated(f"{n} tokens alone", tuple(s)) for n, s in alone_s.items())


async def _find_wait(endpoint: ServedEndpoint, alone_s: dict[int, list[float]]) -> int:
    """Return the number of tokens from which prompts do not wait to fill a batch; 0 if none waits.

    The gap between the longest prompt that waits and the shortest that does not is halved until it
    is small.
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
                # All streams run together only if their prompts are computed within a third of the
                # time of the longest answer.
                prompt = max(16, min(longest, int(half / 3 * step_s / (sequences * per_prompt_s))))
                # The number of tokens that the first stream makes until the last one runs.
                ramp = sequences * prompt * per_prompt_s / step_s
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
