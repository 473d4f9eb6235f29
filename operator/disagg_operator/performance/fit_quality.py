"""PURE: Whether a fitted profile describes what was measured, or why it does not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median, quantiles

from disagg_operator.performance.fit import Fitted

MOST_ERROR = 0.30
_LEAST_TIMES = 3  # fewer times of the same request have no quartiles


@dataclass(frozen=True, slots=True)
class Repeated:
    """The times in seconds of the same request, measured again and again."""

    what: str
    seconds: tuple[float, ...]

    @property
    def spread(self) -> float:
        """The relative distance of the upper from the lower quartile; 0 for too few times."""
        if len(self.seconds) < _LEAST_TIMES:
            return 0.0
        low, _, high = quantiles(self.seconds, n=4, method="inclusive")
        return high / low - 1


def refusals(fitted: Fitted, repeated: Sequence[Repeated], most_error: float = MOST_ERROR) -> list[str]:
    """Return why a profile must not be used; empty if nothing speaks against it.

    `most_error` is the largest relative error, and the largest difference between measurements of
    the same request, that is accepted.
    """
    found = []
    p, known = fitted.profile, [r for r in repeated if len(r.seconds) >= _LEAST_TIMES]
    if p.b_s_per_token <= 0 and p.c_s_per_token2 <= 0:
        short, long = fitted.prefill[0], fitted.prefill[-1]
        found.append(
            f"the time of a prompt does not grow with its length: {_ms(short.measured_s)} for {short.what}, "
            f"{_ms(long.measured_s)} for {long.what}"
        )
    if known and median(r.spread for r in known) > most_error:
        worst = max(known, key=lambda r: r.spread)
        found.append(
            f"the machine is busy: the same request took {_ms(min(worst.seconds))} to {_ms(max(worst.seconds))} "
            f"({worst.what}), and most lengths differ by more than {100 * most_error:.0f} % from one time to the next. "
            "Stop what else runs there, or send no other requests, and measure again"
        )
    rows = [*fitted.prefill, *fitted.decode]
    wrong = [r for r in rows if abs(r.error) > most_error]
    if wrong:
        worst_fit = max(wrong, key=lambda r: abs(r.error))
        found.append(
            f"{len(wrong)} of {len(rows)} times are not fitted within {100 * most_error:.0f} %: {worst_fit.what} took "
            f"{_ms(worst_fit.measured_s)}, the profile says {_ms(worst_fit.fitted_s)}. Measure longer (--seconds), or "
            "a smaller range (--max-prompt-tokens, --max-batch)"
        )
    return found


def _ms(value: float) -> str:
    return f"{1e3 * value:.3g} ms"
