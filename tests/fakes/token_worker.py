"""A worker that speaks docs/protocol.md on a real socket, with made-up tokens and faults on demand.

As with a real engine, a token is a pure function of the seed and all tokens before it, so a
failover that loses, repeats or reorders anything results in another text. No KV is moved; prefill
tells decode over HTTP that it is done. With the feature `first_token_from_decode` it behaves like
an engine behind an adapter.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import json
import secrets
import socket
import zlib
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from tests.fakes.byte_tokenizer import END, FIRST_BYTE, TEMPLATE, VOCAB, tokenizer_json

KEY = b"a-cluster-key-for-tests-of-40-bytes-0123"
BEARER = "Bearer " + hmac.new(KEY, b"disagg-http-v1", hashlib.sha256).hexdigest()
MAX_MODEL_LEN = 512


def next_token(seed: int, tokens: Sequence[int]) -> int:
    """Return a lower-case letter that depends on everything before it."""
    digest = zlib.crc32(json.dumps([seed, list(tokens)]).encode())
    return FIRST_BYTE + ord("a") + digest % 26


def seed_with(seed: int, adapter: str) -> int:
    """Return the seed that gives the tokens of a LoRA adapter."""
    return seed ^ zlib.crc32(adapter.encode())


def expected_tokens(seed: int, prompt: Sequence[int], n: int) -> list[int]:
    tokens = list(prompt)
    for _ in range(n):
        tokens.append(next_token(seed, tokens))
    return tokens[len(prompt) :]


def expected_text(seed: int, prompt: Sequence[int], n: int) -> str:
    return bytes(t - FIRST_BYTE for t in expected_tokens(seed, prompt, n)).decode()


@dataclass
class Fault:
    """A failure in the next calls of a leg."""

    leg: str
    """The leg whose calls fail: "prefill" or "decode"."""
    kind: str
    """The kind of failure: "status" (an error answer with `status` and `code`), "die" (the
    connection breaks), "stall" (nothing more comes), "error" (an error event with `code`),
    "garbage" (a line that is no event), "silent_end" (the stream just ends), "no_transfer",
    "die_early" (prefill dies before any hand-over), or "no_read" (an engine's decode cannot read
    the KV that it was handed).
    """
    after_tokens: int = 0
    """The number of tokens that are sent before the failure."""
    times: int = 1
    """The number of calls that fail."""
    status: int = 500
    """The HTTP status of the error answer."""
    code: str = "internal"
    """The error code of the error answer or event."""


class Died(Exception):
    """Raised to break the connection."""


@dataclass
class Seen:
    """A record of the requests that a worker received."""

    bodies: list[dict[str, Any]] = field(default_factory=list)
    cancelled: asyncio.Event = field(default_factory=asyncio.Event)


class TokenWorker:
    """One worker, whose attributes may be changed while it runs."""

    def __init__(self, name: str, role: str, *, digest: str = "model-a", compat: str = "compat-a") -> None:
        self.name, self.role, self.digest, self.compat = name, role, digest, compat
        self.model: str | None = "m"  # the name that it serves; None for a worker that is too old to report it
        self.revision = "r1"
        self.weights = ""  # other weights give other tokens
        self.state = "ready"
        self.last_resort = False  # while it is draining, it takes requests from routers that have nobody else
        self.asked_by: list[str] = []  # what routers said with each call of `info`
        self.tells = asyncio.Event()  # while cleared, `info` waits
        self.loads = False  # while it is starting it has no model yet
        self.role_served: str | None = None  # the role served, if it is not the one that the router knows of
        self.slots = 64
        self.leaks_first = False  # sends prefill's token although decode sends the first one
        self.features: list[str] | None = ["first_token_within_s", "digest", "prefill_incarnation"]  # None: too old
        self.adapter_digests: dict[str, str] | None = None
        self.adapters: list[str] | None = None  # LoRA adapters; a list goes with the feature `adapter`
        self.transport, self.evidence = "tcp", ""  # evidence is left out where it is empty
        self.transports: dict[str, str] = {}  # with the feature `prefill_transports`
        self.reports: dict[str, Any] = {}  # changes to its `accepted` and `transferred` events
        # While they are cleared, decode does not read the KV that it was handed, and none arrives.
        self.reads, self.sends = asyncio.Event(), asyncio.Event()
        self.end_after: int | None = None  # the output token, by position, that is END
        self.token_interval_s = 0.0
        self.max_model_len = MAX_MODEL_LEN
        self.faults: list[Fault] = []
        self.seen = Seen()
        self.running = 0
        self.hold = asyncio.Event()  # while cleared, tokens wait
        for event in (self.tells, self.reads, self.sends, self.hold):
            event.set()
        self.incarnation = f"{name}/{secrets.token_hex(4)}"
        self.url = ""
        self.more_routes: list[Route] = []
        self._transfers: dict[str, asyncio.Future[int]] = {}
        self._server: uvicorn.Server | None = None
        self._task: asyncio.Task[None] | None = None

    # The process.

    async def start(self) -> None:
        sock = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{sock.getsockname()[1]}"
        routes = [
            Route("/internal/v1/info", self._info),
            Route("/internal/v1/tokenizer", self._tokenizer),
            Route("/internal/v1/decode", self._decode, methods=["POST"]),
            Route("/internal/v1/prefill", self._prefill, methods=["POST"]),
            Route("/fake/transfer", self._transfer, methods=["POST"]),
            *self.more_routes,
        ]
        # Connections are kept for longer than clients keep them, as real workers do.
        config = uvicorn.Config(
            Starlette(routes=routes), log_level="critical", access_log=False, timeout_graceful_shutdown=0,
            timeout_keep_alive=75, ws="none", lifespan="off",
        )  # fmt: skip
        self._server = _QuietServer(config)
        self._task = asyncio.create_task(self._server.serve(sockets=[sock]))
        while not self._server.started:
            await asyncio.sleep(0.005)

    async def stop(self) -> None:
        """Die: running requests are cut off, and connections are refused."""
        if self._server is None or self._task is None:
            return
        for event in (self.hold, self.reads, self.sends):
            event.set()
        self._server.force_exit = self._server.should_exit = True
        while (here := self._server.server_state.connections) or not self._task.done():
            for state in list(here):  # also those that come as it ends
                state.transport.abort()
            await asyncio.sleep(0.005)

    # The protocol.

    def _refused(self, request: Request, leg: str, body: dict[str, Any]) -> Response | None:
        if not hmac.compare_digest(request.headers.get("authorization", ""), BEARER):
            return _error(401, "unauthorized")
        if self.state == "draining" and not (self.last_resort and "x-disagg-last-resort" in request.headers):
            return _error(503, "draining")
        if self.role_served not in (None, leg):
            return _error(503, "other_role")
        if "first_token_within_s" in body and "first_token_within_s" not in (self.features or ()):
            return _error(400, "invalid_request")
        if "adapter" in body and not ("adapter" in (self.features or ()) and body["adapter"] in (self.adapters or ())):
            return _error(400, "invalid_request")
        if {"digest", "prefill_incarnation", "prefill_transports"} & body.keys() - set(self.features or ()):
            return _error(400, "invalid_request")
        if body.get("digest") not in (None, self.digest):
            return _error(503, "other_model")
        if (fault := self._fault(leg, "status")) is not None:
            return _error(fault.status, fault.code)
        return _error(429, "no_capacity") if self.running >= self.slots else None

    def _fault(self, leg: str, *kinds: str) -> Fault | None:
        for fault in self.faults:
            if fault.leg == leg and fault.kind in kinds and fault.times > 0:
                fault.times -= 1
                return fault
        return None

    async def _info(self, request: Request) -> Response:
        if not hmac.compare_digest(request.headers.get("authorization", ""), BEARER):
            return _error(401, "unauthorized")
        self.asked_by.append(request.headers.get("x-disagg-router", ""))
        await self.tells.wait()
        named = {} if self.model is None else {"model_name": self.model}
        if self.state == "starting" and self.loads:
            return JSONResponse({"protocol": 1, "incarnation": self.incarnation, "pod": self.name, "role": self.role,
                                 "state": self.state} | named)  # fmt: skip
        model: dict[str, Any] = {"name": self.model, "digest": self.digest, "vocab_size": VOCAB,
                                 "max_model_len": self.max_model_len, "eos_token_ids": [END],
                                 "bos_token_id": None}  # fmt: skip
        model |= {} if self.adapter_digests is None else {"adapter_digests": self.adapter_digests}
        model |= {} if self.adapters is None else {"adapters": self.adapters}
        kv = {"compat": self.compat, "host": "127.0.0.1", "port": 1, "interface": "net1", "transport": self.transport,
              "block_size_tokens": 16, "bytes_per_token": 64, "blocks_total": 100,
              "blocks_free": 100 - self.running}  # fmt: skip
        kv |= {"transports": self.transports} | ({"evidence": self.evidence} if self.evidence else {})
        load = {"waiting_requests": 0, "waiting_tokens": 0, "running_requests": self.running}
        return JSONResponse(
            {"protocol": 1, "incarnation": self.incarnation, "pod": self.name, "role": self.role, "state": self.state,
             "revision": self.revision, "model": model, "kv": kv, "limits": {"max_running": 64, "max_waiting": 256},
             "load": load}
            | named
            | ({"last_resort": True} if self.last_resort else {})
            | ({} if self.features is None else {"features": self.features})
        )  # fmt: skip

    async def _tokenizer(self, request: Request) -> Response:
        config = {"eos_token": "<|end|>"}
        files = {
            "digest": self.digest,
            "tokenizer_json": tokenizer_json(),
            "tokenizer_config": config,
            "chat_template": TEMPLATE,
        }
        return JSONResponse(files)

    async def _transfer(self, request: Request) -> Response:
        content = await request.json()
        waiting = self._transfers.pop(content["transfer_id"], None)
        if waiting is None or waiting.done():
            return _error(409, "ticket_refused")
        waiting.set_result(content["first_token"])
        return JSONResponse({})

    async def _decode(self, request: Request) -> Response:
        body = await request.json()
        self.seen.bodies.append(body)
        return self._refused(request, "decode", body) or self._stream(
            self._decode_lines(body), self._fault("decode", *_KINDS)
        )

    async def _prefill(self, request: Request) -> Response:
        body = await request.json()
        self.seen.bodies.append(body)
        refused = self._refused(request, "prefill", body)
        return refused or self._stream(self._prefill_lines(body), self._fault("prefill", *_KINDS))

    def _stream(self, lines: AsyncGenerator[dict[str, Any]], fault: Fault | None) -> Response:
        self.running += 1
        return StreamingResponse(self._sent(lines, fault), media_type="application/x-ndjson")

    async def _sent(self, lines: AsyncGenerator[dict[str, Any]], fault: Fault | None) -> AsyncIterator[bytes]:
        tokens, ended = 0, False
        try:
            async with contextlib.aclosing(lines):
                async for line in lines:
                    if (
                        fault is not None
                        and tokens >= fault.after_tokens
                        and line["type"] in ("token", "transferred", "end")
                    ):
                        if fault.kind == "stall":
                            await asyncio.Event().wait()
                        if fault.kind == "silent_end":
                            return
                        if fault.kind == "die":
                            raise Died
                        bad = {"type": "error", "code": fault.code, "message": "as told", "retryable": True}
                        yield json.dumps(bad).encode() + b"\n" if fault.kind == "error" else b"{]\n"
                        return
                    tokens += line["type"] == "token"
                    ended = line["type"] == "end"
                    yield json.dumps(line).encode() + b"\n"
        finally:
            self.running -= 1
            if not ended:
                self.seen.cancelled.set()

    def _sample(self, body: dict[str, Any], tokens: list[int]) -> dict[str, Any]:
        index = len(tokens) - body["prompt_tokens"]
        seed = seed_with(seed_with(body["sampling"]["seed"], body.get("adapter", "")), self.weights)
        token = END if index == self.end_after else next_token(seed, tokens)
        tokens.append(token)
        line: dict[str, Any] = {"type": "token", "index": index, "token": token}
        if body["sampling"].get("logprobs") is not None:
            line |= {
                "logprob": -0.5,
                "top_logprobs": [[token, -0.5], [FIRST_BYTE, -1.5]][: body["sampling"]["logprobs"]],
            }
        return line

    def _reason(self, body: dict[str, Any], tokens: list[int]) -> str | None:
        if tokens[-1] in body["sampling"]["stop_token_ids"]:
            return "stop"
        return "length" if len(tokens) - body["prompt_tokens"] >= body["sampling"]["max_new_tokens"] else None

    async def _rest(self, body: dict[str, Any], tokens: list[int]) -> AsyncGenerator[dict[str, Any]]:
        while (reason := self._reason(body, tokens)) is None:
            await self.hold.wait()
            await asyncio.sleep(self.token_interval_s)
            yield self._sample(body, tokens)
        yield {"type": "end", "finish_reason": reason}

    async def _decode_lines(self, body: dict[str, Any]) -> AsyncGenerator[dict[str, Any]]:
        tokens = list(body["tokens"])
        if body["mode"] == "local":
            yield {"type": "accepted", "path": "local", "kv_bytes": 0, "transfer_s": 0.0, "interface": ""}
            yield self._sample(body, tokens)
        else:
            transfer_id = secrets.token_hex(16)
            waiting = self._transfers[transfer_id] = asyncio.get_running_loop().create_future()
            host, port = self.url.removeprefix("http://").split(":")
            yield {"type": "ticket",
                   "ticket": {"transfer_id": transfer_id, "request_id": body["request_id"], "epoch": body["epoch"],
                              "compat": self.compat, "decode_incarnation": self.incarnation, "host": host,
                              "port": int(port), "tokens": len(tokens), "token_hash": "", "lifetime_s": 30.0,
                              "mac": ""}}  # fmt: skip
            first = await asyncio.wait_for(waiting, 30.0)
            if first < 0:
                yield {"type": "error", "code": "transfer_failed", "message": "broken off", "retryable": True}
                return
            if self._first_from_decode:
                await self.reads.wait()
                if self._fault("decode", "no_read"):
                    yield {"type": "error", "code": "transfer_failed", "message": "as told", "retryable": True}
                    return
            else:
                tokens.append(first)
            yield {
                "type": "accepted",
                "path": "remote",
                "kv_bytes": 64 * len(tokens),
                "transfer_s": 0.002,
                "interface": "net1",
            } | self.reports
            if self._first_from_decode:
                yield self._sample(body, tokens)
        async with contextlib.aclosing(self._rest(body, tokens)) as rest:
            async for line in rest:
                yield line

    @property
    def _first_from_decode(self) -> bool:
        return "first_token_from_decode" in (self.features or ())

    async def _prefill_lines(self, body: dict[str, Any]) -> AsyncGenerator[dict[str, Any]]:
        await self.hold.wait()
        tokens, ticket = list(body["tokens"]), body["ticket"]
        line = self._sample(body, tokens)
        # An engine's prefill worker ignores what the first token means for the request.
        reason = None if self._first_from_decode else self._reason(body, tokens)
        if ticket is not None and (reason is not None or self._fault("prefill", "no_transfer")):
            # As with a real transfer that breaks off, decode learns of it first.
            await self._tell(ticket, -1)
            await asyncio.sleep(0.02)
            if reason is None:
                yield {"type": "error", "code": "transfer_failed", "message": "as told", "retryable": True}
                return
        if self._fault("prefill", "die_early"):
            raise Died
        if self.leaks_first:
            yield line | {"token": (line["token"] + 1) % 256}
        elif not self._first_from_decode:
            yield line
        if ticket is not None and reason is None:
            await self.sends.wait()
            try:
                await self._tell(ticket, tokens[-1])
            except httpx.HTTPError:  # decode died, and this worker did not
                yield {"type": "error", "code": "transfer_failed", "message": "decode is gone", "retryable": True}
                return
            yield {"type": "transferred", "kv_bytes": 64 * len(tokens), "transfer_s": 0.002, "exposed_s": 0.001,
                   "interface": "net1", "peer": f"{ticket['host']}:{ticket['port']}"} | self.reports  # fmt: skip
        yield {"type": "end", "finish_reason": reason or "prefilled"}

    async def _tell(self, ticket: dict[str, Any], first_token: int) -> None:
        content = {"transfer_id": ticket["transfer_id"], "first_token": first_token}
        async with httpx.AsyncClient(trust_env=False) as http:
            await http.post(f"http://{ticket['host']}:{ticket['port']}/fake/transfer", json=content)


_KINDS = ("die", "stall", "error", "garbage", "silent_end")


class _QuietServer(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Any:
        yield


def _error(status: int, code: str) -> Response:
    return JSONResponse({"error": {"code": code, "message": f"{code}, as told", "retryable": status != 400}}, status)
