"""The program behind `make demo`.

It brings up a real Kubernetes, installs the operator with helm, applies one short resource, asks
for a chat answer over the second network, and lets both pools scale.

Usage: demo.py [down]

With ENGINE=vllm in the environment, the workers are real vLLM engines behind adapters.
"""

from __future__ import annotations

import asyncio
import os
import random
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import yaml

import load
from access import router_url
from disagg_operator.cli import chat
from kubectl import RELEASE, REPO, SYSTEM_NAMESPACE, Cluster, ClusterFailed, conditions, is_true, pool_status

NAME, MODEL = "chat", "stdlib-llama"
ENGINE = os.environ.get("ENGINE", "builtin")
# The example of each engine, and the image that it needs beside those of the project.
_EXAMPLES = {"builtin": ("examples/quickstart.yaml", None), "vllm": ("e2e/quickstart-vllm.yaml", "vllm")}
# An engine of 2 GB needs a minute to start on two cores, and each further one as long again.
READY_TIMEOUT_S = 300.0
PHASE_LIMIT_S = 300.0
SHRINK_TIMEOUT_S = 150.0
# Clients that begin at once would all be in prefill at once, on a busy machine for seconds.
APART_S = 0.5
# The policy leaves a pool alone whose requests are this much over its target.
_TOLERANCE = 1.1
STARTED_S = time.monotonic()


def say(text: str) -> None:
    print(f"\033[36m[demo {time.monotonic() - STARTED_S:5.0f} s]\033[0m {text}", flush=True)


def title(text: str) -> None:
    print(f"\n\033[1m{text}\033[0m", flush=True)


def bring_up() -> Cluster:
    """Bring up the cluster and the images; their own progress goes to the terminal."""
    title("1. A Kubernetes cluster, and the project's images")
    image = _EXAMPLES[ENGINE][1]
    subprocess.run([REPO / "e2e/cluster", "up", "--images", *(["--with", image] if image else [])], check=True)
    return Cluster()


def example() -> Path:
    """Return the resource that is applied."""
    return REPO / _EXAMPLES[ENGINE][0]


def is_external(cluster: Cluster) -> bool:
    """Return whether the cluster is the user's own."""
    return cluster.environment.get("DISAGG_E2E_MODE") == "external"


def image_values(cluster: Cluster) -> dict[str, str]:
    """Return the values that tell a cluster of the user's own where to pull images from.

    They come from DISAGG_IMAGES, such as REGISTRY/disagg-%s:1. Raises ClusterFailed.
    """
    if not is_external(cluster):
        return {}
    pattern = os.environ.get("DISAGG_IMAGES", "")
    if pattern.count("%s") != 1:
        raise ClusterFailed(
            "on a cluster of your own, set DISAGG_IMAGES to where it pulls the images from,"
            " such as REGISTRY/disagg-%s:1"
        )
    return {f"images__{name}": pattern.replace("%s", name) for name in ("operator", "router", "worker", "adapter")}


def manifest(cluster: Cluster) -> str:
    """Return the example, adapted to a cluster of the user's own.

    There it uses the NIC in DISAGG_E2E_NIC, or no second network if none is named.
    """
    resource = yaml.safe_load(example().read_text())
    if is_external(cluster):
        if nic := os.environ.get("DISAGG_E2E_NIC"):
            resource["spec"]["kvTransfer"]["network"]["attachment"]["master"] = nic
        else:
            del resource["spec"]["kvTransfer"]
    return str(yaml.safe_dump(resource))


