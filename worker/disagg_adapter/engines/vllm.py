"""vLLM: the token API of `vllm serve --enable-scale-out`, and the hand-over of its NixlConnector.

Decode's engine reads the KV out of prefill's after prefill has answered. The requests, answers and
failures are those of vllm/entrypoints/scale_out/token_in_token_out and of
vllm/distributed/kv_transfer/kv_connector/v1/nixl in the versions of VERSIONS.
"""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import AsyncGenerator, Callable, Mapping
from typing import Any

from disagg_adapter.engines.contract import (
    Delta,
    Engine,
    EngineFault,
    HandOver,
    Identity,
    NotReady,
    Output,
    Unusable,
    Work,
)
from disagg_adapter.engines.http_client import EngineAnswer, EngineHttp, faults
from disagg_adapter.engines.kept_stream import KeptStreams, deltas_of
from disagg_adapter.engines.prometheus_text import parse_samples, read_samples
from disagg_protocol.errors import InvalidInput
from disagg_wire import codes, problems
from disagg_wire.engine_metrics.readings import Readings
from disagg_wire.engine_metrics.vllm import CACHE, readings_of
from disagg_wire.protocol import (
    FEATURE_ADAPTER,
    FEATURE_FIRST_TOKEN_FROM_DECODE,
    FEATURE_SEED_LOST,
    FEATURE_SOFT_TICKET,
    FEATURE_STRUCTURED_NOT_RESUMED,
)

