"""PURE: The JSON of LMDeploy: its requests, streams and errors."""

from __future__ import annotations

import json
from typing import Any

from disagg_adapter.engines.contract import Delta, EngineFault, Output, Work
from disagg_adapter.engines.formats import choice_regex, fault_of, logprob_of
from disagg_wire import codes

_PLAIN = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "seed")


def request_body(work: Work, model: str) -> dict[str, Any]:
    """Return a chat request with tokens in and out."""
    sampling = work.sampling
    body: dict[str, Any] = {name: getattr(sampling, name) for name in _PLAIN}
    body |= {
        "model": model,
        "messages": [],
        "input_ids": work.tokens,
        "max_completion_tokens": work.new_tokens,
        "min_new_tokens": work.min_new_tokens,
        # LMDeploy ends at the model's own tokens; where there is no other end, it bans them.
        "ignore_eos": not sampling.stop_token_ids,
        "return_token_ids": True,
        "include_stop_str_in_output": True,
        "skip_special_tokens": False,
    }
    if sampling.logprobs is not None:
        body["return_logprob"] = True
    if sampling.logit_bias:
        body["logit_bias"] = {str(token): bias for token, bias in sampling.logit_bias}
    if sampling.structured is not None:
        body["response_format"] = _response_format(sampling.structured.kind, sampling.structured.value)
    return body


class Cut:
    """What LMDeploy does not end itself: stop tokens that are not the model's own."""

    def __init__(self, work: Work) -> None:
        self._stops = frozenset(work.sampling.stop_token_ids)
        self._least, self._most = work.min_new_tokens, work.new_tokens
        self.count = 0
        """The tokens so far."""

    def of(self, delta: Delta | None) -> Delta | None:
        """Return a piece up to the token that ends the output."""
        if delta is None:
            return None
        for i, output in enumerate(delta.outputs):
            self.count += 1
            if output.token in self._stops and self.count >= self._least:
                return Delta(delta.outputs[: i + 1], "stop")
            if self.count >= self._most:
                return Delta(delta.outputs[: i + 1], "length")
        return delta


def _response_format(kind: str, value: str) -> dict[str, Any]:
    if kind == "json_schema":
        return {"type": "json_schema", "json_schema": {"name": "output", "schema": json.loads(value)}}
    return {"type": "regex_schema", "regex_schema": choice_regex(value) if kind == "choice" else value}


def delta_of(event: Any, logprobs: bool = False) -> Delta | None:
    """Return what an event of a stream says, or None for one without tokens and end.

    Raises EngineFault for an error, which LMDeploy sends in a stream that began with status 200.
    """
    try:
        if "error" in event:
            raise fault_of(event["error"].get("code"), str(event["error"].get("message")), codes.INTERNAL)
        if not event["choices"]:
            return None
        choice = event["choices"][0]
        tokens = [int(t) for t in choice.get("output_ids") or ()]
        reason = choice.get("finish_reason")
        values = (
            [logprob_of(v) for v, _ in choice.get("output_token_logprobs") or ()] if logprobs else [None] * len(tokens)
        )
        outputs = tuple(Output(t, v) for t, v in zip(tokens, values, strict=True))
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise EngineFault(codes.INTERNAL, f"LMDeploy's stream is garbled: {error!r}") from None
    if reason not in (None, "stop", "length"):
        raise EngineFault(codes.INTERNAL, f"LMDeploy ended the request with {reason!r}")
    return Delta(outputs, reason) if outputs or reason else None
