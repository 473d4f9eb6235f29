"""PURE: What the network must carry: the KV that each pool of a plan sends or takes.

The mean follows from the request rate. The peak is what the prefill pool sends while all of its
workers compute, as after a burst; decode takes it in equal shares.
"""

from __future__ import annotations

from dataclasses import dataclass

from disagg_operator.planning.deployment_plan import Deployment, Plan, Question


@dataclass(frozen=True, slots=True)
class KvLoad:
    """The KV that a pool sends or takes, and what the network interfaces of its workers carry."""

    role: str
    workers: int
    mean_bytes_per_s: float
    """The bytes per second of the whole pool at the mean load."""
    peak_bytes_per_s: float
    """The bytes per second of the whole pool while all prefill workers compute."""
    interface_bytes_per_s: float
    """The bytes per second that the network interface of one worker carries."""

    @property
    def worker_mean_bytes_per_s(self) -> float:
        """The bytes per second of one worker at the mean load."""
        return self.mean_bytes_per_s / self.workers

    @property
    def worker_peak_bytes_per_s(self) -> float:
        """The bytes per second of one worker at the peak."""
        return self.peak_bytes_per_s / self.workers

    @property
    def peak_use(self) -> float:
        """The share of its network interface that a worker needs at the peak; it may exceed 1."""
        return self.worker_peak_bytes_per_s / self.interface_bytes_per_s


def kv_loads(q: Question, d: Deployment) -> list[KvLoad]:
    """Return what each pool of a disaggregated deployment sends or takes."""
    prefill = d.pools[0]
    p, prompt = prefill.profile, q.traffic.prompt
    prompt_s = p.prefill_s(prompt.mean, prompt.second_moment)
    mean, peak = q.kv.bytes_per_s(q.traffic), prefill.replicas * q.kv.bytes_of(prompt.mean) / prompt_s
    return [KvLoad(pool.role, pool.replicas, mean, peak, q.network.bytes_per_s) for pool in d.pools]


KV_COLUMNS = ("KV", "a worker", "pool", "peak, a worker", "peak, pool", "interface carries", "peak use")


def rows(plan: Plan) -> list[list[str]]:
    """Return the KV traffic of each pool in the order of KV_COLUMNS; none without two pools."""
    if not isinstance(plan.disaggregated, Deployment):
        return []
    return [
        [
            f"{load.role} {'sends' if load.role == 'prefill' else 'takes'}",
            *(
                rate(value)
                for value in (
                    load.worker_mean_bytes_per_s, load.mean_bytes_per_s, load.worker_peak_bytes_per_s,
                    load.peak_bytes_per_s, load.interface_bytes_per_s,
                )
            ),
            f"{100 * load.peak_use:.0f} %",
        ]
        for load in kv_loads(plan.question, plan.disaggregated)
    ]  # fmt: skip


def rate(bytes_per_s: float) -> str:
    """Return bytes per second in GB/s."""
    return f"{bytes_per_s / 1e9:.3g} GB/s"


def limits(plan: Plan) -> list[str]:
    """Return the sentences that say where the network is the limit, and not a pool."""
    if not isinstance(plan.disaggregated, Deployment):
        return []
    found, name = [], plan.question.network.name
    for pool in plan.disaggregated.pools:
        if pool.bound == "network":
            found.append(
                f"The network is the limit, not {pool.role}: its {pool.replicas} workers are as many as interfaces of "
                f"{name} are needed for the KV; the mean load needs {pool.mean_replicas}."
            )
    slow = [load for load in kv_loads(plan.question, plan.disaggregated) if load.peak_use > 1]
    for load in slow:
        found.append(
            f"At the peak the network is the limit, not {load.role}: a worker would "
            f"{'send' if load.role == 'prefill' else 'take'} {rate(load.worker_peak_bytes_per_s)}, its interface "
            f"({name}) carries {rate(load.interface_bytes_per_s)}."
        )
    return found


def as_data(plan: Plan) -> list[dict[str, object]]:
    """Return the KV traffic of each pool as data for JSON."""
    if not isinstance(plan.disaggregated, Deployment):
        return []
    return [
        {
            "role": load.role, "workers": load.workers, "mean_bytes_per_s": load.mean_bytes_per_s,
            "peak_bytes_per_s": load.peak_bytes_per_s, "worker_mean_bytes_per_s": load.worker_mean_bytes_per_s,
            "worker_peak_bytes_per_s": load.worker_peak_bytes_per_s,
            "interface_bytes_per_s": load.interface_bytes_per_s, "peak_use": load.peak_use,
        }
        for load in kv_loads(plan.question, plan.disaggregated)
    ]  # fmt: skip
