"""PURE: The facts of a pool from which the process of its engine is rendered."""

from __future__ import annotations

from disagg_operator.api import DisaggDeployment
from disagg_operator.api.quantity import quantity_bytes
from disagg_operator.desired.accelerators import NVIDIA, Maker, maker_of
from disagg_operator.desired.model_places import place_of, uses_hub
from disagg_operator.engines.contract import EnginePool, EngineProcess
from disagg_wire.roles import ROLES

DEFAULT_LEASE_S = 60


def engine_pool(dd: DisaggDeployment, role: str) -> EnginePool:
    """Return the facts of a pool."""
    spec, pool, engine = dd.spec, dd.spec.pool(role), dd.spec.engine
    network = spec.kv_transfer.network
    return EnginePool(
        role=role,
        model=place_of(dd, spec.model.uri),
        served_name=spec.model.served_name,
        revision=spec.model.revision,
        uses_hub=uses_hub(dd),
        loras=tuple((adapter.name, place_of(dd, adapter.uri)) for adapter in spec.model.adapters),
        dtype=engine.dtype,
        quantization=engine.quantization,
        max_model_len=engine.max_model_len,
        block_size=engine.block_size_tokens,
        prefix_cache=engine.prefix_caching.enabled,
        threads=engine.threads,
        tensor=pool.parallelism.tensor,
        accelerators=0 if pool.accelerator is None else pool.accelerator.count,
        max_running=pool.max_running_requests,
        max_batch_tokens=pool.max_batch_tokens,
        kv_cache_bytes=None if pool.kv_cache_size is None else quantity_bytes(pool.kv_cache_size),
        drain_s=pool.drain.timeout_seconds,
        lease_s=engine.lease_seconds or DEFAULT_LEASE_S,
        transport=spec.kv_transfer.transport,
        forbids_fallback=spec.kv_transfer.forbids_fallback,
        interface=None if network is None else network.interface,
        copies=_maker(dd, role).copies,
        experimental=engine.experimental,
        args=(*engine.args, *pool.args),
    )


def _maker(dd: DisaggDeployment, role: str) -> Maker:
    accelerator = dd.spec.pool(role).accelerator
    return (None if accelerator is None else maker_of(accelerator.resource_name)) or NVIDIA


def engine_process(dd: DisaggDeployment, role: str) -> EngineProcess | None:
    """Return the process of a pool's engine, or None for a worker that needs no adapter."""
    render = dd.spec.engine.known.process
    return None if render is None else render(engine_pool(dd, role))


def peer_ports(dd: DisaggDeployment) -> tuple[tuple[int, int], ...]:
    """Return the ranges of TCP ports on which workers reach each other's engines."""
    processes = [engine_process(dd, role) for role in ROLES]
    return tuple(dict.fromkeys(ports for p in processes if p is not None for ports in p.peer_ports))
