"""A client of real vLLM engines, each with its adapter, behind a router."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.engine import vllm_process
from benchmarks.engine.vllm_process import MODEL, MODEL_NAME, Vllm
from benchmarks.engine.vllm_stack import Stack, stack
from tokenizers import Tokenizer

TOKENIZER = Tokenizer.from_file(str(MODEL / "tokenizer.json"))


def prompts(n: int, longest: int = 1500, seed: int = 7) -> list[list[int]]:
    """Return prompts of real text of 1 to `longest` tokens, spread evenly over their logarithm."""
    text = "".join((MODEL.parents[1] / "docs" / name).read_text() for name in ("protocol.md", "architecture.md"))
    ids: list[int] = TOKENIZER.encode(text).ids
    rng = random.Random(seed)
    lengths = [1, longest, *(int(longest ** rng.random()) for _ in range(n - 2))]
    starts = [rng.randrange(len(ids) - length) for length in lengths]
    return [ids[start : start + length] for start, length in zip(starts, lengths, strict=True)]


def pieces(ids: list[int]) -> list[str]:
    """Return tokens as the router shows them with their log probabilities."""
    return [TOKENIZER.decode([i], skip_special_tokens=False) for i in ids]


@dataclass
class Answer:
    """A stream as its client saw it."""

    tokens: list[str] = field(default_factory=list)
    finish_reason: str | None = None
    error: str | None = None
    trace: dict[str, Any] = field(default_factory=dict)


@dataclass
class Served(Stack):
    """The stack, and a client that checks what it says."""

    async def ask(
        self, prompt: list[int], max_tokens: int, *, at: tuple[int, Callable[[], object]] | None = None, **more: Any
    ) -> Answer:
        """Stream a greedy completion; `at` is a number of tokens and what to do at that point."""
        body = {
            "model": MODEL_NAME, "prompt": prompt, "max_tokens": max_tokens, "temperature": 0, "stream": True,
            "logprobs": 0, "ignore_eos": True, **more,
        }  # fmt: skip
        answer = Answer()
        async with self.http.stream(
            "POST", f"{self.url}/v1/completions", json=body, headers={"x-disagg-trace": "1"}
        ) as response:
            if response.status_code != 200:
                answer.error = f"{response.status_code} {(await response.aread()).decode()}"
                return answer
            async for line in response.aiter_lines():
                if not line.startswith("data:") or line == "data: [DONE]":
                    continue
                chunk = json.loads(line[5:])
                if "error" in chunk:
                    answer.error = str(chunk["error"])
                    return answer
                answer.trace = chunk.get("disagg", answer.trace)
                for choice in chunk["choices"]:
                    answer.tokens += (choice.get("logprobs") or {}).get("tokens") or []
                    answer.finish_reason = choice["finish_reason"] or answer.finish_reason
                if at is not None and len(answer.tokens) >= at[0]:
                    at[1]()
                    at = None
        return answer

    async def until_idle(self, within_s: float) -> None:
        """Wait until no engine computes anything and every KV block is free."""
        try:
            async with asyncio.timeout(within_s):
                while any([await self.busy(e) for e in self.engines.values()]):
                    await asyncio.sleep(0.25)
        except TimeoutError:
            held = {name: await self.busy(e) for name, e in self.engines.items()}
            raise AssertionError(f"still held after {within_s:g} s: {held}") from None

    @staticmethod
    async def busy(engine: Vllm) -> list[float]:
        """Return what an engine holds: running and waiting requests, and its share of KV in use."""
        names = ("vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc")
        found = [await engine.metric(name) for name in names]
        return found if any(found) else []


@contextlib.asynccontextmanager
async def served(
    folder: Path, *roles: str, more: tuple[str, ...] = (), version: str = vllm_process.NEWEST, **settings: Any
) -> AsyncIterator[Served]:
    """Start what `stack` starts, with these arguments."""
    async with stack(folder, *roles, more=more, version=version, **settings) as found:
        yield Served(**vars(found))
