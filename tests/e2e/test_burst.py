"""A bursty trace moves the pools in opposite directions, and no request fails.

The workers are the bundled ones.
"""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.e2e import rig
from tests.e2e.replay import SPEED, Replay, halves, sizes

from access import router_url
from kubectl import Cluster

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(400, func_only=True)]
NAME = "burst"
BOUNDS = {"minReplicas": 1, "maxReplicas": 3}


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
    assert asyncio.run(replay.until(url, prompts, lambda: sizes(burst, NAME)["prefill"] >= 2)), rig.diagnosis(
        burst, NAME
    )
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
    # It is written at most once a minute, so it may not have been written before.
    burst.wait("the policy's state is kept", lambda: bool(burst.get("configmap", f"{NAME}-scaling-state")), 120.0)
    assert burst.get("configmap", f"{NAME}-scaling-state")["metadata"]["ownerReferences"][0]["name"] == NAME


def test_explain_and_replay_read_the_operators_own_records(
    burst: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from disagg_operator.cli.entry import main

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
