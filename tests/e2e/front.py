"""A front of two pools of simulated engines: a router that knows nothing but who is ready.

It sends each request to the prefill engine and then to the decode engine with the fewest requests,
and notes which requests kept the objectives and how long pods existed.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx

from kubectl import Cluster

_LOOK_S = 1.0
_TIMEOUT_S = 180.0
ROLES = ("prefill", "decode")


@dataclass(frozen=True)
class Asked:
    """One request of a trace."""

    at_s: float
    prompt_tokens: int
    output_tokens: int


@dataclass(frozen=True)
class Phase:
    """A part of a trace: requests per second at its begin and its end, and mean lengths."""

    seconds: float
    begin_per_s: float
    end_per_s: float
    prompt_tokens: float
    output_tokens: float


def drawn(phases: Sequence[Phase], seed: int) -> list[Asked]:
    """Return a trace: arrivals at random (Poisson), and lengths that vary as people's do."""
    random_ = random.Random(seed)
    out, began_s = [], 0.0
    for phase in phases:
        at_s = 0.0
        while True:
            per_s = phase.begin_per_s + (phase.end_per_s - phase.begin_per_s) * at_s / phase.seconds
            at_s += random_.expovariate(per_s)
            if at_s >= phase.seconds:
                break
            lengths = [
                max(least, min(most, int(mean * random_.lognormvariate(-0.125, 0.5))))
                for mean, least, most in ((phase.prompt_tokens, 16, 8000), (phase.output_tokens, 8, 800))
            ]
            out.append(Asked(began_s + at_s, *lengths))
        began_s += phase.seconds
    return out


@dataclass
class Outcome:
    """What has become of a trace."""

    kept: int = 0
    """Requests within both objectives."""
    late: Counter[str] = field(default_factory=Counter)
    """The others, by what they missed."""
    failures: list[str] = field(default_factory=list)
    pod_s: dict[str, float] = field(default_factory=lambda: dict.fromkeys(ROLES, 0.0))
    """Seconds for which pods existed."""
    most: Counter[str] = field(default_factory=Counter)
    """The most pods of each pool."""

    @property
    def asked(self) -> int:
        return self.kept + self.late.total() + len(self.failures)

    @property
    def share(self) -> float:
        return self.kept / max(1, self.asked)

    @property
    def pods(self) -> float:
        return sum(self.pod_s.values())

    def __str__(self) -> str:
        missed = ", ".join(f"{n} {what}" for what, n in sorted(self.late.items())) or "none"
        sizes = ", ".join(f"{self.pod_s[r] / 60:.1f} pod-minutes of {r} (at most {self.most[r]})" for r in ROLES)
        return f"{self.share:.2%} of {self.asked} within the objectives (late: {missed}); {sizes}"


class Front:
    """Routes to the ready pods whose label `app` is `sim-ROLE`."""

    def __init__(self, cluster: Cluster, ttft_s: float, tpot_s: float) -> None:
        self._cluster = cluster
        self._ttft_s, self._tpot_s = ttft_s, tpot_s
        self._ready: dict[str, list[str]] = {role: [] for role in ROLES}
        self._busy: Counter[str] = Counter()
        self.outcome = Outcome()

    async def replay(self, trace: Sequence[Asked]) -> Outcome:
        """Send each request at its time, and return when all are over."""
        async with self._watched(), httpx.AsyncClient(trust_env=False, timeout=_TIMEOUT_S) as http:
            began_s = time.monotonic()
            async with asyncio.TaskGroup() as tasks:
                for asked in trace:
                    await asyncio.sleep(max(0.0, began_s + asked.at_s - time.monotonic()))
                    tasks.create_task(self._serve(http, asked))
        return self.outcome

    async def _serve(self, http: httpx.AsyncClient, asked: Asked) -> None:
        began_s = time.monotonic()
        try:
            await self._ask(http, "prefill", asked, 1)
            handed_s = time.monotonic()
            served = await self._ask(http, "decode", asked, asked.output_tokens)
        except (httpx.HTTPError, KeyError) as error:
            self.outcome.failures.append(f"{type(error).__name__}: {error}")
            return
        first_s = handed_s + float(served["first_after_s"])
        tpot_s = (time.monotonic() - first_s) / max(1, asked.output_tokens - 1)
        if first_s - began_s > self._ttft_s:
            self.outcome.late["TTFT"] += 1
        elif tpot_s > self._tpot_s:
            self.outcome.late["TPOT"] += 1
        else:
            self.outcome.kept += 1

    async def _ask(self, http: httpx.AsyncClient, role: str, asked: Asked, tokens: int) -> dict[str, Any]:
        url = min(self._ready[role], key=lambda u: (self._busy[u], u))
        self._busy[url] += 1
        try:
            body = {"prompt": [1] * asked.prompt_tokens, "max_tokens": tokens}
            answer = await http.post(f"{url}/v1/completions", json=body)
            answer.raise_for_status()
            return dict(answer.json())
        finally:
            self._busy[url] -= 1

    @contextlib.asynccontextmanager
    async def _watched(self) -> AsyncIterator[None]:
        await self._look(0.0)
        looks = asyncio.create_task(self._look_again())
        try:
            yield
        finally:
            looks.cancel()
            await asyncio.gather(looks, return_exceptions=True)

    async def _look_again(self) -> None:
        last_s = time.monotonic()
        while True:
            await asyncio.sleep(_LOOK_S)
            now_s = time.monotonic()
            await self._look(now_s - last_s)
            last_s = now_s

    async def _look(self, passed_s: float) -> None:
        pods = await asyncio.to_thread(self._cluster.items, "pods", "app in (sim-prefill, sim-decode)")
        for role in ROLES:
            mine = [p for p in pods if p["metadata"]["labels"]["app"] == f"sim-{role}"]
            self.outcome.pod_s[role] += passed_s * len(mine)
            self.outcome.most[role] = max(self.outcome.most[role], len(mine))
            self._ready[role] = [f"http://{p['status']['podIP']}:8000" for p in mine if _takes_requests(p)]


def _takes_requests(pod: dict[str, Any]) -> bool:
    conditions = {c["type"]: c["status"] for c in pod["status"].get("conditions", [])}
    return conditions.get("Ready") == "True" and "deletionTimestamp" not in pod["metadata"]
