"""LMDeploy: /v1/chat/completions with tokens in and out, and as an experiment its hand-over.

Nothing pins the KV of a prompt between the end of prefill and the read of decode: a kept sequence
counts as stopped, and new prompts take the blocks of the newest stopped sequence first
(lmdeploy/pytorch/paging/prefill_scheduler.py, _evictable_sequences). Decode cannot give it free
either, because no answer tells the number of prefill's session. Blocks of hand-overs that have been
read are therefore never free, and any prompt may evict. The adapter lets nothing at all compute at
prefill until decode has the KV (OneAtATime). Requests, answers and failures are those of
lmdeploy/serve and lmdeploy/pytorch in VERSIONS.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import hashlib
import json
import re
from collections.abc import AsyncGenerator, Callable, Mapping
from typing import Any
from urllib.parse import urlsplit

from disagg_adapter.engines.contract import (
    Delta,
    Engine,
    EngineFault,
    EngineOptions,
    HandOver,
    Identity,
    NotReady,
    Unusable,
    Work,
)
from disagg_adapter.engines.http_client import EngineAnswer, EngineHttp, faults
from disagg_adapter.engines.kept_stream import KeptStreams
from disagg_adapter.engines.lmdeploy_answers import Cut, delta_of, request_body
from disagg_adapter.engines.lmdeploy_pairs import RDMA_PROTOCOL, LmdeployPairs, engine_info
from disagg_adapter.engines.prometheus_text import parse_samples, read_samples
from disagg_protocol.errors import InvalidInput
from disagg_wire import codes
from disagg_wire.engine_metrics.lmdeploy import readings_of
from disagg_wire.engine_metrics.readings import Readings
from disagg_wire.protocol import (
    FEATURE_ADAPTER,
    FEATURE_EXPERIMENTAL,
    FEATURE_FIRST_TOKEN_FROM_DECODE,
    FEATURE_SOFT_TICKET,
    FEATURE_STRUCTURED_NOT_RESUMED,
    MAX_TOKENS,
)
from disagg_wire.roles import BOTH, PREFILL

_CHAT = "/v1/chat/completions"
_HTTP_S = 5.0
_SECONDS_OF_A_PROMPT = 600.0
# LMDeploy reports no version. What it accepts tells it: the digest of the names of the fields of
# its chat requests, in /openapi.json. 0.17 has one more, `do_preprocess`.
VERSIONS = {"44e90bcc3138b342": "0.18"}
# No model takes a prompt as long as this one.
TOO_LONG = MAX_TOKENS
_SESSION_LENGTH = re.compile(r"smaller than the model context length \((\d+)\)")
# Sessions are counted from 0, so that this number frees nobody's KV.
_NO_SESSION = -1
# The keys of a hand-over and their types.
_HANDOVER: Mapping[str, tuple[type, ...]] = {
    "engine_id": (str,),
    "key": (str, type(None)),
    "started": (str,),
    "block_ids": (list,),
    "token": (int,),
}


class OneAtATime:
    """The right to compute at prefill, which nobody else has until decode has the KV."""

    def __init__(self) -> None:
        self._lock = asyncio.Lock()

    @property
    def taken(self) -> bool:
        return self._lock.locked()

    async def take(self) -> None:
        await self._lock.acquire()

    def give_back(self, after_s: float = 0.0) -> None:
        """Let the next one compute, at once or when decode cannot read any more."""
        if after_s:
            asyncio.get_running_loop().call_later(after_s, self._lock.release)
        else:
            self._lock.release()


class Lmdeploy(Engine):
    """An LMDeploy engine."""

    def __init__(self, http: EngineHttp, options: EngineOptions) -> None:
        self._http = http
        self._options = options
        self._started = ""
        self._longest = 0
        self._info: dict[str, Any] = {}
        self._turn = OneAtATime()
        self._pairs = LmdeployPairs(http)
        self._kept = KeptStreams(options.lease_s + 5.0)
        self.other_first_tokens = 0
        """Hand-overs after which decode's first token was another than prefill's."""

    @property
    def _hands_over(self) -> bool:
        return self._options.role != BOTH

    @property
    def _engine_id(self) -> str:
        return f"http://{self._options.host}:{urlsplit(self._http.url).port}"

    # ---- What it is ----

    async def identify(self) -> Identity:
        if self._hands_over and not self._options.experimental:
            raise Unusable("ExperimentalTransfer", f"LMDeploy in role {self._options.role} is an experiment: opt in")
        try:
            health = await self._http.json("/health", _HTTP_S)
            if health["status"] != "healthy":
                raise NotReady(f"LMDeploy is {health['status']}: {health['message']}")
            fields = await self._fields()
            names = [str(m["id"]) for m in (await self._http.json("/v1/models", _HTTP_S))["data"]]
            info = await self._sizes()
            samples = parse_samples(await self._http.text("/metrics", _HTTP_S))
            length = await self._session_length()
        except EngineFault as fault:
            raise NotReady(str(fault)) from None
        except EngineAnswer as answer:
            raise NotReady(f"the engine is starting: {answer}") from None
        version = VERSIONS.get(fields)
        if version is None:
            raise Unusable("UnknownEngineVersion", f"LMDeploy is none of {', '.join(VERSIONS.values())} ({fields})")
        if self._options.model not in names:
            raise Unusable("ModelNotServed", f"LMDeploy serves {', '.join(names)} and not {self._options.model}")
        started = samples.process_start()
        if started != self._started:
            self._pairs.forget()
        block, blocks = int(info["block_size"]), int(info["num_gpu_blocks"])
        self._started, self._info, self._longest = started, info, min(length, block * blocks)
        features = {FEATURE_ADAPTER, FEATURE_STRUCTURED_NOT_RESUMED}
        if self._hands_over:
            features |= {FEATURE_EXPERIMENTAL, FEATURE_SOFT_TICKET, FEATURE_FIRST_TOKEN_FROM_DECODE}
        return Identity(
            version=version,
            started=started,
            connector=f"distserve-tp{info['tp_size']}" if self._hands_over else "none",
            max_model_len=self._longest,
            block_size_tokens=block,
            blocks_total=blocks,
            adapters=tuple(sorted(name for name in names if name != self._options.model)),
            features=frozenset(features),
        )

    async def _fields(self) -> str:
        """Return the digest of the names of the fields of a chat request."""
        try:
            schema = await self._http.json("/openapi.json", _HTTP_S)
            names = sorted(schema["components"]["schemas"]["ChatCompletionRequest"]["properties"])
        except (EngineAnswer, KeyError, TypeError):
            raise Unusable("UnknownEngineVersion", "LMDeploy has no /openapi.json, by which it is known") from None
        return hashlib.sha256(json.dumps(names, separators=(",", ":")).encode()).hexdigest()[:16]

    async def _sizes(self) -> dict[str, Any]:
        try:
            return await engine_info(self._http)
        except EngineAnswer as answer:
            # The other backend has no such sizes.
            raise Unusable("EngineMisconfigured", f"LMDeploy must run with --backend pytorch: {answer}") from None

    async def _session_length(self) -> int:
        """Return the longest sequence, which LMDeploy tells only when it refuses a longer one."""
        body = {"model": self._options.model, "messages": [], "input_ids": [0] * TOO_LONG, "max_tokens": 1}
        try:
            await self._http.json(_CHAT, _SECONDS_OF_A_PROMPT, body)
        except EngineAnswer as answer:
            if found := _SESSION_LENGTH.search(answer.message):
                return int(found[1])
            raise
        return MAX_TOKENS

    async def read(self) -> Readings:
        return readings_of(await read_samples(self._http))

    def check(self, work: Work) -> None:
        sampling, structured = work.sampling, work.sampling.structured
        if structured is not None and work.emitted:
            raise InvalidInput("sampling.structured: LMDeploy cannot go on in the middle of a format")
        if structured is not None and structured.kind == "grammar":
            raise InvalidInput("sampling.structured.kind: behind LMDeploy, grammar is not supported")
        for name in ("presence_penalty", "frequency_penalty"):
            if getattr(sampling, name):
                raise InvalidInput(f"sampling.{name}: behind LMDeploy, it is not supported")
        if sampling.logprobs:
            raise InvalidInput("sampling.logprobs: behind LMDeploy, it must be 0: the sampled token's alone")
        if sampling.temperature > 2:
            raise InvalidInput("sampling.temperature: behind LMDeploy, it must be at most 2")
        if len(work.tokens) + work.new_tokens > self._longest:
            raise InvalidInput(
                f"tokens: {len(work.tokens)} and {work.new_tokens} new ones; LMDeploy holds {self._longest} at most"
            )

    def check_handover(self, parameters: Mapping[str, Any]) -> None:
        if set(parameters) != set(_HANDOVER):
            raise InvalidInput(f"parameters: must be {', '.join(_HANDOVER)}")
        for name, kinds in _HANDOVER.items():
            if type(parameters[name]) not in kinds:
                raise InvalidInput(f"parameters.{name}: has another type")
        try:
            url = urlsplit(parameters["engine_id"])
            usable = url.scheme == "http" and url.hostname and url.port and not url.path and not url.username
        except ValueError:
            usable = False
        if not usable:
            raise InvalidInput("parameters.engine_id: is no address of an engine")
        blocks = parameters["block_ids"]
        if not blocks or not all(type(b) is int and b >= 0 for b in blocks):
            raise InvalidInput("parameters.block_ids: must be numbers of blocks")

    # ---- What it does ----

    async def generate(self, work: Work) -> AsyncGenerator[Delta]:
        # What is computed at prefill may evict a hand-over; what decode computes does not.
        turn = self._turn if self._options.role == PREFILL else None
        if turn is not None:
            await turn.take()
        try:
            async with faults(), self._http.events(_CHAT, self._body(work, stream=True)) as events:
                cut = Cut(work)
                async for event in events:
                    if (delta := cut.of(delta_of(event, work.sampling.logprobs is not None))) is not None:
                        yield delta
                        if delta.finish_reason is not None:
                            return
        finally:
            if turn is not None:
                turn.give_back()

    async def prefill(self, work: Work) -> AsyncGenerator[HandOver]:
        if not self._hands_over:
            raise EngineFault(codes.OTHER_ROLE, "LMDeploy hands nothing over in role both")
        body = self._body(work, stream=False) | {"with_cache": True, "preserve_cache": True}
        body |= {"max_completion_tokens": 1, "min_new_tokens": min(1, work.min_new_tokens)}
        await self._turn.take()
        kept_s = 0.0
        try:
            async with faults(codes.TRANSFER_FAILED):
                answer = await self._http.json(_CHAT, _SECONDS_OF_A_PROMPT, body)
            try:
                token, blocks = int(answer["remote_token_ids"][0]), [int(b) for b in answer["cache_block_ids"]]
            except (KeyError, IndexError, TypeError, ValueError):
                raise EngineFault(codes.TRANSFER_FAILED, "LMDeploy gave no blocks to hand over") from None
            parameters = {
                "engine_id": self._engine_id,
                # Decode's adapter connects the engines, so it has to reach this one.
                "key": self._http.key,
                "started": self._started,
                "block_ids": blocks,
                "token": token,
            }
            taken = asyncio.Event()
            kept_s = self._options.lease_s
            yield HandOver(parameters, token, taken=taken.set)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(kept_s):
                    await taken.wait()
            kept_s = 0.0
        finally:
            self._turn.give_back(kept_s)

    async def decode(self, work: Work, handover: HandOver) -> AsyncGenerator[Delta]:
        parameters = handover.parameters
        size = int(self._info["block_size"])
        if len(parameters["block_ids"]) != -(-len(work.tokens) // size):
            # LMDeploy asserts that both sides have equally many; otherwise its loop ends.
            raise EngineFault(
                codes.TRANSFER_FAILED, f"{len(parameters['block_ids'])} blocks for {len(work.tokens)} tokens"
            )
        body = self._body(work, stream=True)
        body["migration_request"] = {
            "protocol": RDMA_PROTOCOL,
            "remote_engine_id": parameters["engine_id"],
            "remote_session_id": _NO_SESSION,
            "remote_token_id": parameters["token"],
            "remote_block_ids": parameters["block_ids"],
            "is_dummy_prefill": False,
        }
        cut, parse = Cut(work), functools.partial(delta_of, logprobs=work.sampling.logprobs is not None)
        # Blocks that are written from afar must not be given to others by a cancel.
        kept = self._kept.read(work.request_id, self._http.events(_CHAT, body), parse)
        async with self._transfer(parameters, cut), contextlib.aclosing(kept) as pieces:
            async for piece in pieces:
                if (delta := cut.of(piece)) is None:
                    continue
                if delta.outputs and cut.count == len(delta.outputs):
                    self.other_first_tokens += delta.outputs[0].token != parameters["token"]
                yield delta
                if delta.finish_reason is not None:
                    return

    @contextlib.asynccontextmanager
    async def _transfer(self, parameters: Mapping[str, Any], cut: Cut) -> AsyncGenerator[None]:
        """Connect with prefill's engine; what fails before the first token is the transfer's."""
        peer = parameters["engine_id"]
        try:
            async with faults(codes.TRANSFER_FAILED):
                await self._pairs.connect(self._engine_id, self._info, parameters)
                yield
        except EngineFault as fault:
            if cut.count or fault.code != codes.INTERNAL:
                raise
            self._pairs.doubt(peer)
            raise EngineFault(codes.TRANSFER_FAILED, str(fault)) from None

    async def probe(self) -> None:
        async with faults():
            if self._turn.taken:
                # A prompt could evict what decode is about to read.
                await self._http.text("/health", _HTTP_S)
                return
            await self._turn.take()
            try:
                body = {"model": self._options.model, "messages": [], "input_ids": [1], "max_completion_tokens": 1}
                await self._http.json(_CHAT, _SECONDS_OF_A_PROMPT, body)
            finally:
                self._turn.give_back()

    def when_gone(self, request_id: str, then: Callable[[], None]) -> None:
        self._kept.when_gone(request_id, then)

    async def close(self) -> None:
        await self._kept.close()
        await self._http.close()

    def _body(self, work: Work, *, stream: bool) -> dict[str, Any]:
        return request_body(work, work.adapter or self._options.model) | {"stream": stream}
