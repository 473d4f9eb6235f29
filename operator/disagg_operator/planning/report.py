"""PURE: The report of a plan in words and as plain data, for the terminal, JSON and HTML."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from disagg_operator.performance.expert_profile import ExpertProfile
from disagg_operator.performance.hardware import NETWORKS, Gpu
from disagg_operator.performance.model_shape import ModelShape
from disagg_operator.planning import network_load
from disagg_operator.planning.capacity import Infeasible, PoolPlan, with_tail_in_cache
from disagg_operator.planning.deployment_plan import Deployment, Plan, Question, cost_of

_KINDS = {"prefill": "prefill", "decode": "decode", "both": "prefill + decode"}
_BOUNDS = {
    "compute": "compute", "ttft": "TTFT", "tpot": "TPOT", "cache": "KV cache", "batch": "batch limit",
    "network": "network", "ttft and tpot": "TTFT and TPOT", "simulation": "simulation",
}  # fmt: skip


def seconds(value: float) -> str:
    """Return a time in seconds with a suitable unit."""
    return f"{1e6 * value:.0f} us" if value < 1e-3 else f"{1e3 * value:.3g} ms" if value < 1 else f"{value:.2f} s"


def rounded(value: float) -> str:
    """Return a number rounded to two digits, such as 42, 180 or 1300."""
    return f"{float(f'{value:.2g}'):g}"


def size(value: float) -> str:
    """Return a number of bytes in decimal units."""
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:.3g} TB"


def money(plan: Plan, value: float) -> str:
    """Return the cost of an hour in the currency of the prices, or in GPU-hours without prices."""
    if math.isinf(value):
        return "-"
    return f"{value:,.2f} an hour" if plan.question.prices_per_hour else f"{value:,.0f} GPU-hours/h"


# Published measurements are met within 11 % (benchmarks/results/planner.md).
CLOSE = 0.10


def is_close(plan: Plan) -> bool:
    """Return whether the costs of both kinds differ by no more than the estimate may be wrong."""
    low, high = sorted((cost_of(plan.disaggregated), cost_of(plan.monolithic)))
    return math.isfinite(high) and high - low <= CLOSE * high


def headline(plan: Plan) -> str:
    """Return the recommendation in words."""
    q = plan.question
    apart, together = cost_of(plan.disaggregated), cost_of(plan.monolithic)
    if plan.recommended == "none":
        assert isinstance(plan.disaggregated, Infeasible)
        return "Infeasible: no deployment on these GPUs meets the objectives."
    saved = (
        f"{100 * (1 - min(apart, together) / max(apart, together)):.0f} % less"
        if math.isfinite(apart + together)
        else ""
    )
    doubt = (
        f" Both are within {100 * CLOSE:.0f} % of each other, which is less than the estimate may be wrong."
        if is_close(plan)
        else ""
    )
    if plan.recommended == "monolithic":
        why = (
            "disaggregation is infeasible"
            if not saved
            else "it costs the same and is simpler"
            if apart == together
            else f"it costs {saved}"
        )
        return f"Recommended: monolithic. At {q.traffic.requests_per_s:.4g} requests/s {why}.{doubt}"
    why = f"it costs {saved}" if saved else "a single pool can't keep the objectives"
    return f"Recommended: disaggregated. At {q.traffic.requests_per_s:.4g} requests/s {why}.{doubt}"


def crossover(plan: Plan) -> str:
    """Return the rate from which disaggregation is cheaper, in words."""
    if plan.simulated_rates:
        return _simulated_crossover(plan)
    highest = plan.rates[-1][0]
    if plan.crossover_per_s is None:
        if all(math.isinf(apart) for _, apart, _ in plan.rates):
            return "Disaggregation is infeasible at every rate."
        return f"No crossover up to {highest:g} requests/s: even at that rate a single pool is as cheap or cheaper."
    if plan.crossover_per_s == plan.rates[0][0]:
        return f"Disaggregation is cheaper at every rate from {plan.rates[0][0]:g} to {highest:g} requests/s."
    low = rounded(plan.crossover_per_s)
    return f"Crossover: disaggregation is cheaper from about {low} requests/s (up to {highest:g})."


def _simulated_crossover(plan: Plan) -> str:
    rates = plan.simulated_rates
    tried = f"{rates[0][0]:.3g} to {rates[-1][0]:.3g} requests/s" if len(rates) > 1 else f"{rates[0][0]:.3g} requests/s"
    if plan.crossover_per_s is None:
        return f"No crossover, simulated at {tried}: a single pool is as cheap or cheaper."
    if plan.crossover_per_s == rates[0][0]:
        return f"Disaggregation is cheaper, simulated at {tried}."
    low = rounded(plan.crossover_per_s)
    return (
        f"Crossover: disaggregation is cheaper from about {low} requests/s, simulated at {len(rates)} rates, {tried}."
    )


def notes(plan: Plan) -> list[str]:
    """Return the sentences that a reader needs to judge the figures."""
    q = plan.question
    out = [f"{name} is infeasible: {d.limit}: {d.reason}." for name, d in both(plan) if isinstance(d, Infeasible)]
    out.append(crossover(plan))
    out += network_load.limits(plan)
    out += [headroom(plan, p) for _, d in both(plan) if isinstance(d, Deployment) for p in d.pools]
    if not q.prices_per_hour:
        out.append("Without prices (--price) every GPU counts the same, so a small one costs as much as a large one.")
    used = {p.gpu.name: p.gpu for _, d in both(plan) if isinstance(d, Deployment) for p in d.pools}
    out += [
        f"{name}: {'times of the given profile' if name in q.measured else roof_line(gpu)}."
        for name, gpu in sorted(used.items())
    ]
    out += of_experts(plan)
    out.append(
        "Sizes: simulated, request by request, with fixed pools; the crossover is "
        + ("simulated, too." if plan.simulated_rates else "from the formulas.")
        if plan.simulated
        else "Sizes: queueing formulas; --simulate checks them request by request."
    )
    for _, d in both(plan):
        if isinstance(d, Deployment) and not all(with_tail_in_cache(p, q.traffic) for p in d.pools):
            out.append("A request of tail lengths does not fit into one replica's cache: it would be refused.")
            break
    longest = q.traffic.prompt.tail + q.traffic.output.tail
    if q.model.context_tokens is not None and longest > q.model.context_tokens:
        out.append(f"A request of tail lengths has {longest:.0f} tokens; the model takes {q.model.context_tokens}.")
    return out


def of_experts(plan: Plan) -> list[str]:
    """Return the assumptions about a model with experts, latent attention or windows."""
    q = plan.question
    pools = [p for _, d in both(plan) if isinstance(d, Deployment) for p in d.pools]
    out = [_curve(q, p, p.profile) for p in pools if p.role != "prefill" and isinstance(p.profile, ExpertProfile)]
    if out:
        out.insert(0, "Experts: routing is assumed uniform. Expert parallelism over several nodes is not planned.")
    if any(spread(p) for p in pools):
        out.append(
            "Parallel experts n: n GPUs share the routed experts; each holds all other weights and the cache of its "
            "own sequences."
        )
    if q.model.latent is not None and any(p.tensor > 1 and not spread(p) for p in pools):
        out.append("Parallel tensor n: each of the n GPUs holds the latent cache of all sequences of its replica.")
    if q.model.window is not None:
        kept = f"layers that attend to the last {q.model.window.tokens:,} tokens are assumed to store no more"
        out.append(f"Windows: {kept}; check that your engine does so with its KV connector enabled.")
    if q.model.experts is not None or q.model.latent is not None:
        out.append("The bundled engine does not serve such models: the plan is for another engine.")
    return out


def _curve(q: Question, p: PoolPlan, profile: ExpertProfile) -> str:
    """Return the deviation of a decode step from a straight line, in words."""
    experts, few = q.model.experts, max(1, p.batch // 4)
    assert experts is not None
    many, some = (f"{100 * experts.touched(n) / experts.count:.0f} %" for n in (p.batch, few))
    words = f"{_KINDS[p.role]}: a step of {p.batch} sequences reads {many} of the experts"
    if few == p.batch:
        return words + "."
    error = f"{100 * profile.fit_error(few, q.traffic.held_tokens):.0f} % too slow at {few}"
    line = f"Simulation and autoscaling use a straight line, exact at {p.batch} and {error}."
    return f"{words}, one of {few} reads {some}. {line}"


def roof_line(gpu: Gpu) -> str:
    """Return the maker's figures of a GPU and their source."""
    flops, bandwidth = gpu.bf16_flops / 1e12, gpu.bandwidth_bytes_per_s / 1e12
    figures = f"{flops:.0f} TFLOP/s bf16, {bandwidth:.3g} TB/s, {size(gpu.memory_bytes)}"
    return f"roof line, of {figures} ({gpu.source})"