def deploy(cluster: Cluster) -> None:
    """Install the operator, apply the resource, and print a line for each condition until it is
    ready.
    """
    title("2. The operator, and one resource")
    try:
        cluster.install(say, **image_values(cluster))
    except ClusterFailed as failure:
        raise ClusterFailed(f"{failure}\n{diagnosis(cluster)}") from None
    say(f"kubectl apply -f {example().relative_to(REPO)}")
    cluster.kubectl("apply", "-f", "-", stdin=manifest(cluster))
    shown: dict[str, str] = {}

    def ready() -> bool:
        resource = cluster.get("dd", NAME)
        for kind, condition in conditions(resource).items():
            line = f"{kind:16} {condition['status']:8} {condition.get('reason', ''):24} {condition.get('message', '')}"
            if shown.get(kind) != line:
                shown[kind] = line
                say(line.rstrip()[:180])
        return is_true(resource, "Ready")

    cluster.wait(f"DisaggDeployment {NAME} Ready", ready, READY_TIMEOUT_S, detail=lambda: diagnosis(cluster))


def diagnosis(cluster: Cluster) -> str:
    """Return the output that one would look at next."""
    pods = cluster.kubectl("get", "pods,dd,dp", "-o", "wide", check=False)
    logs = cluster.kubectl(
        "-n", SYSTEM_NAMESPACE, "logs", "-l", "app.kubernetes.io/name=disagg-operator", "--tail=20", check=False
    )
    return f"{pods}\n{logs}"


def ask(url: str, interface: str) -> None:
    title("3. A chat completion through the router")
    question = "What does os.path.join do?"
    print(f"> {question}\n")
    trace = chat.stream_chat(url, MODEL, question)
    print("\n")
    for line in chat.explain(trace):
        say(line)
    if trace.get("interface") != interface:
        raise ClusterFailed(f"the KV cache went over {trace.get('interface')!r}, not over {interface}")


def replicas(cluster: Cluster) -> dict[str, tuple[int, int]]:
    """Return (desired, ready) by pool."""
    resource = cluster.get("dd", NAME)
    return {
        r: (int(pool_status(resource, r).get("desired", 0)), int(pool_status(resource, r).get("ready", 0)))
        for r in ("prefill", "decode")
    }


def decode_heavy(number: int) -> dict[str, Any]:
    """Return a request with a short prompt and a long answer, which is work for decode."""
    return {
        "model": MODEL,
        "prompt": [3 + number % 2000, 40, 50, 60],
        "max_tokens": 500,
        "ignore_eos": True,
        "temperature": 0.8,
        "seed": number,
    }


def prefill_heavy(number: int) -> dict[str, Any]:
    """Return a request with a long prompt and one token, which is work for prefill."""
    rng = random.Random(number)
    return {"model": MODEL, "prompt": [rng.randrange(3, 2048) for _ in range(1500)], "max_tokens": 1, "temperature": 0}


def has_cause(resource: dict[str, Any], idle: str, result: load.Result) -> bool:
    """Return whether so many requests have been before their first token that prefill had to grow.

    It may on a busy machine. Decode never has a cause: requests for one token are no work for it,
    or there are fewer of them than its target.
    """
    metrics = resource["spec"][idle]["autoscaling"]["metrics"]
    target = next(float(m["target"]["averageValue"]) for m in metrics if m["type"] == "QueueDepth")
    return idle == "prefill" and result.most_waiting > _TOLERANCE * target


