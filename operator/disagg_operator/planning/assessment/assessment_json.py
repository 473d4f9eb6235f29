"""PURE: An assessment as plain data for JSON. What is infinite or unknown is null."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

from disagg_operator.planning import report
from disagg_operator.planning.assessment import comparison
from disagg_operator.planning.assessment.bucket_counts import Between
from disagg_operator.planning.assessment.comparison import ServiceAssessment
from disagg_operator.planning.assessment.interference import Interference
from disagg_operator.planning.assessment.request_load import LengthSummary, RequestLoad


def as_data(a: ServiceAssessment) -> dict[str, Any]:
    """Return the whole assessment."""
    word, sentence = comparison.advice(a)
    return {
        "source": a.source,
        "engine": a.engine or None,
        "model": a.model or None,
        "advice": word,
        "headline": sentence,
        "remarks": comparison.remarks(a),
        "workload": _workload(a.workload),
        "prefill_disturbs_decode": _interference(a.interference),
        "within_objectives_today": {
            "ttft_share": _between(a.attained.ttft), "tpot_share": _between(a.attained.tpot), "kept": a.attained.kept,
        },
        "today": None if a.today is None else {
            "workers": a.today.workers, "counted": a.today.found, "gpus": a.today.gpus, "gpu": a.today.gpu,
            _cost_field(a): a.today.cost_per_hour,
        },
        "plan": None if a.plan is None else report.as_data(a.plan),
    }  # fmt: skip


def _cost_field(a: ServiceAssessment) -> str:
    priced = a.plan is not None and a.plan.question.prices_per_hour
    return "cost_per_hour" if priced else "gpu_hours_per_hour"


def _workload(w: RequestLoad) -> dict[str, Any]:
    return {
        "requests": w.requests,
        "seconds": w.span_s,
        "requests_per_s": w.mean_per_s,
        "busiest_requests_per_s": w.busiest_per_s,
        "dispersion": w.bursts,
        "prompt_tokens": _lengths(w.prompt),
        "answer_tokens": _lengths(w.answer),
        "cached_share": w.cached_share,
        "hours": [asdict(hour) for hour in w.hours],
        "hours_are_utc": w.clock,
    }


def _lengths(lengths: LengthSummary) -> dict[str, Any]:
    return {"mean": lengths.mean, "median": _between(lengths.median), "tail": _between(lengths.tail)}


def _between(found: Between | None) -> dict[str, float | None] | None:
    return None if found is None else {"low": found.low, "high": found.high if math.isfinite(found.high) else None}


def _interference(found: Interference) -> dict[str, Any]:
    return {
        "verdict": found.verdict,
        "why": found.why or None,
        "late_s": found.late_s if math.isfinite(found.late_s) else None,
        "busy": None if found.busy is None else asdict(found.busy),
        "quiet": None if found.quiet is None else asdict(found.quiet),
    }
