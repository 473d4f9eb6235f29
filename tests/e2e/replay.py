"""A bursty trace as requests.

tests/e2e/burst.csv holds twenty seconds, invented in the manner of the published traces. One half
of it is work for prefill, the other for decode. Each half is repeated until the expected state is
reached.
"""

from __future__ import annotations

import asyncio
import csv
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import openai
from tests.e2e import rig

from kubectl import Cluster

PHASE_LIMIT_S = 110.0
ROUND_S = 10.0
_LOOK_S = 1.0
# A quarter of the speed of one core, so that pools of three workers are needed before the two cores
# of the machine are exhausted.
SPEED = {
    "prefill": {"base": 0.002, "perToken": 0.0003},
    "decode": {"base": 0.005, "perSequence": 0.001, "kvTokens": 40000},
}


@dataclass(frozen=True)
class Row:
    """One request of the trace."""

    arrival_s: float
    prompt_tokens: int
    output_tokens: int


def halves() -> tuple[list[Row], list[Row]]:
    """Return the half with work for prefill and the half with work for decode.

    Both start at 0 s.
    """
    with (Path(__file__).parent / "burst.csv").open(encoding="utf-8") as file:
        rows = [
            Row(float(r["arrival_s"]), int(r["prompt_tokens"]), int(r["output_tokens"])) for r in csv.DictReader(file)
        ]
    first = [r for r in rows if r.arrival_s < ROUND_S]
    return first, [Row(r.arrival_s - ROUND_S, r.prompt_tokens, r.output_tokens) for r in rows if r.arrival_s >= ROUND_S]


@dataclass
class Replay:
    """Sends every request at its time, whatever has become of the earlier ones.

    It waits only for a machine that is far behind. `compressed` is the factor by which it is faster
    than the trace.
    """

    compressed: float = 1.0
    most_under_way: int = 48
    finished: int = 0
    errors: list[str] = field(default_factory=list)

    async def one(self, client: openai.AsyncOpenAI, number: int, row: Row) -> None:
        prompt = [3 + (number * 7 + i * 13) % 2000 for i in range(row.prompt_tokens)]
        try:
            answer = await rig.stream(client, prompt, row.output_tokens)
        except openai.OpenAIError as error:
            self.errors.append(f"request {number}: {error}")
            return
        if len(answer.tokens) != row.output_tokens or answer.finish_reason != "length":
            self.errors.append(
                f"request {number}: {len(answer.tokens)} of {row.output_tokens} tokens, {answer.finish_reason!r}"
            )
        self.finished += 1

    async def until(self, url: str, rows: list[Row], reached: Callable[[], bool]) -> bool:
        """Send the rows repeatedly until `reached` or the limit, and then let all requests finish.

        Every row is sent at least once. Returns whether the state was reached.
        """
        began_s, number, under_way = time.monotonic(), 0, set[asyncio.Task[None]]()
        done = asyncio.create_task(_once(reached))
        async with rig.api(url) as client:
            while not done.done() and time.monotonic() - began_s < PHASE_LIMIT_S:
                round_s = time.monotonic()
                for row in rows:
                    if done.done() and number >= len(rows):
                        break
                    await asyncio.sleep(max(0.0, round_s + row.arrival_s / self.compressed - time.monotonic()))
                    while len(under_way) >= self.most_under_way:
                        _, under_way = await asyncio.wait(under_way, return_when=asyncio.FIRST_COMPLETED)
                    number += 1
                    under_way.add(asyncio.create_task(self.one(client, number, row)))
                left_s = round_s + ROUND_S / self.compressed - time.monotonic()
                await asyncio.wait({done}, timeout=max(0.0, left_s))
            if under_way:
                await asyncio.wait(under_way)
        if not done.done():
            done.cancel()
            return False
        done.result()
        return True


async def _once(reached: Callable[[], bool]) -> None:
    """Return when `reached` is true; each look is a few calls of kubectl."""
    while not await asyncio.to_thread(reached):
        await asyncio.sleep(_LOOK_S)


def sizes(cluster: Cluster, name: str) -> dict[str, int]:
    """Return the workers wanted in each pool."""
    return {role: int(cluster.get("dp", f"{name}-{role}")["spec"]["replicas"]) for role in ("prefill", "decode")}
