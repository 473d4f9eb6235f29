"""PURE: What runs today beside a plan for it, and the advice that follows."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

from disagg_operator.planning import report
from disagg_operator.planning.assessment.bucket_counts import Between, BucketCounts
from disagg_operator.planning.assessment.interference import Interference
from disagg_operator.planning.assessment.request_load import RequestLoad
from disagg_operator.planning.capacity import Infeasible
from disagg_operator.planning.deployment_plan import Deployment, Kind, Plan, best_disaggregated, best_monolithic
from disagg_operator.planning.traffic import LatencyObjectives

Kept = Literal["yes", "no", "unknown"]
Advice = Literal["one-pool", "two-pools", "as-is", "infeasible", "unknown"]
# Formulas assume independent arrivals, for which the dispersion is 1.
_BURSTY = 1.5


@dataclass(frozen=True, slots=True)
class Today:
    """What serves the workload now."""

    workers: int
    gpus_per_worker: int
    gpu: str
    found: bool
    """Whether the workers were counted, and not given."""
    cost_per_hour: float
    """The cost in the currency of the prices; without prices, the number of GPUs."""

    @property
    def gpus(self) -> int:
        return self.workers * self.gpus_per_worker


@dataclass(frozen=True, slots=True)
class Attained:
    """The share of today's requests that are within the objectives, as far as buckets tell."""

    ttft: Between | None
    tpot: Between | None
    percentile: float

    @property
    def kept(self) -> Kept:
        """Whether both objectives are kept today."""
        known = [share for share in (self.ttft, self.tpot) if share is not None]
        if any(share.high < self.percentile for share in known):
            return "no"
        both = self.ttft is not None and self.tpot is not None
        return "yes" if both and all(share.low >= self.percentile for share in known) else "unknown"


@dataclass(frozen=True, slots=True)
class ServiceAssessment:
    """Everything that the command tells."""

    source: str
    engine: str
    """The name of the engine, or "" for a log of requests."""
    model: str
    """The name under which the model is served today, if it is known."""
    workload: RequestLoad
    interference: Interference
    attained: Attained
    today: Today | None
    plan: Plan | None
    least: Kind | None
    """The kind that is cheaper with the lower ends of the lengths; None: they are known exactly."""


def attained(ttft: BucketCounts | None, tpot: BucketCounts | None, objectives: LatencyObjectives) -> Attained:
    """Return the shares within the objectives."""
    first = ttft.share_within(objectives.ttft_s) if ttft is not None and ttft.count > 0 else None
    rest = tpot.share_within(objectives.tpot_s) if tpot is not None and tpot.count > 0 else None
    return Attained(first, rest, objectives.percentile)


def kind_at_least(plan: Plan, workload: RequestLoad) -> Kind | None:
    """Return the cheaper kind with the lower ends of the lengths, if they are intervals."""
    if workload.is_exact:
        return None
    rate = plan.question.traffic.requests_per_s
    question = replace(plan.question, traffic=workload.traffic(rate, least=True))
    return replace(plan, disaggregated=best_disaggregated(question), monolithic=best_monolithic(question)).recommended


def advice(a: ServiceAssessment) -> tuple[Advice, str]:
    """Return what to do, as a word and as a sentence."""
    if a.plan is None:
        return "unknown", "No plan: --model names the model to plan for."
    apart, together = a.plan.disaggregated, a.plan.monolithic
    if a.plan.recommended == "none":
        return "infeasible", "No plan: no deployment on these GPUs meets the objectives."
    if a.plan.recommended == "monolithic":
        assert isinstance(together, Deployment)
        if isinstance(apart, Infeasible):
            why = f"two pools are infeasible ({apart.limit}: {apart.reason})"
        else:
            why = f"two pools would cost {_cost(a, apart)}, one pool {_cost(a, together)}"
        return "one-pool", f"Stay with one pool: {why}."
    assert isinstance(apart, Deployment)
    if a.today is not None and a.today.cost_per_hour <= apart.cost_per_hour and a.attained.kept != "no":
        cost = report.money(a.plan, a.today.cost_per_hour)
        return "as-is", f"Stay with what runs today: it costs {cost}, and two pools would cost {_cost(a, apart)}."
    if report.is_close(a.plan):
        assert isinstance(together, Deployment)
        costs = f"two pools would cost {_cost(a, apart)}, one pool {_cost(a, together)}"
        return "one-pool", f"Stay with one pool until `disagg profile` has measured it: {costs}."
    other = (
        f"one pool would cost {_cost(a, together)}" if isinstance(together, Deployment) else "one pool is infeasible"
    )
    return "two-pools", f"Move to two pools: they cost {_cost(a, apart)}, and {other}."