def scale(cluster: Cluster, url: str, busy: str, idle: str, body: Any, concurrency: int) -> None:
    """Load one pool until it has grown, then wait until it has shrunk.

    The other pool must keep its size, unless it has a cause of its own.
    """
    before = replicas(cluster)
    say(
        f"load: {concurrency} requests at a time that are work for {busy};"
        f" before: {before[busy][0]} {busy}, {before[idle][0]} {idle}"
    )
    idle_seen = {before[idle][0]}
    last = before

    def look() -> dict[str, tuple[int, int]]:
        nonlocal last
        now = replicas(cluster)
        idle_seen.add(now[idle][0])
        if now != last:
            say(f"{busy} {now[busy][1]}/{now[busy][0]} ready, {idle} {now[idle][1]}/{now[idle][0]} ready")
            last = now
        return now

    async def grown() -> bool:
        now = await asyncio.to_thread(look)
        return now[busy][0] > before[busy][0] and now[busy][1] > before[busy][1]

    started_s = time.monotonic()
    apart_s = APART_S if idle == "prefill" else 0.0
    result, reached = asyncio.run(load.run(url, body, concurrency, grown, PHASE_LIMIT_S, apart_s=apart_s))
    median_ms = 1e3 * statistics.median(result.ttft_s) if result.ttft_s else float("nan")
    took_s = time.monotonic() - started_s
    say(
        f"{result.finished} requests finished in {took_s:.0f} s, {result.failed} failed, median TTFT {median_ms:.0f} ms"
    )
    if result.failed:
        raise ClusterFailed(f"{result.failed} requests failed: {result.errors}")
    if not reached:
        raise ClusterFailed(f"the {busy} pool did not grow within {PHASE_LIMIT_S:g} s\n{diagnosis(cluster)}")
    say(f"the load is over; waiting for {busy} to shrink to {before[busy][0]}")
    cluster.wait(
        f"{busy} back at {before[busy][0]}",
        lambda: look() == before,
        SHRINK_TIMEOUT_S,
        1.0,
        lambda: diagnosis(cluster),
    )
    if idle_seen == {before[idle][0]}:
        say(f"{idle} stayed at {before[idle][0]} all the time")
        return
    words = f"{sorted(idle_seen)}; at most {result.most_waiting} requests waited for their first token at once"
    if not has_cause(cluster.get("dd", NAME), idle, result):
        raise ClusterFailed(f"the {idle} pool moved, too: {words}")
    say(f"{idle} had a queue of its own on this busy machine: {words}")


def events(cluster: Cluster) -> list[str]:
    """Return the operator's reasons for scaling, oldest first."""
    found = [e for e in cluster.items("events") if e.get("reason") in ("ScaledUp", "ScaledDown")]
    return [f"{e['reason']:10} {e['message']}" for e in sorted(found, key=lambda e: e["metadata"]["creationTimestamp"])]


def demo() -> None:
    cluster = bring_up()
    deploy(cluster)
    with router_url(cluster, f"{NAME}-router") as url:
        ask(url, "eth0" if is_external(cluster) and not os.environ.get("DISAGG_E2E_NIC") else "net1")
        title("4. Decode grows and shrinks by its queue, prefill stays")
        scale(cluster, url, "decode", "prefill", decode_heavy, 24)
        title("5. The reverse: prefill grows and shrinks, decode stays")
        scale(cluster, url, "prefill", "decode", prefill_heavy, 16)
    title("6. What the operator says")
    print("\n".join(events(cluster)))
    print(cluster.kubectl("get", "dd"))
    print(cluster.kubectl("get", "dp"))
    say(f"done in {(time.monotonic() - STARTED_S) / 60:.1f} minutes; `make demo-down` removes everything")


def down() -> None:
    """Remove everything that the demo created.

    On a cluster of the user's own, this is the release and the resource; otherwise it is the
    cluster itself.
    """
    cluster = Cluster()
    if is_external(cluster):
        cluster.kubectl(
            "delete", "-f", example(), "--ignore-not-found", "--wait", "--timeout=120s", timeout_s=150, check=False
        )
        cluster.run("helm", "uninstall", RELEASE, "-n", SYSTEM_NAMESPACE, "--ignore-not-found", "--wait", timeout_s=180)
        cluster.kubectl("delete", "-f", REPO / "crds", "--ignore-not-found", timeout_s=120)
        cluster.kubectl("delete", "namespace", SYSTEM_NAMESPACE, "--ignore-not-found", timeout_s=180)
        return
    subprocess.run([REPO / "e2e/cluster", "down"], check=True)


def main() -> None:
    if ENGINE not in _EXAMPLES:
        sys.exit(f"demo: ENGINE={ENGINE}: must be one of {', '.join(_EXAMPLES)}")
    try:
        down() if sys.argv[1:] == ["down"] else demo()
    except (ClusterFailed, chat.ChatFailed) as failure:
        sys.exit(f"demo: {failure}")
    except subprocess.CalledProcessError as failure:
        sys.exit(f"demo: {failure}")


if __name__ == "__main__":
    main()