_GENERATE = "/inference/v1/generate"
_HTTP_S = 5.0
# What differs between the versions that this adapter knows, by the start of the version: the
# version of the connector, which two engines must share.
VERSIONS = {"0.31.": "nixl-13", "0.32.": "nixl-14", "0.33.": "nixl-15"}
# The keys of a hand-over and their types (nixl/pull_scheduler.py, request_finished). Without one of
# the first group, decode's engine would assert and end, or wait for ever.
_REQUIRED: Mapping[str, type | tuple[type, ...]] = {
    "do_remote_prefill": bool,
    "do_remote_decode": bool,
    "remote_block_ids": list,
    "remote_engine_id": str,
    "remote_request_id": str,
    "remote_host": str,
    "remote_port": int,
    "tp_size": int,
}
_OPTIONAL: Mapping[str, type | tuple[type, ...]] = {
    "dcp_size": int,
    "pp_size": int,
    "remote_num_tokens": int,
    "remote_blocks_expiry_time": (int, float, type(None)),
    "remote_registration_generation": (int, str, type(None)),
    "remote_prefill_cached_tokens": int,
    "transfer_mode": str,
}
_ASK_FOR_HANDOVER = {
    "do_remote_decode": True,
    "do_remote_prefill": False,
    "remote_engine_id": None,
    "remote_block_ids": None,
    "remote_host": None,
    "remote_port": None,
}
_PLAIN = ("temperature", "top_p", "top_k", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty")
# The formats of outputs by vLLM's names. Its `grammar` is another language than the protocol's.
_FORMATS = {"json_schema": "json", "regex": "regex", "choice": "choice"}
# vLLM answers a long prompt only when all of it is computed; the router's patience ends before.
_SECONDS_OF_A_PROMPT = 3600.0
_SEEDS = 1 << 63
_CANNOT = {FEATURE_FIRST_TOKEN_FROM_DECODE, FEATURE_SOFT_TICKET, FEATURE_SEED_LOST, FEATURE_STRUCTURED_NOT_RESUMED}


class Vllm(Engine):
    """A vLLM engine."""

    def __init__(self, http: EngineHttp, model: str, lease_s: float) -> None:
        self._http = http
        self._model = model
        self._kept = KeptStreams(lease_s + 5.0)
        self._probes = 0

    async def identify(self) -> Identity:
        try:
            await self._http.text("/health", _HTTP_S)
            version = str((await self._http.json("/version", _HTTP_S))["version"])
            models = (await self._http.json("/v1/models", _HTTP_S))["data"]
            samples = parse_samples(await self._http.text("/metrics", _HTTP_S))
        except EngineFault as fault:
            raise NotReady(str(fault)) from None
        except EngineAnswer as answer:
            raise NotReady(f"the engine is starting: {answer}") from None
        connector = next((c for start, c in VERSIONS.items() if version.startswith(start)), None)
        if connector is None:
            known = ", ".join(f"{start}x" for start in VERSIONS)
            raise Unusable(
                problems.UNKNOWN_ENGINE_VERSION, f"vLLM {version} is none of the versions that are known: {known}"
            )
        by_name = {str(m["id"]): m for m in models}
        if self._model not in by_name:
            raise Unusable(problems.MODEL_NOT_SERVED, f"vLLM serves {', '.join(by_name)} and not {self._model}")
        cache = samples.labels(CACHE)
        if cache is None:
            raise NotReady("the engine does not tell the size of its KV cache yet")
        return Identity(
            version=version,
            started=samples.process_start(),
            connector=connector,
            max_model_len=int(by_name[self._model]["max_model_len"]),
            block_size_tokens=int(cache["block_size"]),
            blocks_total=int(cache["num_gpu_blocks"]),
            kv_dtype=cache.get("cache_dtype", "auto"),
            adapters=tuple(sorted(name for name, m in by_name.items() if m.get("parent"))),
            adapter_places={name: str(m["root"]) for name, m in by_name.items() if m.get("parent") and m.get("root")},
            features=frozenset(_CANNOT | {FEATURE_ADAPTER}),
        )

    async def read(self) -> Readings:
        return readings_of(await read_samples(self._http))

    def check(self, work: Work) -> None:
        structured = work.sampling.structured
        if structured is not None and work.emitted:
            raise InvalidInput("sampling.structured: vLLM cannot go on in the middle of a format")
        if structured is not None and structured.kind not in _FORMATS:
            raise InvalidInput(f"sampling.structured.kind: behind vLLM, {structured.kind} is not supported")

    def check_handover(self, parameters: Mapping[str, Any]) -> None:
        if unknown := set(parameters) - set(_REQUIRED) - set(_OPTIONAL):
            raise InvalidInput(f"parameters.{sorted(unknown)[0]}: unknown")
        for name, kind in _REQUIRED.items():
            if not _is(parameters.get(name), kind):
                raise InvalidInput(f"parameters.{name}: is missing or has another type")
        for name, kind in _OPTIONAL.items():
            if name in parameters and not _is(parameters[name], kind):
                raise InvalidInput(f"parameters.{name}: has another type")
        groups = parameters["remote_block_ids"]
        if not groups or not all(_is(g, list) and all(_is(b, int) for b in g) for g in groups):
            raise InvalidInput("parameters.remote_block_ids: must be lists of numbers")
        if parameters["do_remote_prefill"] is not True or parameters["do_remote_decode"] is not False:
            raise InvalidInput("parameters.do_remote_prefill: must be true, and do_remote_decode false")

    async def generate(self, work: Work) -> AsyncGenerator[Delta]:
        body = self._body(work, work.new_tokens, stream=True)
        async with faults(), self._http.events(_GENERATE, body) as events:
            async for delta in deltas_of(events, _parse(work)):
                yield delta

    async def prefill(self, work: Work) -> AsyncGenerator[HandOver]:
        # A streamed answer has no hand-over in it.
        body = self._body(work, 1, stream=False) | {"kv_transfer_params": _ASK_FOR_HANDOVER}
        async with faults():
            answer = await self._http.json(_GENERATE, _SECONDS_OF_A_PROMPT, body)
        yield handover_of(answer)

    async def decode(self, work: Work, handover: HandOver) -> AsyncGenerator[Delta]:
        body = self._body(work, work.new_tokens, stream=True) | {"kv_transfer_params": handover.parameters}
        # A request that is cancelled while its KV is being read can end vLLM's EngineCore.
        pieces = self._kept.read(work.request_id, self._http.events(_GENERATE, body), _parse(work))
        async with contextlib.aclosing(pieces):
            try:
                async with faults():
                    first = await anext(pieces, None)
            except EngineFault as fault:
                if fault.code != codes.INTERNAL:
                    raise
                # The usual reason: the KV could not be read (kv_load_failure_policy: fail).
                raise EngineFault(codes.TRANSFER_FAILED, f"vLLM did not take the KV: {fault}") from None
            if first is not None:
                yield first
            async for delta in pieces:
                yield delta

    def when_gone(self, request_id: str, then: Callable[[], None]) -> None:
        self._kept.when_gone(request_id, then)

    async def probe(self) -> None:
        self._probes += 1
        body = {
            "token_ids": [self._probes % 2 + 1],
            "sampling_params": {"temperature": 0.0, "max_tokens": 1, "detokenize": False, "ignore_eos": True},
            "model": self._model,
            "stream": False,
        }
        async with faults():
            await self._http.json(_GENERATE, _SECONDS_OF_A_PROMPT, body)

    async def close(self) -> None:
        await self._kept.close()
        await self._http.close()

    def _body(self, work: Work, max_tokens: int, *, stream: bool) -> dict[str, Any]:
        body: dict[str, Any] = {
            "request_id": work.request_id,
            "token_ids": work.tokens,
            "sampling_params": sampling_params(work, max_tokens),
            "model": work.adapter or self._model,
            "stream": stream,
        }
        if stream:
            body["stream_options"] = {"include_usage": True}
        if work.tenant:
            body["cache_salt"] = work.tenant
        return body


def _parse(work: Work) -> Callable[[Any], Delta | None]:
    """Return what reads the events of a request."""
    return functools.partial(delta_of, top=work.sampling.logprobs or 0)


def handover_of(answer: Any) -> HandOver:
    """Return the hand-over in prefill's answer. Raises EngineFault if there is none."""
    try:
        parameters, tokens = answer.get("kv_transfer_params"), answer["choices"][0].get("token_ids") or [None]
        if isinstance(parameters, dict) and parameters.get("remote_block_ids"):
            return HandOver(parameters, tokens[0], parameters.get("remote_prefill_cached_tokens"))
    except (AttributeError, KeyError, TypeError, IndexError) as error:
        raise EngineFault(codes.INTERNAL, f"vLLM's answer is garbled: {error!r}") from None
    # Decode's engine would compute the prompt again and say nothing.
    raise EngineFault(codes.INTERNAL, "vLLM gave no hand-over; has it a KV connector?")


def sampling_params(work: Work, max_tokens: int) -> dict[str, Any]:
    """Return vLLM's sampling parameters for a request of which at most `max_tokens` are wanted."""
    s = work.sampling
    out: dict[str, Any] = {name: getattr(s, name) for name in _PLAIN} | {
        "max_tokens": max_tokens,
        "min_tokens": min(work.min_new_tokens, max_tokens),
        "stop_token_ids": s.stop_token_ids,
        # The router names the tokens that end the output.
        "ignore_eos": True,
        "detokenize": False,
    }
    if s.temperature > 0:
        out["seed"] = s.seed % _SEEDS
    if s.logit_bias:
        out["logit_bias"] = {str(token): bias for token, bias in s.logit_bias}
    if s.logprobs is not None:
        out["logprobs"] = s.logprobs
    if s.structured is not None:
        value = json.loads(s.structured.value) if s.structured.kind == "choice" else s.structured.value
        out["structured_outputs"] = {_FORMATS[s.structured.kind]: value}
    return out


def delta_of(event: Any, top: int = 0) -> Delta | None:
    """Return what an event of a stream says, or None for one without tokens and end.

    `top` is the number of alternatives that were asked for.

    Raises EngineFault for an error, which vLLM sends in a stream that began with status 200.
    """
    try:
        if "error" in event:
            error = event["error"]
            final = int(error.get("code") or 500) in (400, 404, 422)
            code = codes.INVALID_REQUEST if final else codes.INTERNAL
            raise EngineFault(code, str(error.get("message")), retryable=not final)
        choices = event.get("choices") or ()
        if not choices:
            return None
        choice = choices[0]
        tokens = list(map(int, choice.get("token_ids") or ()))
        reason = choice.get("finish_reason")
        logprobs = choice.get("logprobs")
        outputs = tuple(map(Output, tokens)) if logprobs is None else _outputs(tokens, logprobs.get("content"), top)
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise EngineFault(codes.INTERNAL, f"vLLM's stream is garbled: {error!r}") from None
    if reason not in (None, "stop", "length"):
        raise EngineFault(codes.INTERNAL, f"vLLM ended the request with {reason!r}")
    return Delta(outputs, reason) if outputs or reason else None


def _outputs(tokens: list[int], content: list[dict[str, Any]] | None, limit: int) -> tuple[Output, ...]:
    if content is None:
        return tuple(Output(t) for t in tokens)
    if len(content) != len(tokens):
        raise ValueError(f"{len(content)} log probabilities for {len(tokens)} tokens")
    out = []
    for token, entry in zip(tokens, content, strict=True):
        # The sampled token comes first, whatever its rank; the best ones follow in order.
        top = sorted(entry.get("top_logprobs") or (), key=lambda best: int(best.get("rank") or 0))[:limit]
        pairs = tuple((int(t["token_id"]), float(t["logprob"])) for t in top)
        out.append(Output(token, float(entry["logprob"]), pairs))
    return tuple(out)


def _is(value: Any, kind: type | tuple[type, ...]) -> bool:
    """Return whether a value has the type; a truth value is no number."""
    kinds = kind if isinstance(kind, tuple) else (kind,)
    return isinstance(value, kinds) and (not isinstance(value, bool) or bool in kinds)
