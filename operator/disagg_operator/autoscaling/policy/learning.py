"""PURE: The speed of a worker, learned from measurements; the given profile is the starting point.

The seconds of prefill are linear in batches, tokens and squared tokens, those of decode in steps,
sequences and KV tokens. Sums over intervals and workers keep this linearity. Each interval is
therefore one row of a ridge regression for three factors, by which the terms of the prior are
multiplied. Rows are divided by their seconds (errors are relative) and fade over hours. They pull
against a prior of 1 that is worth a hundredth of a row in each term, however small the prior made
that term. Terms that the intervals cannot separate (batches that are always full) keep the prior's
proportions, which is all that a policy needs while the batches stay so.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from disagg_operator.autoscaling.policy.forecast import TINY
from disagg_operator.autoscaling.policy.observation import Observation
from disagg_operator.performance.profile import Profile

_PRIOR_ROWS = 0.01
_MEMORY_S = 7200.0
_LEAST_FACTOR, _MOST_FACTOR = 0.02, 1000.0
_LEAST_S = 1.0  # an interval with fewer seconds of computing is left out

Three = tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class Evidence:
    """Faded sums over the rows of one pool.

    They are the upper triangle of the normal equations (`squares`), their right side (`products`),
    and the number of rows (`rows`).
    """

    squares: tuple[float, float, float, float, float, float] = (0.0,) * 6
    products: Three = (0.0,) * 3
    rows: float = 0.0


@dataclass(frozen=True, slots=True)
class Learned:
    """The evidence from the workers of both pools."""

    prefill: Evidence = Evidence()
    decode: Evidence = Evidence()


def observe(learned: Learned, prior: Profile, o: Observation) -> Learned:
    """Add an interval to the evidence. Unknown and impossible signals change nothing."""
    p, d = o.prefill, o.decode
    prefill = _row(
        (prior.a_s, prior.b_s_per_token, prior.c_s_per_token2), (p.batches, p.batch_tokens, p.batch_tokens_squared)
    )
    decode = _row(
        (prior.d_s, prior.e_s_per_sequence, prior.f_s_per_token), (d.steps, d.step_sequences, d.step_kv_tokens)
    )
    return Learned(
        _add(learned.prefill, prefill, p.batch_s, o.interval_s),
        _add(learned.decode, decode, d.step_s, o.interval_s),
    )


def profile(learned: Learned, prior: Profile) -> Profile:
    """Return the prior, corrected by the evidence."""
    a, b, c = factors(learned.prefill)
    d, e, f = factors(learned.decode)
    return replace(
        prior, a_s=a * prior.a_s, b_s_per_token=b * prior.b_s_per_token, c_s_per_token2=c * prior.c_s_per_token2,
        d_s=d * prior.d_s, e_s_per_sequence=e * prior.e_s_per_sequence, f_s_per_token=f * prior.f_s_per_token,
    )  # fmt: skip


def factors(evidence: Evidence) -> Three:
    """Return the factors by which the terms of the prior are multiplied, from 1/50 to 1000."""
    share = _PRIOR_ROWS / max(evidence.rows, 1.0)
    xx, xy, xz, yy, yz, zz = evidence.squares
    prior = [share * max(square, TINY) for square in (xx, yy, zz)]
    matrix = [[xx + prior[0], xy, xz], [xy, yy + prior[1], yz], [xz, yz, zz + prior[2]]]
    right = [p + own for p, own in zip(evidence.products, prior, strict=True)]
    free, found = list(range(len(right))), [_LEAST_FACTOR] * len(right)
    while free:
        rest = [right[i] - sum(matrix[i][j] * _LEAST_FACTOR for j in range(len(right)) if j not in free) for i in free]
        values = _solve([[matrix[i][j] for j in free] for i in free], rest)
        lowest = min(range(len(free)), key=values.__getitem__)
        if values[lowest] >= _LEAST_FACTOR:
            for i, value in zip(free, values, strict=True):
                found[i] = min(value, _MOST_FACTOR)
            break
        del free[lowest]
    return found[0], found[1], found[2]


def _row(coefficients: Three, counts: Three) -> Three:
    """Return the seconds that each term of the prior predicts."""
    x, y, z = (c * n for c, n in zip(coefficients, counts, strict=True))
    return x, y, z


def _add(evidence: Evidence, expected: Three, seconds: float, interval_s: float) -> Evidence:
    if not (all(math.isfinite(x) and x >= 0 for x in expected) and math.isfinite(seconds)):
        return evidence
    if seconds < _LEAST_S or sum(expected) <= 0:
        return evidence
    x, y, z = (v / seconds for v in expected)
    keep = math.exp(-interval_s / _MEMORY_S)
    row = (x * x, x * y, x * z, y * y, y * z, z * z)
    xx, xy, xz, yy, yz, zz = squares = [keep * old + new for old, new in zip(evidence.squares, row, strict=True)]
    px, py, pz = products = [keep * old + new for old, new in zip(evidence.products, (x, y, z), strict=True)]
    if not all(math.isfinite(v) for v in (*squares, *products)):
        return evidence
    return Evidence((xx, xy, xz, yy, yz, zz), (px, py, pz), keep * evidence.rows + 1)


def _solve(matrix: list[list[float]], right: list[float]) -> list[float]:
    """Solve linear equations with a positive definite matrix by Gaussian elimination."""
    n = len(right)
    rows = [[*row, value] for row, value in zip(matrix, right, strict=True)]
    for i in range(n):
        for j in range(i + 1, n):
            factor = rows[j][i] / rows[i][i]
            rows[j] = [b - factor * a for a, b in zip(rows[i], rows[j], strict=True)]
    found = [0.0] * n
    for i in reversed(range(n)):
        found[i] = (rows[i][n] - sum(rows[i][j] * found[j] for j in range(i + 1, n))) / rows[i][i]
    return found
