"""A deployment that is served by real processes, and the real Prometheus that scrapes them.

The operator runs against the real API server and finds the processes by pods that the test makes;
each process listens at an address of its own in the loopback network.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from tests.integration.apiserver import ApiServer, program_path
from tests.integration.operator_process import Cluster, Operator, eventually, operator
from tests.integration.test_predictive import SPEED
from tests.ports import free_port
from tests.serving.stack import REPO, workers
from tests.worker.oracle import MODEL

ROUTER = "127.0.0.10"
OPERATOR = "disagg-system"
START_S = 240.0
_PROMPT = "def join(path, *paths):\n    # " + "a path and more of it " * 12


@dataclass
class Plan:
    """What is started, and how."""

    roles: tuple[str, ...] = ("prefill", "decode")
    module: str = "disagg_worker"
    spec: Mapping[str, Any] = field(default_factory=dict)
    of_router: Mapping[str, str] = field(default_factory=dict)
    of_workers: Mapping[str, str] = field(default_factory=dict)
    rules: str = ""
    """The file of rules that Prometheus evaluates."""
    scrape: str = "1s"


class Observed:
    """The running processes, and questions to their Prometheus."""

    def __init__(self, cluster: Cluster, server: ApiServer, folder: Path, plan: Plan) -> None:
        self.cluster = cluster
        self.server = server
        self.folder = folder
        self.plan = plan
        # Those of the workers; the stack numbers all of them together.
        self.addresses = {f"{role}-{n}": f"127.0.0.{20 + n}" for n, role in enumerate(plan.roles)}
        self.pods: dict[str, str] = {}
        """The pod of each process, by the process's name."""
        self.workers: dict[str, asyncio.subprocess.Process] = {}
        self.router: asyncio.subprocess.Process
        self.operator: Operator
        self.prometheus = ""
        self.router_port = free_port()
        self._targets: dict[str, dict[str, str]] = {}
        self.http = httpx.AsyncClient(trust_env=False, timeout=60)

    @property
    def url(self) -> str:
        return f"http://{ROUTER}:{self.router_port}"

    # Prometheus ---------------------------------------------------------------------------------

    async def ask(self, query: str) -> list[dict[str, Any]]:
        """Return the present result of a query."""
        answer = (await self.http.get(f"{self.prometheus}/api/v1/query", params={"query": query})).json()
        assert answer["status"] == "success", f"{query}: {answer.get('error')}"
        found: list[dict[str, Any]] = answer["data"]["result"]
        return found

    async def over(self, query: str, since_s: float, until_s: float, step_s: float) -> list[dict[str, Any]]:
        """Return the result of a query over a time."""
        asked: dict[str, str | float] = {"query": query, "start": since_s, "end": until_s, "step": step_s}
        answer = (await self.http.get(f"{self.prometheus}/api/v1/query_range", params=asked)).json()
        assert answer["status"] == "success", f"{query}: {answer.get('error')}"
        found: list[dict[str, Any]] = answer["data"]["result"]
        return found

    def scrape(self, name: str, address: str, job: str, **labels: str) -> None:
        """Let Prometheus scrape a process from now on."""
        self._targets[name] = {"address": address, "__job": job, **labels}
        self._write_targets()

    def forget(self, name: str) -> dict[str, str]:
        """Let Prometheus scrape a process no more."""
        found = self._targets.pop(name)
        self._write_targets()
        return found

    def _write_targets(self) -> None:
        for job in ("disagg", "disagg-operator"):
            groups = [
                {"targets": [t["address"]], "labels": {k: v for k, v in t.items() if k not in ("address", "__job")}}
                for t in self._targets.values()
                if t["__job"] == job
            ]
            fresh = self.folder / f"{job}.targets.new"
            fresh.write_text(json.dumps(groups))
            fresh.replace(self.folder / f"{job}.targets.json")

    @contextlib.asynccontextmanager
    async def run_prometheus(self) -> AsyncIterator[None]:
        port, every = free_port(), self.plan.scrape
        jobs = [
            {"job_name": job, "honor_labels": job != "disagg",
             "file_sd_configs": [{"files": [f"{self.folder}/{job}.targets.json"], "refresh_interval": "1s"}]}
            for job in ("disagg", "disagg-operator")
        ]  # fmt: skip
        timing = {"scrape_interval": every, "scrape_timeout": every, "evaluation_interval": "1s"}
        config: dict[str, Any] = {"global": timing, "scrape_configs": jobs}
        if self.plan.rules:
            (self.folder / "disagg.rules.yaml").write_text(self.plan.rules)
            config["rule_files"] = [f"{self.folder}/disagg.rules.yaml"]
        (self.folder / "prometheus.yml").write_text(json.dumps(config))
        with (self.folder / "prometheus.log").open("wb") as log:
            process = await asyncio.create_subprocess_exec(
                program_path("prometheus"), f"--config.file={self.folder}/prometheus.yml",
                f"--storage.tsdb.path={self.folder}/tsdb", f"--web.listen-address=127.0.0.1:{port}",
                "--log.level=warn", stdout=log, stderr=log,
            )  # fmt: skip
        self.prometheus = f"http://127.0.0.1:{port}"

        async def up() -> bool:
            return (await self.http.get(f"{self.prometheus}/-/ready")).status_code == 200

        try:
            await eventually("Prometheus is ready", up)
            yield
        finally:
            process.terminate()
            await asyncio.wait_for(process.wait(), 30)

    # The processes ------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def run_operator(self, server: ApiServer | None = None) -> AsyncIterator[Operator]:
        """Run an operator, which Prometheus scrapes."""
        async with operator(server or self.server, self.folder, self.cluster.namespace) as running:
            self.operator = running
            labels = {"namespace": OPERATOR, "pod": "operator-0"}
            self.scrape("operator", f"127.0.0.1:{running.port}", "disagg-operator", **labels)
            yield running

    @contextlib.asynccontextmanager
    async def run_router(self) -> AsyncIterator[None]:
        settings = {
            "MODEL_NAME": MODEL.name, "CLUSTER_KEY_FILE": str(self.folder / "key"), "HOST": ROUTER,
            "MEMBERSHIP": f"file://{self.folder}/workers.json", "PORT": str(self.router_port),
            "POLL_INTERVAL_S": "0.2", "OBJECTIVE_TTFT_S": "20", "OBJECTIVE_TPOT_S": "2", "REQUEST_TIMEOUT_S": "60",
        } | {name.upper(): value for name, value in self.plan.of_router.items()}  # fmt: skip
        environment = {**os.environ, "PYTHONPATH": str(REPO / "worker")}
        environment |= {f"DISAGG_{name}": value for name, value in settings.items()}
        with (self.folder / "router.log").open("wb") as log:
            self.router = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "disagg_router", env=environment, stdout=log, stderr=log
            )
        try:
            yield
        finally:
            if self.router.returncode is None:
                self.router.terminate()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.router.wait(), 20)
            if self.router.returncode is None:
                self.router.kill()
                await self.router.wait()

    def port_of(self, name: str) -> int:
        """Return the port of a worker, as the membership file has it."""
        listed = json.loads((self.folder / "workers.json").read_text())["workers"]
        return int(next(w["url"] for w in listed if w["name"] == name).rpartition(":")[2])

    def kill_workers(self) -> None:
        """End all workers at once: nobody asks how they drain."""
        for process in self.workers.values():
            if process.returncode is None:
                process.kill()

    async def make_pods(self) -> None:
        """Make the pods by which the operator finds the processes, and have them scraped."""
        ports = {"router": self.router_port} | {name: self.port_of(name) for name in self.workers}
        for name, port in ports.items():
            component, _, number = name.partition("-")
            address = ROUTER if name == "router" else self.addresses[name]
            pod = await self.cluster.run_pod(component, int(number or 0), address, port)
            self.pods[name] = pod
            labels = {"namespace": self.cluster.namespace, "pod": pod, "disagg_deployment": "chat"}
            labels |= {"disagg_pool": component} if component != "router" else {}
            self.scrape(name, f"{address}:{port}", "disagg", **labels)
        await self.cluster.deployments_are_ready()

    async def serves(self, wait_s: float = START_S) -> None:
        """Wait until all workers are pairs, and a request is answered."""
        expected = len([r for r in self.plan.roles if r == "prefill"]) * self.plan.roles.count("decode")

        async def answered() -> bool:
            text = (await self.http.get(f"{self.url}/metrics")).text
            return f'disagg_router_pairs{{state="healthy"}} {float(expected)}' in text and await self.complete(4)

        await eventually("requests are answered", answered, wait_s)

    # Load ---------------------------------------------------------------------------------------

    async def complete(self, tokens: int, prompt: str = _PROMPT, number: int = 0) -> bool:
        """Send a request that is streamed; returns whether it was answered in full."""
        body = {
            "model": MODEL.name, "prompt": f"# {number}\n{prompt}", "max_tokens": tokens, "min_tokens": tokens,
            "stream": True, "temperature": 0, "ignore_eos": True,
        }  # fmt: skip
        try:
            answer = await self.http.post(f"{self.url}/v1/completions", json=body)
        except httpx.HTTPError:
            return False
        return answer.status_code == 200 and "[DONE]" in answer.text

    @contextlib.asynccontextmanager
    async def load(self, streams: int = 2, tokens: int = 12, pause_s: float = 0.3) -> AsyncIterator[list[bool]]:
        """Send requests, so many at a time, until the block ends; what became of each is told."""
        became: list[bool] = []

        async def one(stream: int) -> None:
            for number in range(100_000):
                became.append(await self.complete(tokens, number=1000 * stream + number % 400))
                await asyncio.sleep(pause_s)

        tasks = [asyncio.create_task(one(stream)) for stream in range(streams)]
        try:
            yield became
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


