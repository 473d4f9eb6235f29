"""Operations of the end-to-end tests on a DisaggDeployment.

The tests apply it, wait for it, inspect it, and talk to it as an OpenAI client.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai
import yaml

from kubectl import Cluster, conditions, is_true

MODEL = "stdlib-llama"
READY_TIMEOUT_S = 150.0
# A worker with a device requests a whole CPU by default, and the cluster may have only two.
SMALL = {"requests": {"cpu": "100m", "memory": "256Mi"}}


def resource(name: str, subnet: str, **spec: Any) -> dict[str, Any]:
    """Return a DisaggDeployment of one prefill and one decode worker.

    The keywords replace parts of its spec.
    """
    attachment = {"type": "macvlan", "master": "disagg-rdma0", "subnet": subnet}
    default = {
        "model": {"uri": f"file:///models/{MODEL}"},
        "prefill": {},
        "decode": {},
        "kvTransfer": {"network": {"attachment": attachment}},
        "router": {"replicas": 1},
    }
    return {
        "apiVersion": "disagg.dev/v1alpha1",
        "kind": "DisaggDeployment",
        "metadata": {"name": name},
        "spec": default | spec,
    }


def apply(cluster: Cluster, obj: dict[str, Any]) -> None:
    """Apply an object. Raises ClusterFailed with the message of the API server."""
    cluster.kubectl("apply", "-f", "-", stdin=yaml.safe_dump(obj))


def edit(cluster: Cluster, name: str, **spec: Any) -> None:
    """Merge into the spec, as `kubectl patch` does."""
    cluster.kubectl("patch", "dd", name, "--type=merge", "-p", yaml.safe_dump({"spec": spec}))


def selector(name: str, component: str) -> str:
    return f"disagg.dev/deployment={name},app.kubernetes.io/component={component}"


def pods(cluster: Cluster, name: str, component: str) -> dict[str, dict[str, Any]]:
    """Return the pods of a component by name, including terminating ones."""
    return {p["metadata"]["name"]: p for p in cluster.items("pods", selector(name, component))}


def uids(cluster: Cluster, name: str) -> dict[str, str]:
    """Return the uid of every pod of the deployment by name."""
    found = cluster.items("pods", f"disagg.dev/deployment={name}")
    return {p["metadata"]["name"]: p["metadata"]["uid"] for p in found}


def diagnosis(cluster: Cluster, name: str) -> str:
    """Return the information that helps to understand a failure."""
    found = cluster.get("dd", name)
    lines = [
        f"{c['type']}={c['status']} {c.get('reason', '')}: {c.get('message', '')}" for c in conditions(found).values()
    ]
    return "\n".join([*lines, cluster.kubectl("get", "pods,dp", "-o", "wide", check=False)])


def is_ready(pod: dict[str, Any]) -> bool:
    return conditions(pod).get("Ready", {}).get("status") == "True"


def serving(cluster: Cluster, name: str, component: str) -> set[str]:
    """Return the names of the pods that are ready and not terminating."""
    return {
        k for k, p in pods(cluster, name, component).items() if "deletionTimestamp" not in p["metadata"] and is_ready(p)
    }


def wait_ready(cluster: Cluster, name: str, *, timeout_s: float = READY_TIMEOUT_S, **counts: int) -> dict[str, Any]:
    """Wait until the resource is Ready at its current generation, and return it.

    The keywords are the workers that must be ready in each pool. The pods are checked as well,
    because the status may be older than a deletion by the caller.
    """

    def ready() -> bool:
        if any(len(serving(cluster, name, role)) != n for role, n in counts.items()):
            return False
        found = cluster.get("dd", name)
        return is_true(found, "Ready") and all(found["status"].get(role) == f"{n}/{n}" for role, n in counts.items())

    cluster.wait(f"{name} Ready {counts or ''}", ready, timeout_s, detail=lambda: diagnosis(cluster, name))
    return cluster.get("dd", name)


async def until_ready(cluster: Cluster, name: str, **counts: int) -> dict[str, Any]:
    return await asyncio.to_thread(lambda: wait_ready(cluster, name, **counts))


def kill_processes(pod_uid: str, word: str) -> None:
    """Send SIGKILL to those processes of a pod here whose command line has a word."""
    killed = 0
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if pod_uid in (folder / "cgroup").read_text() and word in (folder / "cmdline").read_text().lower():
                os.kill(int(folder.name), signal.SIGKILL)
                killed += 1
    assert killed, f"no process of the pod has {word} in its command line"


@dataclass(frozen=True)
class Answer:
    """The result of one finished stream.

    `trace` is the router's own report about it; times are monotonic, in seconds.
    """

    tokens: tuple[str, ...]
    finish_reason: str
    trace: dict[str, Any]
    started_s: float
    ended_s: float
    weights: str
    """The fingerprint of the weights that answered."""

    def pod(self, role: str) -> str:
        return str(self.trace[role]["pod"])


@asynccontextmanager
async def api(url: str) -> AsyncIterator[openai.AsyncOpenAI]:
    """Yield a client without retries, so that every failure is noticed."""
    http = openai.DefaultAsyncHttpxClient(trust_env=False, timeout=120.0)
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, http_client=http) as client:
        yield client


async def stream(
    client: openai.AsyncOpenAI,
    prompt: Sequence[int],
    max_tokens: int,
    well_under_way: asyncio.Event | None = None,
    *,
    model: str = MODEL,
) -> Answer:
    """Stream a greedy completion of exactly `max_tokens`.

    `well_under_way` is set after a tenth of the tokens. Raises openai.APIError.
    """
    started_s = time.monotonic()
    tokens: list[str] = []
    reason, weights = "", ""
    trace: dict[str, Any] = {}
    chunks = await client.completions.create(
        model=model, prompt=list(prompt), max_tokens=max_tokens, temperature=0, logprobs=0, stream=True,
        extra_body={"ignore_eos": True}, extra_headers={"x-disagg-trace": "1"},
    )  # fmt: skip
    async for chunk in chunks:
        weights = chunk.system_fingerprint or weights
        for choice in chunk.choices:
            if choice.logprobs is not None:
                tokens += choice.logprobs.tokens or []
            reason = choice.finish_reason or reason
        if well_under_way is not None and len(tokens) >= max_tokens // 10:
            well_under_way.set()
        trace = (chunk.model_extra or {}).get("disagg", trace)
    return Answer(tuple(tokens), reason, trace, started_s, time.monotonic(), weights)