def both(plan: Plan) -> tuple[tuple[str, Deployment | Infeasible], ...]:
    """Return both deployments of a plan with their names."""
    return ("disaggregated", plan.disaggregated), ("monolithic", plan.monolithic)


def pool_row(p: PoolPlan, chunk_tokens: int = 0) -> list[str]:
    """Return the cells of a pool in the order of POOL_COLUMNS."""
    batch = {"prefill": f"{p.batch:,} tokens", "decode": f"{p.batch} sequences"}.get(
        p.role, f"{p.batch} seq., chunks of {chunk_tokens}"
    )
    return [
        _KINDS[p.role], f"{p.gpus} x {p.gpu.name}", replicas(p), parallelism(p), batch,
        f"{100 * p.utilisation:.0f} %", _BOUNDS[p.bound],
    ]  # fmt: skip


def headroom(plan: Plan, p: PoolPlan) -> str:
    """Return what the replicas of a pool are for, in words."""
    more, percentile = p.replicas - p.mean_replicas, 100 * plan.question.objectives.percentile
    needed = f"{_KINDS[p.role]}: the mean load needs {p.mean_replicas} of {p.replicas} replicas"
    if more == 0:
        return f"{needed}; there is room for p{percentile:g} in them."
    why = "interfaces of the network" if p.bound == "network" else f"head-room for p{percentile:g}"
    return f"{needed}; {more} {'is' if more == 1 else 'are'} {why}."


