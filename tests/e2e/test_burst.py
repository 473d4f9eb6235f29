"""A bursty trace against the bundled workers: the pools move on their own, in opposite directions, and no request fails.

tests/e2e/burst.csv is twenty seconds, made up in the manner of the published traces: half of it asks for prefill, half for decode.
Each half is repeated until the pools have followed.
"""

from __future__ import annotations

import asyncio
import csv
import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import openai
import pytest
from tests.e2e import rig

from access import router_url
from kubectl import Cluster

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(400, func_only=True)]
NAME = "burst"
PHASE_LIMIT_S = 110.0
MOST_UNDER_WAY = 48
BOUNDS = {"minReplicas": 1, "maxReplicas": 3}
# A quarter of what one core does, so that pools of three are needed before the machine's two cores are used up.
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
    """What asks for prefill and what asks for decode, each from 0 s on."""
    with (Path(__file__).parent / "burst.csv").open(encoding="utf-8") as file:
        rows = [Row(float(r["arrival_s"]), int(r["prompt_tokens"]), int(r["output_tokens"])) for r in csv.DictReader(file)]
    first = [r for r in rows if r.arrival_s < 10]
    return first, [Row(r.arrival_s - 10, r.prompt_tokens, r.output_tokens) for r in rows if r.arrival_s >= 10]


@dataclass
class Replay:
    """A request is sent when its time has come, whatever became of those before; only a machine that is far behind is waited for."""

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
            self.errors.append(f"request {number}: {len(answer.tokens)} of {row.output_tokens} tokens, {answer.finish_reason!r}")
        self.finished += 1

    async def until(self, url: str, rows: list[Row], reached: Callable[[], bool]) -> bool:
        """Send the rows over and over, ten seconds each time, until `reached` or the limit; then let all finish."""
        began_s, number, under_way = time.monotonic(), 0, set[asyncio.Task[None]]()
        done = False
        async with rig.api(url) as client:
            while not done and time.monotonic() - began_s < PHASE_LIMIT_S:
                round_s = time.monotonic()
                for row in rows:
                    await asyncio.sleep(max(0.0, round_s + row.arrival_s - time.monotonic()))
                    while len(under_way) >= MOST_UNDER_WAY:
                        _, under_way = await asyncio.wait(under_way, return_when=asyncio.FIRST_COMPLETED)
                    number += 1
                    under_way.add(asyncio.create_task(self.one(client, number, row)))
                done = await asyncio.to_thread(reached)
                await asyncio.sleep(max(0.0, round_s + 10 - time.monotonic()))
            if under_way:
                await asyncio.wait(under_way)
        return done


def sizes(cluster: Cluster, name: str) -> dict[str, int]:
    """Workers wanted in each pool."""
    return {role: int(cluster.get("dp", f"{name}-{role}")["spec"]["replicas"]) for role in ("prefill", "decode")}


@pytest.fixture(scope="module")
def burst(cluster: Cluster) -> Cluster:
    obj = rig.resource(NAME, "192.168.81.0/24")
    obj["spec"] |= {
        "prefill": {"autoscaling": BOUNDS},
        "decode": {"autoscaling": BOUNDS},
        "scaling": {"overProvisioning": 2, "profile": SPEED},
        "objectives": {"ttftSeconds": {"p99": 2}, "tpotSeconds": {"p99": 0.06}},
    }
    rig.apply(cluster, obj)
    rig.wait_ready(cluster, NAME, prefill=1, decode=1)
    return cluster


@pytest.fixture(scope="module")
def url(burst: Cluster) -> Iterator[str]:
    with router_url(burst, f"{NAME}-router") as found:
        yield found


