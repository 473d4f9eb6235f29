"""PURE: The limits of the model for a request, and the sampling parameters that workers get."""

from __future__ import annotations

from typing import Any

from disagg_router.errors import ApiError
from disagg_router.openai.schema import ChatRequest, CompletionRequest
from disagg_router.workers.catalogue import Model

# A text of more characters than this for each token of the context is refused before it is
# tokenized, unless it is short. Text has some four characters a token, and seldom more than ten.
_CHARS_PER_TOKEN = 32
_SHORT_CHARS = 1 << 16


def most_chars(model: Model) -> int:
    """Return the number of characters that a prompt may have at most."""
    return max(_SHORT_CHARS, _CHARS_PER_TOKEN * model.max_model_len)


def check_prompt(prompt: list[int], wanted: int | None, default: int | None, model: Model) -> int:
    """Return how many tokens may be generated: `wanted`, or else `default` or as many as fit.

    Raises ApiError that names the limit.
    """
    limit = model.max_model_len
    if not prompt:
        raise ApiError(400, "the prompt is empty", code="empty_prompt", param="prompt")
    if bad := next((t for t in prompt if t >= model.vocab_size), None):
        raise ApiError(
            400,
            f"prompt: token {bad} is not below the vocabulary's {model.vocab_size}",
            code="invalid_value",
            param="prompt",
        )
    if len(prompt) >= limit:
        message = f"the prompt has {len(prompt)} tokens; this model's context is {limit} tokens, output included"
        raise ApiError(400, message, code="context_length_exceeded", param="prompt")
    if wanted is not None and wanted > limit - len(prompt):
        message = (
            f"max_tokens: {wanted} and the prompt's {len(prompt)} tokens exceed this model's context of {limit} tokens"
        )
        raise ApiError(400, message, code="context_length_exceeded", param="max_tokens")
    return wanted if wanted is not None else min(limit - len(prompt), default or limit)


def sampling_of(
    request: ChatRequest | CompletionRequest, model: Model, max_new_tokens: int, seed: int
) -> dict[str, Any]:
    """Return the sampling parameters as docs/protocol.md has them (`sampling`).

    The defaults are those of OpenAI. Raises ApiError.
    """
    stop_ids = [] if request.ignore_eos else list(model.eos_token_ids)
    bias = [[int(k), v] for k, v in (request.logit_bias or {}).items()]
    if bad := next((i for i, _ in bias if i >= model.vocab_size), None):
        message = f"logit_bias: token {bad} is not below the vocabulary's {model.vocab_size}"
        raise ApiError(400, message, code="invalid_value", param="logit_bias")
    structured = request.structured
    return {
        "seed": seed,
        "max_new_tokens": max_new_tokens,
        "temperature": 1.0 if request.temperature is None else request.temperature,
        "top_p": 1.0 if request.top_p is None else request.top_p,
        "top_k": max(0, request.top_k or 0),
        "min_p": request.min_p or 0.0,
        "presence_penalty": request.presence_penalty or 0.0,
        "frequency_penalty": request.frequency_penalty or 0.0,
        "repetition_penalty": request.repetition_penalty or 1.0,
        "logit_bias": bias,
        "logprobs": request.wanted_logprobs,
        "stop_token_ids": stop_ids,
        "min_tokens": min(request.min_tokens or 0, max_new_tokens),
        "structured": None if structured is None else {"kind": structured[1], "value": structured[2]},
    }
