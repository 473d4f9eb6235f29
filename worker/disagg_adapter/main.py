"""The adapter process.

It starts its HTTP servers first, so that its health can be asked for, then waits for the engine and
for the model's files, then serves. On SIGTERM it drains and exits with status 0.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import socket

from disagg_adapter import model_folder, settings
from disagg_adapter.engines.contract import EngineFault, EngineOptions, NotReady
from disagg_adapter.engines.http_client import EngineHttp
from disagg_adapter.engines.table import ENGINES
from disagg_adapter.server import container_routes
from disagg_adapter.server.adapter import Adapter
from disagg_protocol import network_interfaces
from disagg_protocol.errors import EngineError
from disagg_protocol.patient_http import guarded
from disagg_protocol.process import Process, QuietServer, run_program
from disagg_wire.connection_guard import ConnectionLimits, Port

log = logging.getLogger("disagg_adapter")
_INTERFACE_TIMEOUT_S = 10.0
_FILES_INTERVAL_S = 1.0


def make(s: settings.Settings, key: bytes) -> Adapter:
    """Return the adapter of these settings, on the event loop."""
    options = EngineOptions(
        model=s.model_name,
        lease_s=s.lease_s,
        role=s.role,
        experimental=s.experimental,
        host=s.kv_host or s.host,
        bootstrap_port=s.bootstrap_port,
    )
    engine = ENGINES[s.engine](EngineHttp(s.address, s.engine_key()), options)
    return Adapter(s, key, engine, f"{s.pod_uid or secrets.token_hex(16)}/{secrets.token_hex(16)}")


async def _find_files(adapter: Adapter) -> None:
    """Wait for the model's files, which an engine may still be downloading.

    It downloads them one by one, the configuration first. With a part of them, the model would
    have another digest than at the other workers.
    """
    s = adapter.settings
    downloads = s.model_uri.startswith("hf://")
    while True:
        folder = model_folder.find(s.model_files, s.model_uri)
        if folder is not None and (not downloads or await _answers(adapter)):
            break
        await asyncio.sleep(_FILES_INTERVAL_S)
    files = await asyncio.to_thread(model_folder.load, folder, s.model_uri, s.dtype)
    adapter.tokenizer, adapter.files = files.tokenizer, files
    log.info("model files of %s in %s", s.model_name, folder)


async def _answers(adapter: Adapter) -> bool:
    """Return whether the engine has loaded its model, be it of use or not."""
    try:
        await adapter.engine.identify()
    except (NotReady, EngineFault) as waiting:
        adapter.monitor.health.waits_for = str(waiting)
        return False
    except Exception:
        return True  # that it is of no use is for the monitor to say
    return True


async def _start(adapter: Adapter, process: Process) -> None:
    """Find the model's files, then watch the engine for good.

    Without either the process cannot serve, and ends with a word.
    """
    try:
        await _find_files(adapter)
        await adapter.monitor.run()
    except (EngineError, OSError) as error:
        log.error("cannot serve: %s", error)
        adapter.failed = str(error)
        process.stop_soon()
    except Exception as error:
        log.exception("cannot serve")
        adapter.failed = repr(error)
        process.stop_soon()


async def _serve_handovers(server: QuietServer, listening: socket.socket, adapter: Adapter, process: Process) -> None:
    """Serve the KV port until `server.should_exit` is set; nothing else may end it."""
    try:
        await server.serve(sockets=[listening])
    finally:
        if not server.should_exit:
            log.error("the server for hand-overs has ended")
            adapter.failed = "the server for hand-overs has ended"
            process.stop_soon()


async def serve(s: settings.Settings) -> int:
    """Run until SIGTERM or until the model's files turn out to be unusable; return the status."""
    adapter = make(s, s.cluster_key())
    host = s.kv_host or s.host
    if s.kv_interface:
        host = await asyncio.to_thread(network_interfaces.wait_for_ipv4, s.kv_interface, _INTERFACE_TIMEOUT_S)
    adapter.interface = s.kv_interface or network_interfaces.interface_of(host)
    handovers = QuietServer(guarded(adapter.door.app, Port(ConnectionLimits()), 1))
    process = Process(adapter, s.host, s.port, s.drain_timeout_s, container_routes.routes(adapter))
    with socket.create_server((host, s.kv_port), backlog=2048) as listening:
        adapter.handover_address = (host, listening.getsockname()[1])
        tasks = [
            asyncio.create_task(_serve_handovers(handovers, listening, adapter, process)),
            asyncio.create_task(_start(adapter, process)),
        ]
        log.info("hand-overs on %s:%d (%s)", *adapter.handover_address, adapter.interface)
        await process.run()
        handovers.should_exit = True
        tasks[1].cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.gather(*tasks, return_exceptions=True)
    await adapter.sender.close()
    await adapter.engine.close()
    return 1 if adapter.failed else 0


def main() -> None:
    run_program("disagg_adapter", settings.from_environment, serve)
