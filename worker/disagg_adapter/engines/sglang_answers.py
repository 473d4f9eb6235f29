"""PURE: The JSON of SGLang: its sampling parameters, streams and errors."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from disagg_adapter.engines.contract import Delta, EngineFault, Output, Work
from disagg_adapter.engines.formats import choice_regex, fault_of, logprob_of
from disagg_wire import codes

_PLAIN = ("temperature", "top_p", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty")


def room_of(request_id: str) -> int:
    """Return the room of a hand-over: 63 bits, never 0, which means that nothing has come yet."""
    digest = hashlib.sha256(b"room:" + request_id.encode()).digest()
    return (int.from_bytes(digest[:8]) >> 1) or 1


def sampling_params(work: Work) -> dict[str, Any]:
    """Return the parameters of sampling as SGLang writes them."""
    sampling = work.sampling
    out: dict[str, Any] = {name: getattr(sampling, name) for name in _PLAIN}
    out |= {
        "max_new_tokens": work.new_tokens,
        "min_new_tokens": work.min_new_tokens,
        "top_k": sampling.top_k or -1,
        "sampling_seed": sampling.seed,
        # With ignore_eos, SGLang ends at no token at all; without it, also at the model's own.
        "stop_token_ids": sampling.stop_token_ids,
        "ignore_eos": not sampling.stop_token_ids,
    }
    if sampling.logit_bias:
        out["logit_bias"] = {str(token): bias for token, bias in sampling.logit_bias}
    if sampling.structured is not None:
        if sampling.structured.kind == "choice":
            out["regex"] = choice_regex(sampling.structured.value)
        else:
            out[sampling.structured.kind] = sampling.structured.value
    return out


def ended_as_asked(delta: Delta, work: Work) -> Delta:
    """Correct the reason of a request of one token at prefill: SGLang always says `length`."""
    if delta.finish_reason is None or not delta.outputs:
        return delta
    stopped = delta.outputs[-1].token in work.sampling.stop_token_ids
    return Delta(delta.outputs, "stop" if stopped else "length", delta.cached_tokens)


def delta_of(event: Any, code: str, top: int | None = None) -> Delta | None:
    """Return what an event of a stream says, or None for one without tokens and end.

    `top` is the number of alternatives that were asked for, `code` that of the engine's failures.

    Raises EngineFault for an error, which SGLang sends in a stream that began with status 200.
    """
    try:
        if "error" in event:
            error = event["error"]
            raise fault_of(error.get("code"), str(error.get("message")), code)
        meta = event["meta_info"]
        reason = meta.get("finish_reason")
        if reason is not None and reason["type"] == "abort":
            # Its token is the last one once more.
            raise fault_of(reason.get("status_code"), str(reason.get("message")), code)
        tokens = [int(t) for t in event.get("output_ids") or ()]
        outputs = tuple(Output(t) for t in tokens) if top is None else _outputs(tokens, meta, top)
        kind = None if reason is None else str(reason["type"])
        cached = meta.get("cached_tokens")
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise EngineFault(codes.INTERNAL, f"SGLang's answer is garbled: {error!r}") from None
    if kind not in (None, "stop", "length"):
        raise EngineFault(codes.INTERNAL, f"SGLang ended the request with {kind!r}")
    return Delta(outputs, kind, cached) if outputs or kind else None


def _outputs(tokens: list[int], meta: Mapping[str, Any], top: int) -> tuple[Output, ...]:
    sampled = meta.get("output_token_logprobs") or ()
    best = meta.get("output_top_logprobs") or [()] * len(sampled)
    if not len(sampled) == len(best) == len(tokens):
        raise ValueError(f"{len(sampled)} log probabilities for {len(tokens)} tokens")
    out = []
    for token, (value, _, _), entries in zip(tokens, sampled, best, strict=True):
        pairs = tuple((int(t), logprob_of(x)) for x, t, _ in (entries or ())[:top])
        out.append(Output(token, logprob_of(value), pairs))
    return tuple(out)
