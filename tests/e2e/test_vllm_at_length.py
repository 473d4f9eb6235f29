"""vLLM on the kubelet at length: pools that scale, edits under load, engines that cannot start.

Run by `make test-engines`.
"""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
import yaml
from tests.e2e import rig

import demo
import load
from access import router_url
from kubectl import REPO, Cluster, conditions, is_true

pytestmark = [pytest.mark.engines, pytest.mark.timeout(1500)]
NAME = demo.NAME
_IMAGE_S, _START_S, _ROLLOUT_S = 1800, 300.0, 600.0
# Times of Kubernetes have no fractions, and the test looks about once a second.
_KNOWN_WITHIN_S, _LOOK_S = 5, 3


def _resource(**engine: Any) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((REPO / "e2e/quickstart-vllm.yaml").read_text())
    found["spec"]["kvTransfer"]["network"]["attachment"]["subnet"] = "192.168.84.0/24"
    found["spec"]["router"]["queue"] = {"maxWaitSeconds": 300}
    found["spec"]["engine"] |= engine
    return found


@pytest.fixture(scope="module")
def with_image(cluster: Cluster) -> Cluster:
    subprocess.run([REPO / "e2e/cluster", "images", "vllm"], check=True, timeout=_IMAGE_S)
    return cluster


@pytest.fixture(scope="module")
def chat(with_image: Cluster) -> Cluster:
    rig.apply(with_image, _resource())
    rig.wait_ready(with_image, NAME, timeout_s=_START_S, prefill=1, decode=1)
    return with_image


@pytest.fixture(scope="module")
def url(chat: Cluster) -> Iterator[str]:
    with router_url(chat, f"{NAME}-router") as found:
        yield found


@pytest.mark.parametrize(
    ("args", "reason", "said"),
    [
        (["--enforce-eager", "--no-such-flag"], "UnknownFlag", "no-such-flag"),
        # The checkpoint is none of the kind that is asked for, as the loader finds out.
        (["--enforce-eager", "--load-format", "sharded_state"], "WeightsRefused", "checkpoint files"),
    ],
    ids=["unknown flag", "weights refused"],
)
def test_an_engine_that_cannot_start_says_why_in_time(
    with_image: Cluster, args: list[str], reason: str, said: str
) -> None:
    resource = _resource(args=args)
    # Pods of the case before, of the same name, might still be there and say why.
    resource["metadata"]["name"] = name = f"broken-{reason.lower()}"
    rig.apply(with_image, resource)
    try:

        def told() -> bool:
            condition = conditions(with_image.get("dd", name)).get("PrefillReady", {})
            return condition.get("reason") not in (None, "PodsPending", "NoPods") and said in condition["message"]

        with_image.wait("a reason", told, _START_S, detail=lambda: rig.diagnosis(with_image, name))
        seen = datetime.now(UTC)  # the condition does not tell: its status was False before
        found = with_image.get("dd", name)
        condition = conditions(found)["PrefillReady"]
        assert condition["reason"] == reason
        assert not is_true(found, "Ready")
        ended = [
            state["finishedAt"]
            for pod in rig.pods(with_image, name, "prefill").values()
            for status in pod["status"]["containerStatuses"]
            for state in (status["lastState"].get("terminated"), status["state"].get("terminated"))
            if state and status["name"] == "main"
        ]
        known = seen - datetime.fromisoformat(min(ended))
        assert known.total_seconds() <= _KNOWN_WITHIN_S + _LOOK_S
    finally:
        with_image.kubectl("delete", "dd", name, "--timeout=60s", timeout_s=90)


def test_both_pools_scale_by_their_queues(chat: Cluster, url: str) -> None:
    demo.scale(chat, url, "decode", "prefill", demo.decode_heavy, 24)
    demo.scale(chat, url, "prefill", "decode", demo.prefill_heavy, 16)


async def test_no_request_fails_while_the_number_of_sequences_changes_under_load(chat: Cluster, url: str) -> None:
    before = rig.uids(chat, NAME)
    rig.edit(chat, NAME, prefill={"maxRunningRequests": 12}, decode={"maxRunningRequests": 12})

    def rolled() -> bool:
        workers = [*rig.pods(chat, NAME, "prefill").values(), *rig.pods(chat, NAME, "decode").values()]
        return len(workers) == 2 and all(
            rig.is_ready(p) and p["metadata"]["uid"] not in before.values() for p in workers
        )

    async def over() -> bool:
        return await asyncio.to_thread(rolled)

    result, reached = await load.run(url, demo.decode_heavy, 4, over, _ROLLOUT_S, interval_s=1.0)
    assert reached, rig.diagnosis(chat, NAME)
    assert result.errors == []
    assert result.finished > 0


async def test_without_a_prefill_engine_decode_computes_the_prompt(chat: Cluster, url: str) -> None:
    (pod,) = rig.pods(chat, NAME, "prefill").values()
    async with rig.api(url) as client:
        prompt = [3 + i % 2000 for i in range(200)]
        wanted = await rig.stream(client, prompt, 40)
        rig.kill_processes(pod["metadata"]["uid"], "vllm")
        answer = await rig.stream(client, prompt, 40)
    assert (answer.tokens, answer.trace["path"]) == (wanted.tokens, "local")
    await asyncio.to_thread(lambda: rig.wait_ready(chat, NAME, timeout_s=_START_S, prefill=1, decode=1))
