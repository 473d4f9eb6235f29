"""Record what this release's processes say to each other: a router, a prefill and a decode worker, with a recorder between them.

Not the same bytes each time (identities are drawn at start), so of each kind of message the first is kept.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import httpx
from aiohttp import web
from disagg_operator.metrics import Metrics

from disagg_operator.autoscaling.policy import Decision
from disagg_worker.transfer.ticket import http_bearer

HERE = Path(__file__).resolve().parent
MODEL_FOLDER = HERE.parents[2] / "models" / "stdlib-llama"
KEY = b"k" * 32
API_KEY = "sk-recorded"
BEARER = {"authorization": f"Bearer {http_bearer(KEY)}"}
CLIENT = {"authorization": f"Bearer {API_KEY}"}
WORKERS = ("prefill", "decode")
Obj = dict[str, Any]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return int(sock.getsockname()[1])


@contextmanager
def process(module: str, log: Path, **settings: object) -> Iterator[subprocess.Popen[bytes]]:
    environment = (
        dict(os.environ) | {"OMP_NUM_THREADS": "1"} | {f"DISAGG_{k.upper()}": str(v) for k, v in settings.items()}
    )
    with (
        log.open("wb") as out,
        subprocess.Popen([sys.executable, "-m", module], env=environment, stdout=out, stderr=out) as child,
    ):
        try:
            yield child
        finally:
            child.terminate()
            child.wait(30)


def shape(value: Any) -> Any:
    """What two messages of one kind have alike: keys, kinds of values, and the words that tell kinds apart."""
    if isinstance(value, dict):
        telling = (
            "type",
            "code",
            "state",
            "role",
            "mode",
            "finish_reason",
            "path",
            "object",
            "changing_to",
            "expected",
            "healthy",
        )
        return {k: (v if k in telling and not isinstance(v, dict) else shape(v)) for k, v in sorted(value.items())}
    if isinstance(value, list):
        return [shape(v) for v in value[:1]]
    return type(value).__name__ if not isinstance(value, int | float) or isinstance(value, bool) else "number"


def content_of(text: str) -> Any:
    """JSON, lines of it, server-sent events, or text."""
    lines = [line.removeprefix("data: ") for line in text.splitlines() if line]
    try:
        return (
            json.loads(text)
            if len(lines) == 1 and not text.endswith("\n")
            else [json.loads(x) for x in lines if x != "[DONE]"]
        )
    except ValueError:
        return text


class Recorder:
    """Keeps the first exchange of each kind."""

    def __init__(self) -> None:
        self.kept: dict[str, Obj] = {}

    def add(self, server: str, request: tuple[str, str, str], status: int, response: str) -> None:
        method, path, body = request
        if path == "/internal/v1/tokenizer":  # files of the model: only their names matter
            response = json.dumps(dict.fromkeys(json.loads(response), "")) if status == 200 else response
        answer = content_of(response)
        kinds = {json.dumps(shape(line)): None for line in answer} if isinstance(answer, list) else shape(answer)
        sent = content_of(body)
        goes_on = isinstance(sent, dict) and len(sent.get("tokens", ())) > sent.get("prompt_tokens", 0)
        kind = json.dumps(
            [goes_on, server, method, path, shape(sent), status, list(kinds) if isinstance(answer, list) else kinds]
        )
        exchange = {
            "server": server,
            "method": method,
            "path": path,
            "request": body[:40_000],
            "status": status,
            "response": response,
        }
        self.kept.setdefault(kind, exchange)

    def write(self, path: Path) -> None:
        ordered = sorted(self.kept.values(), key=lambda e: (e["server"], e["path"], e["status"]))
        path.write_text("".join(json.dumps(e, separators=(",", ":")) + "\n" for e in ordered))


class Proxy:
    """Between the router and one worker. `cut_lines`: the next stream of tokens is cut after so many lines."""

    def __init__(self, name: str, target: str, recorder: Recorder) -> None:
        self.name, self._target, self._recorder = name, target, recorder
        self.cut_lines = 0

    @asynccontextmanager
    async def run(self, port: int) -> AsyncIterator[None]:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._handle)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", port).start()
        self._session = aiohttp.ClientSession()
        try:
            yield
        finally:
            await self._session.close()
            await runner.cleanup()

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        try:
            return await self._pass_on(request, body)
        except (aiohttp.ClientError, RuntimeError):  # as if nobody listened
            return self._hang_up(request, web.StreamResponse())

    @staticmethod
    def _hang_up(request: web.Request, out: web.StreamResponse) -> web.StreamResponse:
        if request.transport is not None:
            request.transport.abort()
        return out

    async def _pass_on(self, request: web.Request, body: bytes) -> web.StreamResponse:
        headers = {k: v for k, v in request.headers.items() if k.lower() in ("authorization", "content-type")}
        said = b""
        async with self._session.request(
            request.method, self._target + request.path, data=body, headers=headers
        ) as answer:
            out = web.StreamResponse(
                status=answer.status, headers={"content-type": answer.headers.get("content-type", "text/plain")}
            )
            await out.prepare(request)
            try:
                async for piece in answer.content.iter_any():
                    said += piece
                    await out.write(piece)
                    if self.cut_lines and said.count(b"\n") >= self.cut_lines and b'"token"' in said:
                        self.cut_lines = 0
                        return self._hang_up(request, out)
            finally:
                self._recorder.add(
                    self.name, (request.method, request.path, body.decode()), answer.status, said.decode()
                )
        return out


async def until(http: httpx.AsyncClient, url: str) -> None:
    """Wait until it answers 200."""
    async with asyncio.timeout(90):
        while True:
            with contextlib.suppress(httpx.HTTPError):
                if (await http.get(url)).status_code == 200:
                    return
            await asyncio.sleep(0.05)


class Stack:
    """The processes, and how to speak to them. Everything that is said is recorded."""

    def __init__(
        self, http: httpx.AsyncClient, recorder: Recorder, urls: dict[str, str], proxies: dict[str, Proxy]
    ) -> None:
        self.http, self.recorder, self.urls, self.proxies = http, recorder, urls, proxies

    async def say(self, server: str, method: str, path: str, content: Any = None, headers: Obj | None = None) -> str:
        body = "" if content is None else content if isinstance(content, str) else json.dumps(content)
        headers = (BEARER if server in WORKERS else CLIENT) if headers is None else headers
        answer = await self.http.request(method, self.urls[server] + path, content=body, headers=headers)
        self.recorder.add(server, (method, path, body), answer.status_code, answer.text)
        return answer.text

    @asynccontextmanager
    async def stream(self, server: str, path: str, content: Obj) -> AsyncIterator[AsyncIterator[str]]:
        async with self.http.stream("POST", self.urls[server] + path, json=content, headers=BEARER) as answer:
            yield answer.aiter_lines()

    async def metrics(self, server: str) -> str:
        return (await self.http.get(self.urls[server] + "/metrics")).text


def work(name: str, n: int = 24, **changes: Any) -> Obj:
    """A body as routers make it."""
    sampling = {"seed": 1, "max_new_tokens": 16, "temperature": 0.0, "stop_token_ids": []} | changes.pop("sampling", {})
    tokens = [5 + 7 * i % 300 for i in range(n)]
    body = {
        "request_id": name,
        "epoch": 0,
        "tokens": tokens,
        "prompt_tokens": n,
        "sampling": sampling,
        "tenant": "",
        "deadline_s": 60.0,
    }
    return body | changes


@asynccontextmanager
async def stack(folder: Path) -> AsyncIterator[tuple[Stack, dict[str, subprocess.Popen[bytes]]]]:
    (folder / "key").write_bytes(KEY)
    (folder / "api-keys").write_text(API_KEY + "\n")
    common = {"host": "127.0.0.1", "model_name": "stdlib", "cluster_key_file": folder / "key", "revision": "r1"}
    async with AsyncExitStack() as exits:
        http = await exits.enter_async_context(httpx.AsyncClient(timeout=60, trust_env=False))
        recorder, urls, proxies, children, members = Recorder(), {}, {}, {}, []
        for role in WORKERS:
            port, front = free_port(), free_port()
            urls[role] = f"http://127.0.0.1:{port}"
            proxies[role] = Proxy(role, urls[role], recorder)
            await exits.enter_async_context(proxies[role].run(front))
            members.append({"name": role, "url": f"http://127.0.0.1:{front}", "pools": [role]})
            settings = common | {
                "role": role,
                "port": port,
                "kv_port": 0,
                "pod_name": f"chat-{role}-0",
                "pod_uid": f"uid-of-{role}",
            }
            settings |= {
                "model_uri": f"file://{MODEL_FOLDER}",
                "kv_cache_bytes": 64 << 20,
                "max_running": 4,
                "max_waiting": 2,
            }
            settings |= {"ticket_lifetime_s": 2, "drain_timeout_s": 10}
            children[role] = exits.enter_context(process("disagg_worker", folder / f"{role}.log", **settings))
        (folder / "members.json").write_text(json.dumps({"workers": members}))
        port = free_port()
        settings = common | {
            "port": port,
            "membership": f"file://{folder / 'members.json'}",
            "api_keys_file": folder / "api-keys",
        }
        settings |= {
            "objective_ttft_s": 1,
            "objective_tpot_s": 0.05,
            "poll_interval_s": 0.1,
            "queue_max_wait_s": 5,
            "max_body_bytes": 65536,
        }
        urls["router"] = f"http://127.0.0.1:{port}"
        children["router"] = exits.enter_context(process("disagg_router", folder / "router.log", **settings))
        yield Stack(http, recorder, urls, proxies), children


async def starting(s: Stack) -> None:
    """What is said before there is a model."""
    await until(s.http, s.urls["router"] + "/healthz")
    await s.say("router", "POST", "/v1/chat/completions", chat())
    await until(s.http, s.urls["prefill"] + "/healthz")
    await s.say("prefill", "POST", "/internal/v1/prefill", work("early", ticket=None))
    await s.say("prefill", "GET", "/readyz")
    for role in WORKERS:
        while json.loads(await s.say(role, "GET", "/internal/v1/info"))["state"] != "ready":
            await asyncio.sleep(0.02)
    async with asyncio.timeout(60):
        while json.loads(await s.say("router", "GET", "/internal/v1/state", headers=BEARER))["pairs"]["healthy"] < 1:
            await asyncio.sleep(0.1)


def chat(**changes: Any) -> Obj:
    message = {"role": "user", "content": "What does os.path.join do?"}
    return {"model": "stdlib", "messages": [message], "max_tokens": 12, "temperature": 0, "seed": 1} | changes


async def clients(s: Stack) -> None:
    """Requests by the router, good and bad ones."""
    await s.say("router", "POST", "/v1/chat/completions", chat(), CLIENT | {"x-disagg-trace": "1"})
    await s.say(
        "router", "POST", "/v1/chat/completions", chat(stream=True, stream_options={"include_usage": True}, n=2)
    )
    await s.say(
        "router", "POST", "/v1/completions", {"model": "stdlib", "prompt": "import os", "max_tokens": 1, "seed": 1}
    )
    rich = {
        "logprobs": True,
        "top_logprobs": 2,
        "logit_bias": {"50": -100},
        "presence_penalty": 0.5,
        "cache_salt": "a",
        "temperature": 0.7,
    }
    await s.say("router", "POST", "/v1/chat/completions", chat(**rich, top_p=0.9, stop=["zzz"]))
    form = {
        "type": "json_schema",
        "json_schema": {"name": "n", "schema": {"type": "object", "properties": {"a": {"type": "integer"}}}},
    }
    await s.say("router", "POST", "/v1/chat/completions", chat(response_format=form, max_tokens=40))
    s.proxies["decode"].cut_lines = 5
    await s.say("router", "POST", "/v1/chat/completions", chat(max_tokens=24, stream=True))
    for path in ("/v1/models", "/v1/models/stdlib", "/v1/models/other", "/v1/other", "/readyz", "/healthz"):
        await s.say("router", "GET", path)
    await s.say("router", "GET", "/v1/chat/completions")
    await s.say("router", "POST", "/v1/chat/completions", chat(), {})
    await s.say("router", "GET", "/internal/v1/state")
    for content in (
        chat(model="other"),
        chat(max_tokens=-1),
        chat(messages=[]),
        chat(max_tokens=10**7),
        "{",
        "x" * 70000,
    ):
        await s.say("router", "POST", "/v1/chat/completions", content)


async def refusals(s: Stack) -> None:
    """Every error that a worker answers with, and those that end a stream."""
    for role in WORKERS:
        for path in ("/healthz", "/readyz"):
            await s.say(role, "GET", path)
    await s.say("decode", "GET", "/internal/v1/info", headers={})
    await s.say("decode", "POST", "/internal/v1/decode", work("r", mode="remote", later=1))
    await s.say("decode", "POST", "/internal/v1/decode", work("r", n=2100, mode="local"))
    await s.say("decode", "POST", "/internal/v1/prefill", work("r", ticket=None))
    await s.say(
        "decode",
        "POST",
        "/internal/v1/decode",
        work("late", mode="local", deadline_s=0.05, sampling={"max_new_tokens": 1500}),
    )
    await s.say("decode", "POST", "/internal/v1/decode", work("unused", mode="remote"))
    await s.say("decode", "POST", "/internal/v1/role", {"role": "router"})
    async with s.stream("decode", "/internal/v1/decode", work("gone", mode="remote")) as lines:
        ticket = json.loads(await anext(lines))["ticket"]
    await asyncio.sleep(0.3)
    await s.say("prefill", "POST", "/internal/v1/prefill", work("gone", ticket=ticket))
    await s.say("prefill", "POST", "/internal/v1/prefill", work("gone", ticket=ticket | {"port": 1}))
    async with AsyncExitStack() as held:
        for i in range(6):
            await held.enter_async_context(s.stream("decode", "/internal/v1/decode", work(f"held-{i}", mode="remote")))
        await s.say("decode", "POST", "/internal/v1/decode", work("full", mode="remote"))
    await asyncio.sleep(0.3)


async def roles(s: Stack) -> None:
    """A change of role with a request that does not finish in time."""
    long = s.say("decode", "POST", "/internal/v1/decode", work("long", mode="local", sampling={"max_new_tokens": 1900}))
    running = asyncio.create_task(long)
    await asyncio.sleep(0.3)
    await s.say("decode", "POST", "/internal/v1/role", {"role": "prefill", "deadline_s": 0.5})
    await s.say("decode", "POST", "/internal/v1/role", {"role": "both"})
    await s.say("decode", "GET", "/internal/v1/info")
    await s.say("decode", "POST", "/internal/v1/decode", work("r", mode="local"))
    await running
    while '"draining"' in await s.say("decode", "POST", "/internal/v1/role", {"role": "prefill"}):
        await asyncio.sleep(0.1)
    await s.say("decode", "POST", "/internal/v1/role", {"role": "both"})
    for _ in range(5):  # the router hears of it, and of what it says of its room
        await asyncio.sleep(0.1)
        await s.say("decode", "GET", "/internal/v1/info")
        await s.say("router", "GET", "/internal/v1/state", headers=BEARER)


async def endings(s: Stack, children: dict[str, subprocess.Popen[bytes]]) -> None:
    """Prefill is gone: decode computes prompts itself. Then it is told to stop, too."""
    children["prefill"].send_signal(signal.SIGTERM)
    await asyncio.to_thread(children["prefill"].wait, 30)
    await asyncio.sleep(3)
    await s.say("router", "POST", "/v1/chat/completions", chat(), CLIENT | {"x-disagg-trace": "1"})
    long = s.say("decode", "POST", "/internal/v1/decode", work("last", mode="local", sampling={"max_new_tokens": 900}))
    running = asyncio.create_task(long)
    await asyncio.sleep(0.3)
    children["decode"].send_signal(signal.SIGTERM)
    await asyncio.sleep(0.2)
    await s.say("decode", "GET", "/internal/v1/info")
    await s.say("decode", "POST", "/internal/v1/role", {"role": "decode"})
    await running
    await asyncio.to_thread(children["decode"].wait, 30)
    await s.say("router", "POST", "/v1/chat/completions", chat())


def operator_metrics() -> str:
    """As after a decision of each policy."""
    metrics, key = Metrics(), ("default", "chat")
    for result in ("ok", "retry", "error"):
        metrics.reconciles.labels(result).inc()
    metrics.reconcile_seconds.observe(0.12)
    metrics.watch_events.labels("DisaggDeployment").inc()
    metrics.sweep_seconds.observe(0.05)
    metrics.undecided.labels(*key).inc()
    for pool, direction in (("prefill", "up"), ("decode", "down")):
        metrics.scaled.labels(*key, pool, direction).inc()
        metrics.decision(
            key,
            pool,
            Decision(2, 3, "ForecastAboveCapacity", "Forecast", 2.7, 0.0, "", {"forecast": 2.7, "price": 8.0}),
        )
    return metrics.text().decode()


async def record() -> None:
    (HERE / "metrics").mkdir(exist_ok=True)
    (HERE / "messages").mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        async with stack(Path(folder)) as (s, children):
            await starting(s)
            await clients(s)
            await refusals(s)
            for server in (*WORKERS, "router"):
                (HERE / "metrics" / f"{server}.txt").write_text(await s.metrics(server))
            await roles(s)
            await endings(s, children)
            s.recorder.write(HERE / "messages" / "exchanges.jsonl")
    (HERE / "metrics" / "operator.txt").write_text(operator_metrics())


if __name__ == "__main__":
    asyncio.run(record())
