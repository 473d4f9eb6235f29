"""The worker process.

It starts its HTTP server first, so that its health can be asked for, then loads the model, then
works. On SIGTERM it drains and exits with status 0.
"""

from __future__ import annotations

import logging
import os
import secrets
import threading
from collections.abc import Callable

from disagg_protocol import network_interfaces
from disagg_protocol.errors import EngineError
from disagg_protocol.model_files import source_revision, tokenizer_files
from disagg_protocol.process import Process, run_program
from disagg_wire import series
from disagg_wire.environment import WorkerVariable
from disagg_wire.fabric import USABLE
from disagg_wire.integrity import CRC32C
from disagg_worker import settings
from disagg_worker.engine.engine_config import EngineConfig
from disagg_worker.engine.step_watch import StepRecord
from disagg_worker.server import fabric_start, jobs
from disagg_worker.server.kv_usage import KvUsage
from disagg_worker.server.worker import Worker
from disagg_worker.transfer.compatibility import compat_hash
from disagg_worker.transfer.greeting import MAX_CONNECTIONS
from disagg_worker.transfer.listener import KvListener
from disagg_worker.transfer.nixl_side import needs_host_region, nixl_side
from disagg_worker.transfer.seals import CRC32C_IN_HARDWARE

log = logging.getLogger("disagg_worker")
_INTERFACE_TIMEOUT_S = 10.0
# What is registered at RDMA devices where the size of the cache is the engine's default.
_CACHE_BYTES = 256 << 20


def engine_config(s: settings.Settings, *, host_region: bool = False) -> EngineConfig:
    """Return the configuration of the engine, which is a part of the settings."""
    return EngineConfig(
        name=s.model_name,
        role=s.role,
        dtype=s.dtype,
        quantization=s.quantization,
        numerics=s.numerics,
        block_size_tokens=s.block_size_tokens,
        kv_cache_bytes=s.kv_cache_bytes,
        max_model_len=s.max_model_len,
        max_running=s.max_running,
        max_waiting=s.max_waiting,
        max_batch_tokens=s.max_batch_tokens,
        prefill_wait_s=s.prefill_wait_s,
        prefill_utilisation=s.prefill_utilisation,
        threads=s.threads,
        device=s.device,
        kv_cache_dtype=s.kv_cache_dtype,
        prefix_cache=s.prefix_cache,
        eviction=s.eviction,
        host_cache_bytes=s.host_cache_bytes,
        growth_reserve_tokens=s.growth_reserve_tokens,
        saturating_tokens=s.saturating_tokens,
        decode_step_target_s=s.decode_step_target_s,
        tensor_parallel=s.tensor_parallel,
        rank_timeout_s=s.rank_timeout_s,
        rank_start_timeout_s=s.rank_start_timeout_s,
        staging_buffers=s.transfer_buffers,
        staging_timeout_s=s.transfer_idle_s,
        host_region=host_region,
        log_level=s.log_level,
    )


def load_node(
    s: settings.Settings,
    key: bytes,
    worker: Worker,
    on_lost: Callable[[str], None] = lambda _: None,
    step_record: StepRecord | None = None,
) -> None:
    """Load the model, start the KV listener and give both to the worker.

    This is slow and runs in a thread. Raises ModelError, OSError or TimeoutError.
    """
    from disagg_worker.engine.core import TorchEngine
    from disagg_worker.model import loader

    worker.fabric = fabric_start.prepare(
        s.kv_interface, s.rdma_devices, s.kv_cache_bytes or _CACHE_BYTES, _INTERFACE_TIMEOUT_S, os.environ
    )
    devices = worker.fabric[USABLE] if worker.fabric else ()
    config = engine_config(s, host_region=needs_host_region(s.transport, s.nixl_over_tcp, devices))
    links = worker.metrics.links
    with links.loads(series.DOWNLOAD):
        folder = loader.resolve(s.model_uri, s.model_mount, s.cache_dir)
    log.info("loading %s from %s", s.model_name, folder)
    tokenizer = tokenizer_files(folder)
    with links.loads(series.READ):
        engine = TorchEngine(folder, config, on_progress=worker.on_progress, on_lost=on_lost, step_record=step_record)
    host = (
        network_interfaces.wait_for_ipv4(s.kv_interface, _INTERFACE_TIMEOUT_S)
        if s.kv_interface
        else (s.kv_host or s.host)
    )
    interface = s.kv_interface or network_interfaces.interface_of(host)
    # More than reservations have: who connects with a ticket has to show it first.
    connections = (1 + MAX_CONNECTIONS) * s.max_running + 64
    if s.transfer_integrity == CRC32C and not CRC32C_IN_HARDWARE:
        log.warning("this processor computes no CRC-32C: %s=%s is slow", WorkerVariable.TRANSFER_INTEGRITY, CRC32C)
    listener = KvListener(host, s.kv_port, key, engine.layout, engine.model.vocab_size, s.transfer_idle_s, connections)
    engine.on_starved = listener.recall
    links.uses(interface, listener.oldest_s)
    nixl = nixl_side(engine.cache, s.transport, s.nixl_over_tcp, interface, devices, s.role)
    if nixl is not None:
        worker.metrics.quarantined_blocks.set_function(lambda: nixl.landings.held_blocks)
    worker.tokenizer, worker.source_revision = tokenizer, source_revision(folder)
    worker.node = jobs.Node(
        engine=engine,
        listener=listener,
        metrics=worker.metrics,
        key=key,
        compat=compat_hash(engine.model.digest, engine.layout),
        incarnation=worker.incarnation,
        usage=KvUsage(nixl, interface, worker.metrics),
        interface=interface,
        nixl=nixl,
        ticket_lifetime_s=s.ticket_lifetime_s,
        integrity=s.transfer_integrity,
        connections=s.transfer_connections,
    )
    worker.publish_identity()
    log.info("ready: role %s, KV on %s (%s:%d), %s", s.role, interface, host, listener.port, engine.layout)


def _start_loading(s: settings.Settings, key: bytes, worker: Worker, process: Process) -> threading.Thread:
    """Load in a daemon thread, so that a worker that is stopped while it loads does not have to
    wait.
    """

    def lost(message: str) -> None:
        worker.failed = worker.failed or message
        process.stop_soon()

    def load() -> None:
        try:
            load_node(s, key, worker, lost, process.pulse.board)
        except Exception as error:
            log.error("cannot serve: %s", error, exc_info=not isinstance(error, EngineError | OSError))
            lost(str(error) or type(error).__name__)

    thread = threading.Thread(target=load, name="load", daemon=True)
    thread.start()
    return thread


async def serve(s: settings.Settings) -> int:
    """Run until SIGTERM or until the model cannot be loaded, and return the exit status."""
    key = s.cluster_key()
    worker = Worker(s, key, f"{s.pod_uid or secrets.token_hex(16)}/{secrets.token_hex(16)}")
    process = Process(worker, s.host, s.port, s.drain_timeout_s)
    loading = _start_loading(s, key, worker, process)
    await process.run()
    if worker.node is not None:
        worker.node.listener.close()
        worker.node.engine.stop(5.0)
    status = 1 if worker.failed else 0
    if loading.is_alive():
        # At its own exit, the interpreter would wait for a thread in torch or in a download, or
        # crash.
        logging.shutdown()
        os._exit(status)
    return status


def main() -> None:
    run_program("disagg_worker", settings.from_environment, serve)
