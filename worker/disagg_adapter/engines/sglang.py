"""SGLang: the native API /generate, and the hand-over with a bootstrap room.

Prefill and decode get a request at the same time. Decode reserves pages, prefill computes and
pushes into them, and answers when decode has everything. Requests, answers and failures are those
of sglang/srt/managers, sglang/srt/entrypoints and sglang/srt/disaggregation in VERSIONS.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import secrets
from collections.abc import AsyncGenerator, Mapping
from typing import Any

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
from disagg_adapter.engines.formats import name_of
from disagg_adapter.engines.http_client import EngineAnswer, EngineHttp, faults
from disagg_adapter.engines.prometheus_text import parse_samples, read_samples
from disagg_adapter.engines.sglang_answers import (
    delta_of,
    ended_as_asked,
    room_of,
    sampling_params,
)
from disagg_protocol.errors import InvalidInput
from disagg_wire import codes
from disagg_wire.engine_metrics.readings import Readings
from disagg_wire.engine_metrics.sglang import readings_of, started_of
from disagg_wire.protocol import (
    FEATURE_ADAPTER,
    FEATURE_FIRST_TOKEN_FROM_DECODE,
    FEATURE_NO_LOCAL_PREFILL,
    FEATURE_SEED_LOST,
    FEATURE_SOFT_TICKET,
    FEATURE_STRUCTURED_NOT_RESUMED,
)
from disagg_wire.roles import BOTH, DECODE, PREFILL

log = logging.getLogger(__name__)
_GENERATE = "/generate"
_ABORT = "/abort_request"
_HTTP_S = 5.0
_SECONDS_OF_A_PROMPT = 600.0
# The versions that this adapter knows, and the version of their hand-over.
VERSIONS = {"0.5.23": "1"}
# What SGLang calls the roles (--disaggregation-mode).
_MODES = {PREFILL: "prefill", DECODE: "decode", BOTH: "null"}
# With this host, SGLang moves no KV: prefill sends nothing, and decode goes on from whatever its
# pages hold. Health checks use it (sglang/srt/disaggregation/utils.py).
_NO_TRANSFER_HOST = "2.2.2.2"
_HOST = re.compile(r"^[0-9A-Za-z.:_-]{1,253}$")
_REMEMBERED_ROOMS = 1 << 17
# How structured output is asked for; there are no Lark grammars.
_FORMATS = ("json_schema", "regex", "choice")


class Sglang(Engine):
    """An SGLang engine."""

    def __init__(self, http: EngineHttp, options: EngineOptions) -> None:
        self._http = http
        self._options = options
        self._longest = 0
        # A room that is used twice ends the schedulers of both engines.
        self._rooms: dict[int, None] = {}
        self._aborts: set[asyncio.Task[None]] = set()

    # ---- What it is ----

    async def identify(self) -> Identity:
        try:
            await self._http.text("/ready", _HTTP_S)
            info = await self._http.json("/server_info", _HTTP_S)
            model = await self._http.json("/model_info", _HTTP_S)
            listed = (await self._http.json("/v1/models", _HTTP_S))["data"]
            loads = (await self._http.json("/v1/loads?include=core", _HTTP_S))["loads"]
            samples = parse_samples(await self._http.text("/metrics", _HTTP_S))
        except EngineFault as fault:
            raise NotReady(str(fault)) from None
        except EngineAnswer as answer:
            if answer.status in (401, 403):
                raise Unusable("EngineRefusesKey", f"SGLang refuses the adapter's key: {answer}") from None
            raise NotReady(f"the engine is starting: {answer}") from None
        self._check_setup(info)
        if model["served_model_name"] != self._options.model:
            raise Unusable(
                "ModelNotServed", f"SGLang serves {model['served_model_name']} and not {self._options.model}"
            )
        started = started_of(samples)
        if not started:
            raise Unusable("EngineMisconfigured", "SGLang has no metrics; it must be started with --enable-metrics")
        page = int(info["page_size"])
        self._longest = int(info["max_req_input_len"])
        connector = VERSIONS[str(info["version"])]
        if self._options.role != BOTH:
            connector = f"{info['disaggregation_transfer_backend']}-{connector}"
        return Identity(
            version=str(info["version"]),
            started=started,
            connector=connector,
            max_model_len=self._longest,
            block_size_tokens=page,
            blocks_total=sum(int(load["max_total_num_tokens"]) for load in loads) // page,
            kv_dtype=str(info["kv_cache_dtype"]),
            adapters=tuple(sorted(str(m["id"]) for m in listed if m.get("parent"))),
            adapter_places={str(m["id"]): str(m["root"]) for m in listed if m.get("parent") and m.get("root")},
            features=self._features(deterministic=info.get("enable_deterministic_inference") is True),
        )

    def _check_setup(self, info: Mapping[str, Any]) -> None:
        """Raise Unusable if the engine was started in a way that cannot serve."""
        version = str(info.get("version"))
        if version not in VERSIONS:
            raise Unusable(
                "UnknownEngineVersion",
                f"SGLang {version} is none of the versions that are known: {', '.join(VERSIONS)}",
            )
        wanted = {
            "disaggregation_mode": _MODES[self._options.role],
            # Otherwise, each chunk of a stream repeats all tokens.
            "incremental_streaming_output": True,
            # Otherwise, formats are ignored without a word.
            "skip_tokenizer_init": False,
        }
        if self._options.role == PREFILL:
            wanted["disaggregation_bootstrap_port"] = self._options.bootstrap_port
        for name, value in wanted.items():
            if info.get(name) != value:
                raise Unusable("EngineMisconfigured", f"SGLang runs with {name} {info.get(name)!r}, not {value!r}")

    def _features(self, *, deterministic: bool) -> frozenset[str]:
        found = {FEATURE_ADAPTER, FEATURE_STRUCTURED_NOT_RESUMED}
        if not deterministic:
            found.add(FEATURE_SEED_LOST)
        if self._options.role != BOTH:
            found |= {FEATURE_SOFT_TICKET, FEATURE_FIRST_TOKEN_FROM_DECODE}
        if self._options.role == DECODE:
            found.add(FEATURE_NO_LOCAL_PREFILL)
        return frozenset(found)

    async def read(self) -> Readings:
        return readings_of(await read_samples(self._http))

    def check(self, work: Work) -> None:
        sampling, structured = work.sampling, work.sampling.structured
        if structured is not None and work.emitted:
            raise InvalidInput("sampling.structured: SGLang cannot go on in the middle of a format")
        if structured is not None and structured.kind not in _FORMATS:
            raise InvalidInput(f"sampling.structured.kind: behind SGLang, {structured.kind} is not supported")
        if sampling.seed >= 1 << 63:
            raise InvalidInput("sampling.seed: behind SGLang, it must be below 2^63")
        if sampling.repetition_penalty > 2:
            raise InvalidInput("sampling.repetition_penalty: behind SGLang, it must be at most 2")
        # Decode may not refuse once it has pages, so it must never have a reason to.
        if len(work.tokens) + work.new_tokens > self._longest:
            raise InvalidInput(
                f"tokens: {len(work.tokens)} and {work.new_tokens} new ones; SGLang holds {self._longest} at most"
            )

    def check_handover(self, parameters: Mapping[str, Any]) -> None:
        if set(parameters) != {"host", "port", "room"}:
            raise InvalidInput("parameters: must be host, port and room")
        host, port, room = parameters["host"], parameters["port"], parameters["room"]
        if not isinstance(host, str) or not _HOST.match(host) or host == _NO_TRANSFER_HOST:
            raise InvalidInput("parameters.host: is no host of a bootstrap server")
        if type(port) is not int or not 0 < port < 1 << 16:
            raise InvalidInput("parameters.port: is no port")
        if type(room) is not int or not 0 < room < 1 << 63:
            raise InvalidInput("parameters.room: must be a number of 63 bits")

    # ---- What it does ----

    async def generate(self, work: Work) -> AsyncGenerator[Delta]:
        body = self._body(work, stream=True)
        if self._options.role != BOTH:
            if self._options.role != PREFILL or work.new_tokens != 1:
                raise EngineFault(codes.OTHER_ROLE, f"SGLang in role {self._options.role} does not do both")
            body |= _no_transfer()
        async with contextlib.aclosing(self._stream(body, work, codes.INTERNAL)) as deltas:
            async for delta in deltas:
                yield ended_as_asked(delta, work) if self._options.role == PREFILL else delta

    async def prefill(self, work: Work) -> AsyncGenerator[HandOver]:
        parameters = {
            "host": self._options.host,
            "port": self._options.bootstrap_port,
            "room": room_of(work.request_id),
        }
        body = self._body(work, stream=False) | self._transfer(parameters)
        # It answers when decode has everything, and decode gets its request only after the yield.
        answer = asyncio.create_task(self._http.json(_GENERATE, _SECONDS_OF_A_PROMPT, body))
        try:
            yield HandOver(parameters)
            async with faults(codes.TRANSFER_FAILED):
                if delta_of(await answer, codes.TRANSFER_FAILED) is None:
                    raise EngineFault(codes.TRANSFER_FAILED, "SGLang answered prefill without a token")
        finally:
            if not answer.done():
                answer.cancel()
                self._abort(body["rid"])
            await asyncio.gather(answer, return_exceptions=True)

    async def decode(self, work: Work, handover: HandOver) -> AsyncGenerator[Delta]:
        body = self._body(work, stream=True) | self._transfer(handover.parameters)
        async with contextlib.aclosing(self._stream(body, work, codes.TRANSFER_FAILED)) as deltas:
            async for delta in deltas:
                yield delta

    async def _stream(self, body: dict[str, Any], work: Work, code: str) -> AsyncGenerator[Delta]:
        """Relay a stream. `code` is that of failures before the first token."""
        ended = False
        async with faults(code):
            try:
                async with self._http.events(_GENERATE, body) as events:
                    async for event in events:
                        try:
                            delta = delta_of(event, code, work.sampling.logprobs)
                        except EngineFault:
                            ended = True
                            raise
                        if delta is not None:
                            ended = delta.finish_reason is not None
                            code = codes.INTERNAL if delta.outputs else code
                            yield delta
                    ended = True
            except EngineAnswer:
                ended = True
                raise
            finally:
                if not ended:
                    self._abort(body["rid"])

    def _abort(self, name: str) -> None:
        """End a request in the engine, which would notice a closed connection after two seconds."""

        async def abort() -> None:
            try:
                await self._http.send(_ABORT, {"rid": name}, _HTTP_S)
            except (EngineFault, EngineAnswer) as error:
                log.warning("could not abort %s: %s", name, error)

        task = asyncio.create_task(abort())
        self._aborts.add(task)
        task.add_done_callback(self._aborts.discard)

    async def probe(self) -> None:
        # The last token of a prompt is always computed, so one of a single token is in no cache.
        body = {
            "rid": secrets.token_hex(16),
            "input_ids": [1],
            "sampling_params": {"temperature": 0.0, "max_new_tokens": 1, "ignore_eos": True},
            "stream": False,
        }
        if self._options.role != BOTH:
            body |= _no_transfer()
        async with faults():
            delta_of(await self._http.json(_GENERATE, _SECONDS_OF_A_PROMPT, body), codes.INTERNAL)

    async def close(self) -> None:
        await asyncio.gather(*self._aborts, return_exceptions=True)
        await self._http.close()

    def _transfer(self, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """Return the fields of a hand-over, whose room is used once. Raises EngineFault."""
        room = parameters["room"]
        if room in self._rooms:
            raise EngineFault(codes.TRANSFER_FAILED, "a hand-over with this room was made before")
        self._rooms[room] = None
        if len(self._rooms) > _REMEMBERED_ROOMS:
            del self._rooms[next(iter(self._rooms))]
        return {"bootstrap_host": parameters["host"], "bootstrap_port": parameters["port"], "bootstrap_room": room}

    def _body(self, work: Work, *, stream: bool) -> dict[str, Any]:
        body: dict[str, Any] = {
            # An abort hits every name that begins with the given one.
            "rid": name_of(work.request_id),
            "input_ids": work.tokens,
            "sampling_params": sampling_params(work),
            "stream": stream,
        }
        if work.sampling.logprobs is not None:
            body |= {"return_logprob": True, "top_logprobs_num": work.sampling.logprobs}
        if work.adapter is not None:
            body["lora_path"] = work.adapter
        if work.tenant:
            body["cache_salt"] = work.tenant
        return body


def _no_transfer() -> dict[str, Any]:
    return {"bootstrap_host": _NO_TRANSFER_HOST, "bootstrap_room": secrets.randbits(62) + 1}
