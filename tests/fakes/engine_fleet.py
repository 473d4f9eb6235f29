"""Two pools of engines of another project, as their metrics pages tell of them.

Requests are a fluid: all are alike, and a pool computes them at a fixed speed of each pod. What a
pool cannot take waits. The pages have the names and the labels of the real ones.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

BOUNDS_TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000)
BOUNDS_S = (0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 10.0)


@dataclass(slots=True)
class EnginePod:
    """The counters of one pod."""

    started_s: float
    waiting: float = 0.0
    running: float = 0.0
    kv_share: float = 0.0
    finished: float = 0.0
    prompt_tokens: float = 0.0
    computed_tokens: float = 0.0
    output_tokens: float = 0.0
    steps: float = 0.0
    gap_s: float = 0.0
    prefill_s: float = 0.0
    lengths: dict[float, float] = field(default_factory=dict)
    ttft: dict[float, float] = field(default_factory=dict)
    tpot: dict[float, float] = field(default_factory=dict)


@dataclass(slots=True)
class EngineFleet:
    """The pods of both pools by role and name, and the requests that they are given."""

    prompt: float = 1000.0
    computed: float = 1000.0
    """The tokens of a prompt that are not cached."""
    output: float = 200.0
    prefill_s: float = 0.1
    """The seconds that a pod takes for a prompt."""
    step_s: float = 0.03
    """The seconds of a decode step, however many requests are in it."""
    most_running: float = 64.0
    """The requests that a decode pod can take at once."""
    now_s: float = 1_700_000_000.0
    arrived: float = 0.0
    pods: dict[str, dict[str, EnginePod]] = field(default_factory=lambda: {"prefill": {}, "decode": {}})
    queues: dict[str, float] = field(default_factory=lambda: {"prefill": 0.0, "decode": 0.0})

    def add(self, role: str, *names: str) -> None:
        """Start pods that can serve at once."""
        for name in names:
            self.pods[role][name] = EnginePod(self.now_s)

    def advance(self, seconds: float, rate: float, step_s: float = 1.0) -> None:
        """Let time pass, while `rate` requests arrive in a second."""
        end_s = self.now_s + seconds
        while self.now_s < end_s - 1e-9:
            part_s = min(step_s, end_s - self.now_s)
            self._prefill(part_s, rate * part_s)
            self._decode(part_s)
            self.now_s += part_s

    def router_page(self) -> str:
        """Return the page of a router of disagg in front of both pools."""
        n, ended = self.arrived, sum(pod.finished for pod in self.pods["decode"].values())
        lines = [
            f"disagg_router_arrivals_total {n}",
            f"disagg_router_arrived_prompt_tokens_total {n * self.prompt}",
            f"disagg_router_arrived_prompt_tokens_squared_total {n * self.prompt**2}",
            f"disagg_router_completions_total {ended}",
            f'disagg_router_completed_tokens_total{{kind="output"}} {ended * self.output}',
            f'disagg_router_completed_tokens_total{{kind="context"}} {ended * (self.prompt + self.output)}',
            *(f'disagg_router_waiting_requests{{pool="{pool}"}} 0' for pool in self.pods),
            *(
                f'disagg_router_objective_requests_total{{objective="{o}",within="true"}} {ended}'
                for o in ("ttft", "tpot")
            ),
            *(f'disagg_router_objective_requests_total{{objective="{o}",within="false"}} 0' for o in ("ttft", "tpot")),
        ]
        return "\n".join(lines) + "\n"

    def _prefill(self, seconds: float, arrived: float) -> None:
        self.arrived += arrived
        pods = list(self.pods["prefill"].values())
        can = len(pods) * seconds / self.prefill_s
        done = min(can, self.queues["prefill"] + arrived)
        self.queues["prefill"] += arrived - done
        wait_s = self.queues["prefill"] * self.prefill_s / max(1, len(pods))
        for pod in pods:
            n = done / len(pods)
            pod.waiting, pod.running = self.queues["prefill"] / len(pods), n * self.prefill_s / seconds
            pod.finished += n
            pod.prompt_tokens += n * self.prompt
            pod.computed_tokens += n * self.computed
            pod.output_tokens += n
            pod.prefill_s += n * self.prefill_s
            pod.lengths[self.prompt] = pod.lengths.get(self.prompt, 0.0) + n
            pod.ttft[wait_s + self.prefill_s] = pod.ttft.get(wait_s + self.prefill_s, 0.0) + n
        self.queues["decode"] += done

    def _decode(self, seconds: float) -> None:
        pods = list(self.pods["decode"].values())
        life_s = self.output * self.step_s
        done = min(self.queues["decode"], len(pods) * self.most_running * seconds / life_s)
        late = self.queues["decode"] > done + 1e-9
        self.queues["decode"] -= done
        for pod in pods:
            n = done / len(pods)
            pod.waiting, pod.running = self.queues["decode"] / len(pods), n * life_s / seconds
            pod.kv_share = pod.running * (self.prompt + self.output / 2) / 400_000
            pod.finished += n
            pod.prompt_tokens += n * self.prompt
            pod.output_tokens += n * self.output
            pod.steps += seconds / self.step_s if n else 0.0
            pod.gap_s += n * self.output * self.step_s
            pod.lengths[self.prompt] = pod.lengths.get(self.prompt, 0.0) + n
            tpot_s = self.step_s * (5 if late else 1)
            pod.tpot[tpot_s] = pod.tpot.get(tpot_s, 0.0) + n

    def page(self, engine: str, role: str, name: str) -> str:
        """Return the page of a pod in the words of an engine."""
        return PAGES[engine](self.pods[role][name], role)


def _histogram(name: str, labels: str, seen: Mapping[float, float], bounds: tuple[float, ...]) -> list[str]:
    lines = [f"# TYPE {name} histogram"]
    for bound in bounds:
        lines.append(f'{name}_bucket{{{labels},le="{float(bound)}"}} {sum(n for v, n in seen.items() if v <= bound)}')
    total = sum(seen.values())
    lines += [f'{name}_bucket{{{labels},le="+Inf"}} {total}', f"{name}_count{{{labels}}} {total}"]
    return [*lines, f"{name}_sum{{{labels}}} {sum(v * n for v, n in seen.items())}"]


def _vllm(pod: EnginePod, role: str) -> str:
    labels = 'engine="0",model_name="m"'

    def line(name: str, value: float, more: str = "") -> str:
        return f"vllm:{name}{{{labels}{more}}} {value}"

    cached = pod.prompt_tokens - pod.computed_tokens
    sources = {"local_compute": pod.computed_tokens, "local_cache_hit": cached, "external_kv_transfer": 0.0}
    if role == "decode":
        sources = {"local_compute": 0.0, "local_cache_hit": 0.0, "external_kv_transfer": pod.prompt_tokens}
    lines = [
        f"process_start_time_seconds {pod.started_s}",
        line("num_requests_waiting", pod.waiting),
        line("num_requests_running", pod.running),
        line("kv_cache_usage_perc", pod.kv_share),
        line("generation_tokens_total", pod.output_tokens),
        line("iteration_tokens_total_count", pod.steps),
        line("prefix_cache_hits_total", cached),
        line("cache_config_info", 1.0, ',block_size="16",num_gpu_blocks="25000"'),
        line("request_success_total", pod.finished, ',finished_reason="length"'),
        line("request_success_total", 0.0, ',finished_reason="abort"'),
        line("request_generation_tokens_sum", pod.output_tokens),
        line("request_prefill_time_seconds_sum", pod.prefill_s),
        line("inter_token_latency_seconds_sum", pod.gap_s),
        line("inter_token_latency_seconds_count", pod.output_tokens),
        *(line("prompt_tokens_by_source_total", n, f',source="{source}"') for source, n in sources.items()),
        *_histogram("vllm:request_prompt_tokens", labels, pod.lengths, BOUNDS_TOKENS),
        *_histogram("vllm:time_to_first_token_seconds", labels, pod.ttft, BOUNDS_S),
        *_histogram("vllm:request_time_per_output_token_seconds", labels, pod.tpot, BOUNDS_S),
    ]
    return "\n".join(lines) + "\n"


def _sglang(pod: EnginePod, role: str) -> str:
    labels = f'engine_type="{role}",model_name="m"'

    def line(name: str, value: float, more: str = "") -> str:
        return f"sglang:{name}{{{labels}{more}}} {value}"

    generated = pod.output_tokens if role == "decode" else pod.finished
    lines = [
        line("startup_time_seconds", pod.started_s % 1e6, ',phase="load_weight"'),
        line("num_queue_reqs", pod.waiting),
        line("num_running_reqs", pod.running),
        line("token_usage", pod.kv_share),
        line("max_total_num_tokens", 400_000),
        line("num_requests_total", pod.finished),
        line("prompt_tokens_total", pod.prompt_tokens),
        line("generation_tokens_total", generated),
        line("cached_tokens_total", pod.prompt_tokens - pod.computed_tokens),
        line("realtime_tokens_total", pod.computed_tokens, ',mode="prefill_compute"'),
        line("realtime_tokens_total", generated, ',mode="decode"'),
        *_histogram("sglang:prompt_tokens_histogram", labels, pod.lengths, BOUNDS_TOKENS),
        *_histogram("sglang:time_to_first_token_seconds", labels, pod.ttft, BOUNDS_S),
        *_histogram("sglang:inter_token_latency_seconds", labels, pod.tpot, BOUNDS_S),
    ]
    return "\n".join(lines) + "\n"


def _builtin(pod: EnginePod, role: str) -> str:
    lines = [
        f"disagg_worker_waiting_requests {pod.waiting}",
        f"disagg_worker_running_requests {pod.running}",
        f"disagg_worker_kv_tokens {pod.kv_share * 400_000}",
        "disagg_worker_kv_capacity_tokens 400000",
        f"disagg_worker_generated_tokens_total {pod.output_tokens if role == 'decode' else pod.finished}",
    ]
    return "\n".join(lines) + "\n"


PAGES: dict[str, Callable[[EnginePod, str], str]] = {"vllm": _vllm, "sglang": _sglang, "builtin": _builtin}