def test_the_pools_follow_a_bursty_trace_in_opposite_directions_and_nothing_is_lost(burst: Cluster, url: str) -> None:
    replay, (prompts, answers) = Replay(), halves()
    assert asyncio.run(replay.until(url, prompts, lambda: sizes(burst, NAME)["prefill"] >= 2)), rig.diagnosis(burst, NAME)
    full = sizes(burst, NAME)
    assert full["decode"] == 1  # long prompts are no work for decode

    def crossed() -> bool:
        now = sizes(burst, NAME)
        return now["decode"] >= 2 and now["prefill"] < full["prefill"]

    assert asyncio.run(replay.until(url, answers, crossed)), f"{sizes(burst, NAME)}\n{rig.diagnosis(burst, NAME)}"
    assert replay.errors == []
    assert replay.finished >= len(prompts) + len(answers)


def test_every_move_is_told_with_its_reason(burst: Cluster) -> None:
    found = [e["message"] for e in burst.items("events") if e.get("reason") in ("ScaledUp", "ScaledDown")]
    for role in ("prefill", "decode"):
        assert any(m.startswith(f"{role}: ") and "workers of work expected" in m and "1 -> " in m for m in found), found
    described = burst.kubectl("describe", "dd", NAME)
    assert "Last Decision" in described
    assert "workers of work expected" in described
    decisions = {p["name"]: p["lastDecision"] for p in burst.get("dd", NAME)["status"]["pools"]}
    assert all(math.isfinite(d["numbers"]["forecast"]) for d in decisions.values())
    assert burst.get("configmap", f"{NAME}-scaling-state")["metadata"]["ownerReferences"][0]["name"] == NAME


def test_explain_and_replay_read_the_operators_own_records(
    burst: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from disagg_operator.cli.main import main

    for name, value in burst.environment.items():
        monkeypatch.setenv(name, value)

    def run(*argv: str) -> str:
        with pytest.raises(SystemExit) as ended:
            main(list(argv))
        assert ended.value.code in (0, None)
        return capsys.readouterr().out

    kept = tmp_path / "burst.jsonl"
    told = run("explain", NAME, "-n", burst.namespace, "--save", str(kept))
    assert "->" in told
    assert "requests kept the objective of the first token" in told
    assert json.loads(kept.read_text().splitlines()[0])["begin"] is True
    assert "differs in 0 of" in run("replay", str(kept))


def hpa(role: str) -> dict[str, Any]:
    return {
        "apiVersion": "autoscaling/v2",
        "kind": "HorizontalPodAutoscaler",
        "metadata": {"name": f"{NAME}-{role}"},
        "spec": {
            "scaleTargetRef": {"apiVersion": "disagg.dev/v1alpha1", "kind": "DisaggPool", "name": f"{NAME}-{role}"},
            "minReplicas": 1,
            "maxReplicas": 3,
            "metrics": [{"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 60}}}],
        },
    }


def floors(cluster: Cluster, prefill: int, decode: int) -> None:
    """Move both HPAs' floors: no metrics server is here, so the floor is what an HPA acts on."""
    for role, least in (("prefill", prefill), ("decode", decode)):
        obj = hpa(role)
        obj["spec"] |= {"minReplicas": least, "maxReplicas": least}
        rig.apply(cluster, obj)


def test_two_hpas_move_the_pools_in_opposite_directions_under_the_same_load(burst: Cluster, url: str) -> None:
    """Without autoscaling in the resource, /scale of each DisaggPool is an HPA's."""
    rig.edit(
        burst, NAME, prefill={"autoscaling": None, "replicas": 1}, decode={"autoscaling": None, "replicas": 1}, scaling={"profile": None}
    )
    rig.wait_ready(burst, NAME, prefill=1, decode=1)
    replay, (prompts, answers) = Replay(), halves()
    floors(burst, 2, 1)
    assert asyncio.run(replay.until(url, prompts, lambda: sizes(burst, NAME) == {"prefill": 2, "decode": 1}))
    floors(burst, 1, 2)
    assert asyncio.run(replay.until(url, answers, lambda: sizes(burst, NAME) == {"prefill": 1, "decode": 2}))
    found = rig.wait_ready(burst, NAME, prefill=1, decode=2)
    assert {p["replicaOwner"] for p in found["status"]["pools"]} == {"spec", "kube-controller-manager"}
    assert replay.errors == []
