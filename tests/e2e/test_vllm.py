"""A resource with `engine.type: vllm`: real engines in pods, their KV over the second network.

The engines come from a test image (e2e/engines/vllm). Answers are compared with transformers.
"""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from tests.e2e import rig
from tests.worker import oracle
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM

from access import router_url
from kubectl import REPO, Cluster, conditions, is_true

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(600, func_only=True)]
NAME = "chat"
RESOURCE = REPO / "e2e" / "quickstart-vllm.yaml"
PROMPTS, NEW_TOKENS = 12, 32
_IMAGE_S, _START_S = 1800, 300.0


@pytest.fixture(scope="module")
def pair(whole_cluster: Cluster, cluster: Cluster) -> Cluster:
    subprocess.run([REPO / "e2e/cluster", "images", "vllm"], check=True, timeout=_IMAGE_S)
    resource = yaml.safe_load(RESOURCE.read_text())
    assert len(RESOURCE.read_text().splitlines()) <= 20
    for role in ("prefill", "decode"):  # the demo lets the pools scale
        del resource["spec"][role]["autoscaling"]
    resource["spec"]["kvTransfer"]["network"]["attachment"]["subnet"] = "192.168.83.0/24"
    resource["spec"]["router"]["queue"] = {"maxWaitSeconds": 300}
    rig.apply(cluster, resource)
    rig.wait_ready(cluster, NAME, timeout_s=_START_S, prefill=1, decode=1)
    return cluster


@pytest.fixture(scope="module")
def url(pair: Cluster) -> Iterator[str]:
    with router_url(pair, f"{NAME}-router") as found:
        yield found


def _prompts() -> list[list[int]]:
    return sorted(oracle.prompts(), key=len)[:: oracle.PROMPTS // PROMPTS][:PROMPTS]


def _pieces(ids: list[int]) -> tuple[str, ...]:
    tokenizer = Tokenizer.from_file(str(oracle.MODEL / "tokenizer.json"))
    return tuple(tokenizer.decode([i], skip_special_tokens=False) for i in ids)


def _expected(model: Any, prompt: list[int]) -> list[int]:
    import torch

    with torch.inference_mode():
        out = model.generate(
            torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.long), do_sample=False,
            max_new_tokens=NEW_TOKENS, pad_token_id=0,
        )  # fmt: skip
    return [int(t) for t in out[0][len(prompt) :]]


async def test_12_prompts_give_the_tokens_of_transformers_and_their_kv_comes_over_the_second_network(
    pair: Cluster, url: str
) -> None:
    model = AutoModelForCausalLM.from_pretrained(oracle.MODEL, dtype="float32")
    model.generation_config.eos_token_id = None  # as with ignore_eos
    async with rig.api(url) as client:
        for prompt in _prompts():
            answer = await rig.stream(client, prompt, NEW_TOKENS)
            assert answer.tokens == _pieces(_expected(model, prompt))
            assert answer.trace["path"] == "remote"
            assert answer.trace["interface"] == "net1"

    def proved() -> bool:
        pairs = pair.get("dd", NAME)["status"]["pairs"]
        return (pairs["uses"], pairs["evidence"], pairs["interface"]) == ("tcp", "Proved", "net1")

    # The adapter counts every few seconds, and the routers and the operator ask it by turns.
    await asyncio.to_thread(pair.wait, "KV over net1", proved, 60.0)
    message = conditions(pair.get("dd", NAME))["KVTransferReady"]["message"]
    assert "net1" in message
    assert "tcp" in message

    def effective() -> bool:
        return is_true(pair.get("dd", NAME), "DisaggregationEffective")

    await asyncio.to_thread(pair.wait, "DisaggregationEffective", effective, 60.0)


async def test_a_stream_outlives_the_only_decode_engine(pair: Cluster, url: str) -> None:
    """The router holds the tokens until the engine is back, or prefill's text is gone on with
    elsewhere: here there is no elsewhere.
    """
    prompt = _prompts()[-3]
    async with rig.api(url) as client:
        wanted = await rig.stream(client, prompt, 300)
        (pod,) = rig.pods(pair, NAME, "decode").values()  # before: a busy machine may take long to tell
        under_way = asyncio.Event()
        task = asyncio.create_task(rig.stream(client, prompt, 300, under_way))
        async with asyncio.timeout(60):
            await under_way.wait()
        rig.kill_processes(pod["metadata"]["uid"], "vllm")
        answer = await task
    assert answer.tokens == wanted.tokens
    assert answer.trace["attempts"] > 1
    assert await asyncio.to_thread(
        lambda: rig.wait_ready(pair, NAME, timeout_s=_START_S, prefill=1, decode=1)["status"]["pairs"]["healthy"]
    )