@contextlib.asynccontextmanager
async def observed(
    cluster: Cluster, server: ApiServer, folder: Path, plan: Plan | None = None
) -> AsyncIterator[Observed]:
    """Run a deployment `chat` that answers, with its operator and Prometheus."""
    one = Observed(cluster, server, folder, plan or Plan())
    within: dict[str, tuple[Sequence[str], str]] = {name: ((), address) for name, address in one.addresses.items()}
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(one.http.aclose)
        # First, so that it sees all counters grow from 0.
        await stack.enter_async_context(one.run_prometheus())
        await stack.enter_async_context(one.run_operator())
        spec = {"decode": {"replicas": one.plan.roles.count("decode")}, "scaling": {"profile": SPEED}}
        await cluster.apply_resource(**{**spec, **one.plan.spec})
        key = await eventually("the key is there", cluster.bearer_key)
        (folder / "key").write_bytes(key)
        settings = {"kv_cache_bytes": str(64 << 20), **one.plan.of_workers}
        one.workers = await stack.enter_async_context(
            workers(folder, list(one.plan.roles), one.plan.module, within, **settings)
        )
        stack.callback(one.kill_workers)
        await stack.enter_async_context(one.run_router())

        async def rendered() -> bool:
            await cluster.deployments_are_ready()
            return True

        await eventually("the Deployments are there", rendered)
        await one.make_pods()
        await one.serves()
        yield one
