"""Measure what a hand-over adds to a prompt with vLLM's engines (NixlConnector over UCX's tcp) and
with ours, in turns.

Both compute the model of this repository in float32 with one thread for each process, on this
machine, and without a limit of the network.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import httpx

from benchmarks.engine.vllm_process import HAND_OVER, Vllm, engines
from benchmarks.transfer import rest
from disagg_wire.roles import BOTH, DECODE, PREFILL

TOKENS = (128, 512, 1900)
# Our decode prefills a prompt itself only where it has the start of it.
_START_TOKENS = 32
_NEW_TOKENS = 2


@dataclass(frozen=True)
class Row:
    """The least times to the second token of all rounds, in seconds."""

    engine: str
    tokens: int
    alone_s: float
    handed_over_s: float

    @property
    def added_s(self) -> float:
        return self.handed_over_s - self.alone_s


_Ask = Callable[[list[int]], Awaitable[float]]
"""Answers a prompt, and returns the time that it took in seconds."""


async def _vllm_alone(engine: Vllm, prompt: list[int]) -> float:
    began_s = time.monotonic()
    await engine.generate(prompt, _NEW_TOKENS)
    return time.monotonic() - began_s


async def _vllm_handed_over(prefill: Vllm, decode: Vllm, prompt: list[int]) -> float:
    """Do what vLLM's own proxy does: one token by prefill, and the rest by decode."""
    began_s = time.monotonic()
    first = await prefill.generate(prompt, 1, kv_transfer_params=HAND_OVER)
    await decode.generate(prompt, _NEW_TOKENS, kv_transfer_params=first["kv_transfer_params"])
    return time.monotonic() - began_s


def _ours(http: httpx.Client, urls: dict[str, str], reason: str) -> _Ask:
    async def ask(prompt: list[int]) -> float:
        await asyncio.to_thread(rest.ask, http, urls[rest.SHIPPED], prompt[:_START_TOKENS], rest.SHIPPED)
        return await asyncio.to_thread(rest.ask, http, urls[reason], prompt, reason)

    return ask


@contextlib.asynccontextmanager
async def _served() -> AsyncIterator[dict[str, tuple[_Ask, _Ask]]]:
    """Yield, by the name of an engine, how a prompt is answered by one alone and by two."""
    with (
        tempfile.TemporaryDirectory() as home,
        rest.routers(dtype="float32") as (urls, _),
        httpx.Client(trust_env=False, timeout=rest.WAIT_S) as http,
    ):
        async with engines(Path(home), PREFILL, DECODE, BOTH) as (prefill, decode, alone):
            yield {
                "vLLM": (
                    lambda prompt: _vllm_alone(alone, prompt),
                    lambda prompt: _vllm_handed_over(prefill, decode, prompt),
                ),
                "ours": (_ours(http, urls, rest.LOCAL), _ours(http, urls, rest.SHIPPED)),
            }


async def _measure(rounds: int) -> list[Row]:
    rng = random.Random(11)
    rows = []
    async with _served() as served:
        for n in TOKENS:
            times: dict[str, list[tuple[float, float]]] = {name: [] for name in served}
            for i in range(rounds + 1):
                for name, asks in served.items():
                    took = [await ask([rng.randrange(1, 2000) for _ in range(n)]) for ask in asks]
                    if i:  # The first round connects the two engines.
                        times[name].append((took[0], took[1]))
            for name, seen in times.items():
                rows.append(Row(name, n, *(min(column) for column in zip(*seen, strict=True))))
    return rows


def measure(rounds: int) -> list[Row]:
    """Return the rows; each prompt is new, and all ways take turns."""
    return asyncio.run(_measure(rounds))