def replicas(p: PoolPlan) -> str:
    """Return the number of replicas, split into those for the mean load and the head-room."""
    return f"{p.replicas} ({p.mean_replicas} + {p.replicas - p.mean_replicas})"


def parallelism(p: PoolPlan) -> str:
    """Return the way in which a replica is split over its GPUs, such as `tensor 4`."""
    return f"{'experts' if spread(p) else 'tensor'} {p.tensor}"


def spread(p: PoolPlan) -> bool:
    """Return whether only the routed experts are distributed over the GPUs of a replica."""
    return isinstance(p.profile, ExpertProfile) and p.profile.ranks > 1


POOL_COLUMNS = ("pool", "GPUs", "replicas", "parallel", "batch", "utilisation", "limited by")
DEPLOYMENT_COLUMNS = ("", "GPUs", "cost", "output tokens/s per GPU", "TTFT", "TPOT")
TRANSFER_COLUMNS = ("network", "mean prompt", "tail prompt", "not hidden behind prefill")


def deployment_row(plan: Plan, name: str, d: Deployment | Infeasible) -> list[str]:
    """Return the cells of a deployment in the order of DEPLOYMENT_COLUMNS."""
    if isinstance(d, Infeasible):
        return [name, "infeasible", "-", "-", "-", "-"]
    per_gpu = plan.question.traffic.output_tokens_per_s / d.gpus
    return [name, str(d.gpus), money(plan, d.cost_per_hour), f"{per_gpu:.1f}", seconds(d.ttft_s), seconds(d.tpot_s)]


def transfers(plan: Plan) -> list[list[str]]:
    """Return the transfer times of KV over each network, in the order of TRANSFER_COLUMNS.

    They are those of a mean and of a tail prompt, and the part of the latter that delays the user.
    """
    q = plan.question
    rows = []
    prefill = plan.disaggregated.pools[0].profile if isinstance(plan.disaggregated, Deployment) else None
    for name, network in NETWORKS.items():
        kv = type(q.kv)(q.model, network)
        tail = q.traffic.prompt.tail
        exposed = seconds(kv.exposed_s(tail, prefill.isolated_s(tail))) if prefill else "-"
        mark = f"{name} (planned)" if name == q.network.name else name
        rows.append([mark, seconds(kv.alone_s(q.traffic.prompt.mean)), seconds(kv.alone_s(tail)), exposed])
    return rows


def question_rows(plan: Plan) -> list[tuple[str, str]]:
    """Return the inputs of a plan, and the figures that follow from them, as labels and values."""
    q, t = plan.question, plan.question.traffic
    p = f"p{100 * q.objectives.percentile:g}"
    m = q.model
    kv = f"{q.kv.model.kv_bytes_per_token:,.0f} bytes a token" if m.window is None else windowed(m)
    tokens = f"{t.prompt_tokens_per_s:,.0f} prompt and {t.output_tokens_per_s:,.0f} output tokens/s"
    return [
        ("model", f"{m.name}: {shape_words(m)}"),
        ("weights", f"{size(m.weight_bytes)}, {billions(m.parameters)} parameters" + (
            f", {billions(m.active_parameters)} of them for a token" if m.experts else "")),
        ("KV cache", f"{kv}; {size(q.kv.bytes_of(t.prompt.mean))} for a mean prompt"),
        ("traffic", f"{t.requests_per_s:.4g} requests/s, {tokens}"),
        ("prompts", f"{t.prompt.mean:.0f} tokens, {p} {t.prompt.tail:.0f}"),
        ("answers", f"{t.output.mean:.0f} tokens, {p} {t.output.tail:.0f}"),
        ("objectives", f"{p}: TTFT {seconds(q.objectives.ttft_s)}, TPOT {seconds(q.objectives.tpot_s)}"),
    ]  # fmt: skip


