"""Workers die, leave and are replaced while requests run, and no request fails.

There are two prefill and two decode workers.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from tests.e2e import rig

import demo
import load
from access import router_url
from disagg_operator.kube.pods import DRAIN_UNTIL
from kubectl import Cluster

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(300, func_only=True)]
BESIDE_OTHERS = True
NAME = "pair"
_LIMIT_S = 150.0
# Enough for a stream to outlast the pod that is killed under it: the small model generates several
# hundred tokens per second.
_TOKENS = 1200
# Enough for a stream to run on when kubectl has told that its worker is to go.
_SPANNING_TOKENS = 900


@pytest.fixture(scope="module")
def pair(cluster: Cluster) -> Cluster:
    two = {"replicas": 2}
    # float32, because in bfloat16 the two likeliest tokens are often tied, and the choice depends
    # on the rest of the batch.
    rig.apply(cluster, rig.resource(NAME, "192.168.79.0/24", prefill=two, decode=two, engine={"dtype": "float32"}))
    rig.wait_ready(cluster, NAME, prefill=2, decode=2)
    return cluster


@pytest.fixture(scope="module")
def url(pair: Cluster) -> Iterator[str]:
    with router_url(pair, f"{NAME}-router") as found:
        yield found


def _prompt(number: int) -> list[int]:
    return [random.Random(number * 1000 + i).randrange(3, 2048) for i in range(40)]


async def test_greedy_streams_survive_the_death_of_their_decode_worker(pair: Cluster, url: str) -> None:
    async with rig.api(url) as client:
        alone = await asyncio.gather(*(rig.stream(client, _prompt(i), _TOKENS) for i in range(4)))
        assert {a.trace["attempts"] for a in alone} == {1}
        # Any decode worker, because the requests are spread over both. It is known before the
        # streams begin: a busy machine may take long to tell.
        victim = next(iter(rig.pods(pair, NAME, "decode")))
        under_way = [asyncio.Event() for _ in range(4)]
        running = [asyncio.create_task(rig.stream(client, _prompt(i), _TOKENS, under_way[i])) for i in range(4)]
        async with asyncio.timeout(60):
            await asyncio.gather(*(e.wait() for e in under_way))
        await asyncio.to_thread(pair.kubectl, "delete", "pod", victim, "--grace-period=0", "--force", "--wait=false")
        answers = await asyncio.gather(*running)
    assert [a.tokens for a in answers] == [a.tokens for a in alone]
    assert {len(a.tokens) for a in answers} == {_TOKENS}
    hit = [a for a in answers if a.trace["attempts"] > 1]
    assert hit, "the worker that died held none of the streams"
    assert all(a.pod("decode") != victim for a in hit)
    await rig.until_ready(pair, NAME, prefill=2, decode=2)


def _mixed(number: int) -> dict[str, Any]:
    """Return a request with some work for each pool."""
    return {
        "model": rig.MODEL,
        "prompt": _prompt(number) * 8,
        "max_tokens": 80,
        "ignore_eos": True,
        "temperature": 0.7,
        "seed": number,
    }


def _long_prompts(number: int) -> dict[str, Any]:
    """Return a request with KV to transfer, whose prefill outlasts a killed worker."""
    return demo.prefill_heavy(number) | {"max_tokens": 4}


async def _load_while(
    pair: Cluster, url: str, leaving: list[str], body: Callable[[int], dict[str, Any]], concurrency: int, *options: str
) -> load.Result:
    """Delete pods under load.

    The load goes on until the pods are gone and the pools are complete again.
    """

    async def leave() -> None:
        await asyncio.to_thread(pair.kubectl, "delete", "pod", *leaving, *options, "--timeout=90s", timeout_s=100)
        await rig.until_ready(pair, NAME, prefill=2, decode=2)

    task = asyncio.create_task(leave())

    async def over() -> bool:
        return task.done()

    result, reached = await load.run(url, body, concurrency, over, _LIMIT_S, interval_s=0.5)
    await task
    assert reached
    assert not {*leaving} & rig.uids(pair, NAME).keys()
    return result


async def test_workers_that_are_told_to_go_finish_what_they_hold(pair: Cluster, url: str) -> None:
    leaving = [next(iter(rig.pods(pair, NAME, role))) for role in ("prefill", "decode")]
    result = await _load_while(pair, url, leaving, _mixed, 6)
    assert result.errors == []
    assert result.finished > 20


async def test_no_request_fails_when_a_prefill_worker_dies(pair: Cluster, url: str) -> None:
    victim = next(iter(rig.pods(pair, NAME, "prefill")))
    result = await _load_while(pair, url, [victim], _long_prompts, 12, "--grace-period=0", "--force")
    assert result.errors == []
    assert result.finished > 20


async def _watch_rollout(pair: Cluster, old: set[str]) -> dict[str, float]:
    """Return when each old decode pod was first seen to be told to go (monotonic, in seconds).

    Waits until all of them are gone and the resource is ready.
    """
    leaving: dict[str, float] = {}
    deadline_s = time.monotonic() + _LIMIT_S
    while time.monotonic() < deadline_s:
        found = await asyncio.to_thread(rig.pods, pair, NAME, "decode")
        now_s = time.monotonic()
        for name in old:
            meta = found.get(name, {}).get("metadata", {"deletionTimestamp": ""})
            if "deletionTimestamp" in meta or DRAIN_UNTIL in meta.get("annotations", {}):
                leaving.setdefault(name, now_s)
        if not old & found.keys():
            await rig.until_ready(pair, NAME, prefill=2, decode=2)
            return leaving
        await asyncio.sleep(0.2)
    pytest.fail(f"the rollout did not end\n{rig.diagnosis(pair, NAME)}")


async def test_a_rollout_of_decode_reaches_the_pods_and_cuts_no_stream(pair: Cluster, url: str) -> None:
    old = set(rig.pods(pair, NAME, "decode"))
    prefill = rig.pods(pair, NAME, "prefill").keys()
    answers: list[rig.Answer] = []
    rig.edit(pair, NAME, decode={"maxRunningRequests": 33})
    rollout = asyncio.create_task(_watch_rollout(pair, old))
    async with rig.api(url) as client:

        async def keep_streaming(number: int) -> None:
            while not rollout.done():
                answers.append(await rig.stream(client, _prompt(number), _SPANNING_TOKENS))

        await asyncio.gather(*(keep_streaming(i) for i in range(4)))
    leaving = await rollout
    assert {len(a.tokens) for a in answers} == {_SPANNING_TOKENS}
    spanning = [a for a in answers if a.pod("decode") in old and a.started_s < leaving[a.pod("decode")] < a.ended_s]
    assert spanning, "no stream ran on a worker while it was told to go"
    assert {a.trace["attempts"] for a in spanning} == {1}
    for pod in rig.pods(pair, NAME, "decode").values():
        env = {e["name"]: e.get("value") for e in pod["spec"]["containers"][0]["env"]}
        assert env["DISAGG_MAX_RUNNING"] == "33"
    assert rig.pods(pair, NAME, "prefill").keys() == prefill
