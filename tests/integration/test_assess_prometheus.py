"""`disagg assess` reads half a day of two engines from a real Prometheus."""

from __future__ import annotations

import asyncio
import json
import math
import random
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from tests.integration import remote_write
from tests.integration.test_prometheus import prometheus
from tests.operator.planning.assessment.pages import Page

pytestmark = pytest.mark.apiserver

HOURS, EVERY_S = 12, 30
STRETCH = 20
"""Looks that an engine stays busy or quiet, some of the windows of assess."""
ENGINES = ("vllm", "sglang")


def half_a_day(engine: str, end_s: float) -> remote_write.Samples:
    """Return the samples of two engines.

    Twice as many requests come in the last hour, and a token takes longer in every second stretch
    of ten minutes, when twice as many prompts are computed.
    """
    source, samples = random.Random(1), remote_write.Samples()
    pages = [Page(engine, "llama-3.1-8b") for _ in range(2)]
    for look in range(HOURS * 3600 // EVERY_S + 1):
        at_s = end_s - HOURS * 3600 + look * EVERY_S
        for number, page in enumerate(pages):
            busy = at_s > end_s - 3600
            if look:
                many = (look // STRETCH + number) % 2 == 1
                for _ in range((4 if busy else 2) if many else (2 if busy else 1)):
                    gap_s = 0.06 if many else 0.03
                    page.request(source.choice((300, 1500)), 20, cached=100, ttft_s=0.4, gaps_s=[gap_s] * 19)
            page.numbers["running"] = source.choice((3.0, 4.0))
            labels = f'namespace="prod",pod="engine-{number}",instance="10.0.0.{number}:8000"'
            remote_write.add_page(samples, page.text(), at_s, labels)
    return samples


async def assess(*arguments: str) -> dict[str, Any]:
    process = await asyncio.create_subprocess_exec(
        Path(sys.executable).parent / "disagg", "assess", *arguments, "-o", "json",
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, err = await asyncio.wait_for(process.communicate(), 120)
    assert process.returncode == 0, err.decode()
    found: dict[str, Any] = json.loads(out)
    return found


@pytest.mark.parametrize("engine", ENGINES)
async def test_half_a_day_of_two_engines(tmp_path: Path, engine: str) -> None:
    end_s = math.floor(time.time())
    async with prometheus(tmp_path, {}, remote_write=True) as url:
        await asyncio.to_thread(remote_write.write, url, half_a_day(engine, end_s))
        found = await assess(url, "--since", "11h", "--select", 'namespace="prod"', "--tpot-ms", "50")
    workload = found["workload"]
    assert (found["engine"], found["model"], found["today"]["workers"]) == (engine, "llama-3.1-8b", 2)
    assert workload["prompt_tokens"]["mean"] == pytest.approx(900, rel=0.05)
    assert workload["prompt_tokens"]["tail"] == {"low": 1000, "high": 2000}
    assert workload["answer_tokens"]["mean"] == pytest.approx(20, rel=0.01)
    assert workload["cached_share"] == pytest.approx(100 / 900, rel=0.1)
    assert workload["requests_per_s"] == pytest.approx(0.11, rel=0.1)
    assert workload["busiest_requests_per_s"] > 0.18
    assert workload["dispersion"] is None
    assert workload["hours_are_utc"]
    assert len(workload["hours"]) >= 11
    busiest = max(workload["hours"], key=lambda hour: hour["mean_per_s"])["hour"]
    assert busiest in {time.gmtime(end_s).tm_hour, time.gmtime(end_s - 3600).tm_hour}
    assert found["within_objectives_today"]["ttft_share"] == {"low": 1.0, "high": 1.0}
    assert found["within_objectives_today"]["kept"] == "no"
    seen = found["prefill_disturbs_decode"]
    assert seen["verdict"] == "yes"
    assert seen["busy"]["gap_s"] > 1.1 * seen["quiet"]["gap_s"]
    assert seen["late_s"] == 0.05