def shape_words(m: ModelShape) -> str:
    """Return the shape of a model in words."""
    cache = f"latent KV of {m.latent.rank} + {m.latent.rope}" if m.latent else f"{m.kv_heads} KV heads"
    words = [f"{m.layers} layers", f"{m.heads} heads", cache]
    if m.experts is None:
        return ", ".join([*words, f"{m.weight_bits}-bit weights"])
    e = m.experts
    bits = f"{m.weight_bits}-bit weights" + (
        "" if m.routed_bits == m.weight_bits else f" ({m.routed_bits:g} bits in experts)"
    )
    shared = " and a shared one" if e.shared_width else ""
    return ", ".join([*words, f"{e.per_token} of {e.count} experts{shared} in {e.layers} layers", bits])


def windowed(m: ModelShape) -> str:
    """Return the size of the KV of a token, in words, for a model that has a window."""
    assert m.window is not None
    growing = m.kv_bytes(m.window.tokens + 1) - m.kv_bytes(m.window.tokens)
    return (
        f"{m.kv_bytes_per_token:,.0f} bytes a token, {growing:,.0f} once more than {m.window.tokens:,} later ones came"
    )


def billions(parameters: float) -> str:
    """Return a number of parameters with three digits, such as 70.6B."""
    value = float(f"{parameters / 1e9:.3g}")
    return f"{value:,g}B" if value >= 1 else f"{parameters / 1e6:.3g}M"


def as_data(plan: Plan) -> dict[str, Any]:
    """Return the whole plan as data for JSON. Infinite costs are null."""
    q = plan.question
    return {
        "recommended": plan.recommended,
        "headline": headline(plan),
        "crossover_requests_per_s": plan.crossover_per_s,
        "crossover_simulated": bool(plan.simulated_rates),
        "within_10_percent": is_close(plan),
        "simulated": plan.simulated,
        "notes": notes(plan),
        "model": {
            "name": q.model.name,
            "parameters": q.model.parameters,
            "active_parameters": q.model.active_parameters,
            "weight_bytes": q.model.weight_bytes,
            "kv_bytes_per_token": q.model.kv_bytes_per_token,
        },
        "traffic": {
            "requests_per_s": q.traffic.requests_per_s,
            "prompt_mean_tokens": q.traffic.prompt.mean,
            "prompt_tail_tokens": q.traffic.prompt.tail,
            "output_mean_tokens": q.traffic.output.mean,
            "output_tail_tokens": q.traffic.output.tail,
        },
        "objectives": {
            "ttft_s": q.objectives.ttft_s,
            "tpot_s": q.objectives.tpot_s,
            "percentile": q.objectives.percentile,
        },
        "deployments": {name: _deployment(q.prices_per_hour, d) for name, d in both(plan)},
        "transfer_s": _transfer_data(plan),
        "network": network_load.as_data(plan),
        "rates": _rates(plan.rates),
        "simulated_rates": _rates(plan.simulated_rates),
    }


def _rates(rates: Sequence[tuple[float, float, float]]) -> list[dict[str, float | None]]:
    return [{"requests_per_s": r, "disaggregated": _finite(a), "monolithic": _finite(t)} for r, a, t in rates]


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _deployment(prices: Any, d: Deployment | Infeasible) -> dict[str, Any]:
    if isinstance(d, Infeasible):
        return {"feasible": False, "limit": d.limit, "reason": d.reason}
    return {
        "feasible": True,
        "gpus": d.gpus,
        ("cost_per_hour" if prices else "gpu_hours_per_hour"): d.cost_per_hour,
        "ttft_s": d.ttft_s,
        "tpot_s": d.tpot_s,
        "kv_exposed_s": d.exposed_s,
        "pools": [_pool(p) for p in d.pools],
    }


def _pool(p: PoolPlan) -> dict[str, Any]:
    return {
        "role": p.role, "gpu": p.gpu.name, "replicas": p.replicas, "mean_load_replicas": p.mean_replicas,
        "headroom_replicas": p.replicas - p.mean_replicas, "tensor_parallel": 1 if spread(p) else p.tensor,
        "expert_parallel": p.tensor if spread(p) else 1, "gpus": p.gpus, "batch": p.batch,
        "utilisation": p.utilisation, "limited_by": p.bound, "kv_tokens": p.profile.kv_tokens,
    }  # fmt: skip


def _transfer_data(plan: Plan) -> dict[str, dict[str, float]]:
    q = plan.question
    tokens: Sequence[tuple[str, float]] = (
        ("mean_prompt", q.traffic.prompt.mean),
        ("tail_prompt", q.traffic.prompt.tail),
    )
    return {
        name: {label: network.transfer_s(q.kv.bytes_of(n)) for label, n in tokens} for name, network in NETWORKS.items()
    }  # fmt: skip
