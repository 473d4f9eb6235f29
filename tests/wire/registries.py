"""The metrics of each process as they are registered, with or without values."""

from __future__ import annotations

from prometheus_client import CollectorRegistry

from disagg_adapter.metrics import Metrics as AdapterMetrics
from disagg_adapter.metrics import Snapshot
from disagg_operator.autoscaling.policy.decision import Decision
from disagg_operator.controller.metrics import Metrics as OperatorMetrics
from disagg_operator.kube.cache import Cache
from disagg_router.generation_metrics import GenerationMetrics
from disagg_router.metrics import BreakerMetrics, SplitMetrics
from disagg_router.metrics import Metrics as RouterMetrics
from disagg_router.objectives import Objectives
from disagg_router.process_metrics import ProcessMetrics
from disagg_router.tracing.tracing_metrics import TracingMetrics
from disagg_wire.engine_metrics.readings import Readings
from disagg_worker.server.metrics import Metrics as WorkerMetrics
from disagg_worker.server.worker import Worker
from disagg_worker.settings import Settings as WorkerSettings
from disagg_worker.values.engine_load import Load


def operator() -> list[CollectorRegistry]:
    """Return the registry of an operator that has made one decision, about one resource."""
    metrics = OperatorMetrics()
    status = {"conditions": [{"type": "Ready", "status": "True", "reason": "Ready"}]}
    metrics.watch_deployments(lambda: [{"metadata": {"namespace": "a", "name": "b"}, "status": status}], Cache())
    metrics.scaling.decision(("a", "b"), "decode", Decision(1, 2, "X", "Forecast", 1.0, 0.0, "", {"forecast": 1.0}))
    return [metrics.registry]


def router() -> list[CollectorRegistry]:
    """Return the registry of a router with objectives and with pairs."""
    metrics = RouterMetrics(Objectives(1.0, 0.05))
    metrics.watch(lambda: {"decode": 0}, lambda: {"healthy": 1}, lambda: {("tcp", "Proved"): 1})
    SplitMetrics(metrics.registry)
    TracingMetrics(metrics.registry)
    BreakerMetrics(metrics.registry, dict, {}, float)
    ProcessMetrics(metrics.registry, lambda: {"decode": 0.0})
    GenerationMetrics(metrics.registry, Objectives(1.0, 0.05))
    return [metrics.registry]


def worker() -> list[CollectorRegistry]:
    """Return the registries of a worker with a load, and of one that has published its identity."""
    work = [f"prefill_{name}" for name in ("batches", "batch_tokens", "batch_tokens_squared", "batch_seconds")]
    work += [f"decode_{name}" for name in ("steps", "step_sequences", "step_kv_tokens", "step_seconds")]
    load = Load(
        0,
        0,
        0,
        9,
        9,
        0,
        0,
        steps_total={"decode": 1},
        step_seconds_total={"rest": 1.0},
        work_total=dict.fromkeys(work, 0.0),
    )
    values = {"role": "decode", "model_uri": "file:///m", "model_name": "m", "cluster_key_file": "/key"}
    process = Worker(WorkerSettings.model_validate(values), b"k" * 32, "uid/boot")
    process.publish_identity()
    return [WorkerMetrics(lambda: load, 16).registry, process.metrics.registry]


def adapter() -> list[CollectorRegistry]:
    """Return the registry of an adapter whose engine tells everything."""
    names = ["prefill_batches", "prefill_batch_tokens", "prefill_batch_tokens_squared", "prefill_batch_seconds"]
    names += ("decode_steps", "decode_step_sequences", "decode_step_kv_tokens", "decode_step_seconds")
    work = dict.fromkeys(names, 0.0)
    readings = Readings(prompt_tokens_by_source={"local_compute": 1.0})
    metrics = AdapterMetrics(lambda: Snapshot(readings, work, 0, 0, 0, 0, 0))
    metrics.info.info({"role": "decode"})
    return [metrics.registry]


PROCESSES = {"operator": operator, "router": router, "worker": worker, "adapter": adapter}


def series(registries: list[CollectorRegistry]) -> dict[str, frozenset[str]]:
    """Return the labels of each series as it is exposed, such as `x_bucket` and `x_sum`."""
    found: dict[str, frozenset[str]] = {}
    for registry in registries:
        for collector, names in registry._collector_to_names.items():
            for family in collector.collect():
                for sample in family.samples:
                    found[sample.name] = found.get(sample.name, frozenset()) | sample.labels.keys()
            for name in names:
                own = frozenset(getattr(collector, "_labelnames", ()))
                labels = own | ({"le"} if name.endswith("_bucket") else set())
                found[name] = found.get(name, frozenset()) | labels
    return found


def metrics(registries: list[CollectorRegistry]) -> set[str]:
    """Return the names of our metrics, without the suffixes of a histogram's series."""
    suffix = {"counter": "_total", "info": "_info"}
    families = [family for registry in registries for family in registry.collect()]
    return {f.name + suffix.get(f.type, "") for f in families if not f.name.startswith("process_")}
