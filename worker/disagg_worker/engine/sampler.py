"""The sampler: a token as a pure function of (logits, parameters, tokens so far, position).

Each token ID has a random number u of its own at each position, and the largest weight / -log(u)
wins, which is the Gumbel-max trick: it draws in proportion to the weights. What rounding changes in
the logits of some tokens, or in which tokens a filter keeps, therefore changes the result only if
the winner and its runner-up are that close; a number drawn along a cumulative sum would move with
every term of it.

Random numbers come from Philox4x64 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3",
2011), with the request's seed as the key and position and token ID in the counter. A request
therefore draws the same numbers alone, in any batch, and after a failover.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from disagg_protocol.sampling_params import SamplingParams
from disagg_worker.engine.sequence import TokenMask
from disagg_worker.engine.token_counts import TokenCounts

Floats = npt.NDArray[np.floating]
# Sampling is greedy below this temperature: dividing by less overflows float32.
_GREEDY = 1e-5
# This many of the likeliest tokens nearly always include all that top-p and min-p keep; sorting a
# whole vocabulary takes milliseconds.
_FEW = 1024
# The least random number, in place of 0, which has no logarithm.
_LEAST = 2.0**-54
_NOT_FINITE = "the model's logits are not finite"


@dataclass(frozen=True, slots=True)
class Sampled:
    """A sampled token and, if asked for, its log probability and the best alternatives, both before
    temperature and filters.
    """

    token: int
    logprob: float | None
    top_logprobs: tuple[tuple[int, float], ...]


def noise(seed: int, position: int, vocab: int) -> npt.NDArray[np.float64]:
    """Return the random numbers in (0, 1) that belong to a seed and a position, one for each token
    ID below `vocab`, on which they do not depend otherwise.
    """
    # The low word of the counter runs over the token IDs.
    generator = np.random.Generator(np.random.Philox(key=seed, counter=position << 64))
    values = generator.random(vocab)
    return np.maximum(values, _LEAST, out=values)


def _penalised(
    logits: Floats,
    params: SamplingParams,
    tokens: Sequence[int],
    prompt_tokens: int,
    allowed: npt.NDArray[np.bool_] | None,
    counts: TokenCounts,
) -> Floats:
    """Return the logits with penalties, biases and forbidden tokens applied.

    The repetition penalty (CTRL, Keskar et al. 2019) covers all tokens; the presence and frequency
    penalties (OpenAI API reference) cover the output.
    """
    emitted = len(tokens) - prompt_tokens
    logits = logits.copy()
    if params.repetition_penalty != 1.0:
        seen = counts.seen(tokens)
        values = logits[seen]
        logits[seen] = np.where(values > 0, values / params.repetition_penalty, values * params.repetition_penalty)
    if emitted and (params.presence_penalty or params.frequency_penalty):
        output, numbers = counts.output(tokens, prompt_tokens)
        logits[output] -= params.frequency_penalty * numbers + params.presence_penalty
    for token, bias in params.logit_bias:
        if token < len(logits):
            logits[token] += bias
    if allowed is not None:
        logits[~allowed] = -np.inf
    elif emitted < params.min_tokens and params.stop_token_ids:
        logits[[t for t in params.stop_token_ids if t < len(logits)]] = -np.inf
    return logits


def _best(weights: Floats, n: int) -> npt.NDArray[np.int64]:
    """Return the indexes of the n greatest weights, the greatest first, equal ones by index."""
    if 0 < n < len(weights):
        least = np.partition(weights, len(weights) - n)[len(weights) - n]
        candidates = np.flatnonzero(weights >= least)
    else:
        candidates = np.arange(len(weights))
    return candidates[np.argsort(-weights[candidates], kind="stable")][:n]


def _enough(weights: Floats, params: SamplingParams) -> tuple[npt.NDArray[np.int64], float]:
    """Return the likeliest token IDs, which include all that top-p or min-p keep, and the sum of
    all weights.
    """
    total, n = float(weights.sum()), _FEW
    while True:
        index = _best(weights, n)
        by_sum = params.top_p < 1.0 and weights[index].sum() >= params.top_p * total
        by_least = params.min_p > 0.0 and weights[index[-1]] < params.min_p * weights[index[0]]
        if n >= len(weights) or by_sum or by_least:
            return index, total
        n *= 8


def _filtered(weights: Floats, params: SamplingParams) -> npt.NDArray[np.int64]:
    """Return the token IDs that top-k, then top-p (of those that top-k keeps), then min-p keep, the
    likeliest first.
    """
    if 0 < params.top_k < len(weights):
        index = _best(weights, params.top_k)
        total = float(weights[index].sum())
    else:
        index, total = _enough(weights, params)
    ordered = weights[index]
    keep = len(ordered)
    if params.top_p < 1.0:
        before = np.cumsum(ordered) - ordered
        keep = min(keep, int((before < params.top_p * total).sum()))
    if params.min_p > 0.0:
        keep = min(keep, int((ordered >= params.min_p * ordered[0]).sum()))
    return index[: max(1, keep)]


def _draw(logits: Floats, params: SamplingParams, position: int) -> int:
    """Draw a token: apply the temperature, then the filters, then the noise."""
    scaled = logits.astype(np.float64)
    scaled -= scaled.max()
    scaled /= params.temperature
    weights = np.exp(scaled, out=scaled)
    if params.top_k == 0 and params.top_p >= 1.0 and params.min_p == 0.0:
        return _winner(weights, noise(params.seed, position, len(weights)))
    index = _filtered(weights, params)
    return int(index[_winner(weights[index], noise(params.seed, position, int(index.max()) + 1)[index])])


def _winner(weights: Floats, numbers: npt.NDArray[np.float64]) -> int:
    """Return the index of the largest weight / -log(number); `numbers` is overwritten."""
    np.negative(np.log(numbers, out=numbers), out=numbers)
    return int(np.divide(weights, numbers, out=numbers).argmax())


def sample(
    logits: Floats,
    params: SamplingParams,
    tokens: Sequence[int],
    prompt_tokens: int,
    allowed: npt.NDArray[np.bool_] | None = None,
    counts: TokenCounts | None = None,
) -> Sampled:
    """Sample the next token after `tokens`; `logits` and `allowed` are [vocab]. With the `counts`
    of its sequence, what was counted for the tokens before is not counted again.

    Raises ArithmeticError if the logits are not finite, or no token may follow.
    """
    if not np.isfinite(logits).all():
        raise ArithmeticError(_NOT_FINITE)
    adjusted = _penalised(logits, params, tokens, prompt_tokens, allowed, counts or TokenCounts())
    if not math.isfinite(adjusted.max()):
        raise ArithmeticError("no token may follow")
    token = int(adjusted.argmax()) if params.temperature < _GREEDY else _draw(adjusted, params, len(tokens))
    if params.logprobs is None:
        return Sampled(token, None, ())
    logs = logits - logits.max()
    logs -= np.log(np.exp(logs, dtype=np.float64).sum())
    top = tuple((int(i), float(logs[i])) for i in _best(logs, min(params.logprobs, len(logs))))
    return Sampled(token, float(logs[token]), top)


@dataclass(frozen=True, slots=True)
class Row:
    """The sampler's view of one sequence of a batch."""

    params: SamplingParams
    tokens: Sequence[int]
    prompt_tokens: int
    grammar: TokenMask | None = None
    counts: TokenCounts | None = None

    def allowed(self) -> npt.NDArray[np.bool_] | None:
        return None if self.grammar is None else self.grammar.allowed(self.tokens[self.prompt_tokens :])

    @property
    def plain_greedy(self) -> bool:
        """Whether the likeliest token is taken as it is: nothing changes the logits, and no log
        probabilities are reported.
        """
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
    """Call `sample` for each row of logits [rows, vocab].

    The failure of a row, even because of its parameters, concerns that row alone.
    """
    # argmax treats NaN as the largest value, so the largest value shows whether all are finite.
    # numpy's argmax is many times faster than torch's on a CPU.
    if logits.device.type == "cpu":
        values = logits.numpy()
        greedy = values.argmax(-1).tolist()
        finite = [math.isfinite(values[i, token]) for i, token in enumerate(greedy)]
    else:
        largest, best = logits.max(-1)
        greedy, finite = best.tolist(), torch.isfinite(largest).tolist()
        values = np.empty(0) if all(row.plain_greedy for row in rows) else logits.cpu().numpy()
    out: list[Sampled | Exception] = []
    for i, row in enumerate(rows):
        if row.plain_greedy:
            out.append(Sampled(greedy[i], None, ()) if finite[i] else ArithmeticError(_NOT_FINITE))
            continue
        try:
            out.append(sample(values[i], row.params, row.tokens, row.prompt_tokens, row.allowed(), row.counts))
        except Exception as error:
            out.append(error)
    return out
