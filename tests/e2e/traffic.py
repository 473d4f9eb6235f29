"""Streams that run while a test changes what serves them.

Each one is checked: it must end whole, and its tokens must be those that the weights of its model
give.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import openai
from tests.e2e import rig

_PROMPTS = 8
_TOKENS = 48

_MORE_LIMIT_S = 300.0


@dataclass
class Traffic:
    """What has become of the requests so far."""

    answers: list[rig.Answer] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    """Answers with other tokens than the weights of their name give."""
    longest_s: float = 0.0
    """The seconds that the slowest answer took."""

    def pods(self, role: str, since_s: float = 0.0) -> Counter[str]:
        """Return how many of the streams that began since then each pod served."""
        return Counter(a.pod(role) for a in self.answers if a.started_s >= since_s)

    async def more(self, count: int = 20) -> None:
        """Wait for some more answers."""
        wanted = len(self.answers) + count
        async with asyncio.timeout(_MORE_LIMIT_S):
            while len(self.answers) < wanted and not self.failures:
                await asyncio.sleep(0.1)


def prompt(number: int) -> list[int]:
    return [random.Random(number * 1000 + i).randrange(3, 2048) for i in range(40)]


Expected = dict[tuple[str, int], tuple[str, ...]]


async def expected(url: str, model: str) -> Expected:
    """Return the tokens that this model gives now, by its name and the number of the prompt."""
    async with rig.api(url) as client:
        answers = [await rig.stream(client, prompt(i), _TOKENS, model=model) for i in range(_PROMPTS)]
    return {(model, i): answer.tokens for i, answer in enumerate(answers)}


@asynccontextmanager
async def traffic(
    url: str,
    *,
    concurrency: int = 4,
    model: str = rig.MODEL,
    known: Expected | None = None,
    leaves: bool = False,
    comes: bool = False,
) -> AsyncIterator[Traffic]:
    """Keep streams to a model under way until the block ends; those that still run are awaited.

    With `leaves`, a name that is not served any more ends the requests and is no failure. With
    `comes`, it is none either that the name is not known yet; once it is, it must be answered.
    """
    out, stop, numbers = Traffic(), asyncio.Event(), iter(range(1_000_000))

    async def client(api: openai.AsyncOpenAI) -> None:
        while not stop.is_set():
            number = next(numbers) % _PROMPTS
            try:
                answer = await rig.stream(api, prompt(number), _TOKENS, model=model)
            except openai.NotFoundError as error:
                if leaves:
                    return
                if comes and not out.answers:
                    await asyncio.sleep(0.1)
                    continue
                out.failures.append(f"{type(error).__name__}: {error}")
            except openai.OpenAIError as error:
                cause = f" ({error.__cause__!r})" if error.__cause__ is not None else ""
                out.failures.append(f"{type(error).__name__}: {error}{cause}")
                await asyncio.sleep(0.2)  # a dead server must not be hammered
            else:
                out.answers.append(answer)
                out.longest_s = max(out.longest_s, answer.ended_s - answer.started_s)
                if known is not None and known.get((model, number), answer.tokens) != answer.tokens:
                    out.wrong.append(f"{model}, prompt {number}: {' '.join(answer.tokens[:8])}")

    async with rig.api(url) as api:
        clients = [asyncio.create_task(client(api)) for _ in range(concurrency)]
        try:
            yield out
        finally:
            stop.set()
            await asyncio.gather(*clients)
