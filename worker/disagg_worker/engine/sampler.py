"""From logits to a token: a pure function of (logits, parameters, tokens so far, position).

The random number comes from Philox4x64 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011) keyed by the request's seed
and counted by the position, so a request draws the same numbers alone, in any batch, and after a failover.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from disagg_worker.engine.api import SamplingParams
from disagg_worker.engine.structured import GrammarState

# Greedy below this: dividing by less overflows float32.
_GREEDY = 1e-5


@dataclass(frozen=True, slots=True)
class Sampled:
    """The token, and (where asked for) its log probability and the best alternatives, both before temperature and filters."""

    token: int
    logprob: float | None
    top_logprobs: tuple[tuple[int, float], ...]


def uniform(seed: int, position: int) -> float:
    """The random number in [0, 1) that belongs to this seed and position."""
    return float(np.random.Generator(np.random.Philox(key=seed, counter=position)).random())


def _penalised(
    logits: torch.Tensor, params: SamplingParams, tokens: Sequence[int], prompt_tokens: int, allowed: torch.Tensor | None
) -> torch.Tensor:
    """Repetition penalty (CTRL, Keskar et al. 2019) over all tokens; presence and frequency (OpenAI API reference) over the output."""
    emitted = len(tokens) - prompt_tokens
    logits = logits.clone()
    if params.repetition_penalty != 1.0:
        seen = torch.tensor(sorted(set(tokens)))
        values = logits[seen]
        logits[seen] = torch.where(values > 0, values / params.repetition_penalty, values * params.repetition_penalty)
    if emitted and (params.presence_penalty or params.frequency_penalty):
        counts = torch.bincount(torch.tensor(tokens[prompt_tokens:]), minlength=len(logits))
        logits -= params.frequency_penalty * counts + params.presence_penalty * (counts > 0)
    for token, bias in params.logit_bias:
        if token < len(logits):
            logits[token] += bias
    if allowed is not None:
        return logits.masked_fill(~allowed.to(logits.device), -torch.inf)
    if emitted < params.min_tokens and params.stop_token_ids:
        logits[[t for t in params.stop_token_ids if t < len(logits)]] = -torch.inf
    return logits


def _filtered(probabilities: torch.Tensor, params: SamplingParams) -> tuple[torch.Tensor, torch.Tensor]:
    """What top-k, then top-p (of what top-k left), then min-p keep: (probabilities, not renormalised; token ids), likeliest first."""
    if 0 < params.top_k < len(probabilities):
        ordered, index = torch.topk(probabilities, params.top_k)
    else:
        ordered, index = torch.sort(probabilities, descending=True, stable=True)
    keep = len(ordered)
    if params.top_p < 1.0:
        before = torch.cumsum(ordered, -1) - ordered
        keep = min(keep, int((before < params.top_p * ordered.sum()).sum()))
    if params.min_p > 0.0:
        keep = min(keep, int((ordered >= params.min_p * ordered[0]).sum()))
    return ordered[: max(1, keep)], index[: max(1, keep)]


def _draw(logits: torch.Tensor, params: SamplingParams, position: int) -> int:
    """Temperature, then the filters, then the inverse of the cumulative distribution."""
    probabilities = torch.softmax(logits.double() / params.temperature, dim=-1)
    index: torch.Tensor | None = None
    if params.top_k > 0 or params.top_p < 1.0 or params.min_p > 0.0:
        probabilities, index = _filtered(probabilities, params)
    cumulative = torch.cumsum(probabilities, -1)
    # A strictly smaller cumulative value skips tokens of probability zero, also at the very start.
    at = int(torch.searchsorted(cumulative, uniform(params.seed, position) * cumulative[-1], right=True))
    at = min(at, int(probabilities.nonzero()[-1]))
    return at if index is None else int(index[at])


def sample(
    logits: torch.Tensor, params: SamplingParams, tokens: Sequence[int], prompt_tokens: int, allowed: torch.Tensor | None = None
) -> Sampled:
    """The next token after `tokens`; logits [vocab] float32, allowed bool [vocab]. Raises ArithmeticError when logits are not finite."""
    if not bool(torch.isfinite(logits).all()):
        raise ArithmeticError("the model's logits are not finite")
    adjusted = _penalised(logits, params, tokens, prompt_tokens, allowed)
    token = int(torch.argmax(adjusted)) if params.temperature < _GREEDY else _draw(adjusted, params, len(tokens))
    if params.logprobs is None:
        return Sampled(token, None, ())
    logs = torch.log_softmax(logits, dim=-1)
    values, indices = torch.topk(logs, min(params.logprobs, len(logs)))
    top = tuple((int(i), float(v)) for i, v in zip(indices.tolist(), values.tolist(), strict=True))
    return Sampled(token, float(logs[token]), top)


@dataclass(frozen=True, slots=True)
class Row:
    """What the sampler needs to know of one sequence of a batch."""

    params: SamplingParams
    tokens: Sequence[int]
    prompt_tokens: int
    grammar: GrammarState | None = None

    def allowed(self) -> torch.Tensor | None:
        return None if self.grammar is None else self.grammar.allowed(self.tokens[self.prompt_tokens :])

    @property
    def plain_greedy(self) -> bool:
        """The likeliest token as it is: nothing changes the logits, nothing is reported."""
        p = self.params
        return (
            p.temperature < _GREEDY
            and self.grammar is None
            and p.logprobs is None
            and not p.logit_bias
            and p.repetition_penalty == 1.0
            and p.presence_penalty == p.frequency_penalty == 0.0
            and len(self.tokens) - self.prompt_tokens >= p.min_tokens
        )


def sample_rows(logits: torch.Tensor, rows: Sequence[Row]) -> list[Sampled | Exception]:
    """`sample` for each row of logits [rows, vocab]; one row's failure (also of its parameters) is that row's alone."""
    # A NaN is the largest of all, so the largest value tells. numpy's argmax is many times faster than torch's on a CPU.
    if logits.device.type == "cpu":
        values = logits.numpy()
        greedy = values.argmax(-1).tolist()
        finite = [math.isfinite(values[i, token]) for i, token in enumerate(greedy)]
    else:
        largest, best = logits.max(-1)
        greedy, finite = best.tolist(), torch.isfinite(largest).tolist()
    out: list[Sampled | Exception] = []
    for i, row in enumerate(rows):
        if finite[i] and row.plain_greedy:
            out.append(Sampled(greedy[i], None, ()))
            continue
        try:
            out.append(sample(logits[i], row.params, row.tokens, row.prompt_tokens, row.allowed()))
        except Exception as error:
            out.append(error)
    return out