def _cost(a: ServiceAssessment, d: Deployment) -> str:
    assert a.plan is not None
    return f"{report.money(a.plan, d.cost_per_hour)} ({d.gpus} GPUs)"


def remarks(a: ServiceAssessment) -> list[str]:
    """Return the sentences that a reader needs to judge the advice."""
    out = []
    if a.plan is not None:
        out += _of_plan(a, a.plan)
        out += [note for note in report.notes(a.plan) if not note.startswith("Sizes:")]
        out.append("Sizes come from queueing formulas; `disagg plan --trace` and `--simulate` serve the requests.")
    if a.workload.bursts is not None and a.workload.bursts >= _BURSTY:
        out.append(
            f"Requests come in bursts (dispersion {a.workload.bursts:.1f}); the formulas assume independent arrivals. "
            "Check the counts with `disagg plan --trace` and a log of requests."
        )
    if not a.workload.is_exact:
        out.append("Lengths and latencies come from buckets: percentiles are between two bounds.")
    if a.workload.cached_share > 0:
        share = f"{100 * a.workload.cached_share:.0f} %"
        out.append(f"The plan counts on a prefix cache that holds {share} of the prompt tokens.")
    return out


def _of_plan(a: ServiceAssessment, plan: Plan) -> list[str]:
    out, word = [], advice(a)[0]
    if report.is_close(plan):
        out.append("Both plans are within 10 % of each other, which is less than the estimate may be wrong.")
    if a.least is not None and a.least not in (plan.recommended, "none"):
        kind = "two pools" if a.least == "disaggregated" else "one pool"
        out.append(f"With the lower ends of the lengths, {kind} would be cheaper: the buckets cannot decide it.")
    if word == "two-pools" and a.interference.verdict == "no" and a.attained.kept == "yes":
        out.append("Prefill does not disturb decode today and the objectives are kept: the gain is in the price alone.")
    chosen = plan.chosen
    if a.today is None or chosen is None:
        return out
    if a.attained.kept == "yes" and a.today.gpus < chosen.gpus:
        out.append(
            f"Today's {a.today.gpus} GPUs keep the objectives, and {chosen.gpus} are planned: the plan is too cautious "
            "for this engine; measure it with `disagg profile`."
        )
    elif a.today.cost_per_hour > chosen.cost_per_hour:
        saved = report.money(plan, a.today.cost_per_hour - chosen.cost_per_hour)
        out.append(f"Today's {a.today.gpus} GPUs cost {saved} more than the planned {chosen.gpus}.")
    return out


def interference_words(found: Interference) -> str:
    """Return whether prefill disturbs decode, in words."""
    if found.verdict == "unknown" and found.quiet is None:
        return f"It is not known whether prefill disturbs decode: {found.why}."
    quiet, busy = found.quiet, found.busy
    assert quiet is not None
    assert busy is not None
    opening = {
        "yes": "Prefill disturbs decode",
        "no": "Prefill does not disturb decode",
        "unknown": f"It is not known whether prefill disturbs decode ({found.why})",
    }[found.verdict]
    late = f"over {report.seconds(found.late_s)}"
    return (
        f"{opening}: at {busy.computed_per_s:,.0f} prompt tokens/s a token takes {report.seconds(busy.gap_s)} and "
        f"{100 * busy.late_share:.2g} % take {late}; at {quiet.computed_per_s:,.0f}, {report.seconds(quiet.gap_s)} and "
        f"{100 * quiet.late_share:.2g} %. Requests running in a worker: {busy.running:.1f} and {quiet.running:.1f}."
    )


def between(found: Between, unit: str = "") -> str:
    """Return an interval in words, or the value if it is known exactly."""
    low = f"{found.low:,.0f}{unit}"
    if found.low == found.high:
        return low
    return f"over {low}" if math.isinf(found.high) else f"{low} to {found.high:,.0f}{unit}"


def share_words(found: Between | None) -> str:
    """Return a share in percent, which buckets may only bound."""
    if found is None:
        return "not known"
    low, high = f"{100 * found.low:.2f}", f"{100 * found.high:.2f}"
    return f"{low} %" if low == high else f"{low} to {high} %"
