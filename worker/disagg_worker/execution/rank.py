"""The process of a rank above 0: `python -m disagg_worker.execution.rank SOCKET_FD MEMORY_FD`.

It loads its part and then computes the steps that rank 0 sends, until rank 0 closes the socket or
dies.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import signal
import socket
import sys
import threading
from pathlib import Path
from typing import Any, NoReturn

import torch

from disagg_wire import log_lines
from disagg_worker.backend.select import select
from disagg_worker.execution import rank_json, step_bytes
from disagg_worker.execution.cache_memory import CacheMemory, HostCopy
from disagg_worker.execution.channel import Channel, MessageKind
from disagg_worker.execution.collectives import Collectives, join_store
from disagg_worker.execution.executor import LocalExecutor
from disagg_worker.execution.shared_staging import SharedMemory, move_of
from disagg_worker.model import loader
from disagg_worker.model.decoder import Decoder
from disagg_worker.model.network import load_network
from disagg_worker.model.weights import Shard
from disagg_worker.values.layouts import KvLayout

log = logging.getLogger(__name__)
Messages = queue.Queue[tuple[MessageKind, bytes]]


def _listen(channel: Channel, messages: Messages, moves: Messages) -> None:
    """Read messages, in a thread of its own so that rank 0's end is noticed even during a step."""
    try:
        while True:
            message = channel.receive()
            (moves if message[0] is MessageKind.MOVE else messages).put(message)
    except (OSError, ValueError):
        logging.shutdown()
        os._exit(0)


def _expect(messages: Messages, kind: MessageKind) -> dict[str, Any]:
    found, content = messages.get()
    if found is not kind:
        raise RuntimeError(f"expected {kind.name}, got {found.name}")
    return rank_json.loads(content)


def _load(start: dict[str, Any]) -> tuple[Decoder, Collectives]:
    torch.set_num_threads(start["threads"])
    folder = Path(start["folder"])
    backend = select(start["device"], start["threads"], start["rank"], start["numerics"])
    dtype = loader.DTYPES[start["dtype"]]
    collectives = Collectives(start["rank"], start["size"], backend.device, start["timeout_s"])
    loaded = load_network(
        folder,
        loader.load_config(folder),
        dtype,
        backend,
        positions=start["positions"],
        shard=Shard(start["rank"], start["size"]),
        parallel=collectives,
        quantization=start["quantization"],
    )
    return loaded.network, collectives


def _move(channel: Channel, moves: Messages, cache: CacheMemory, memory: SharedMemory) -> None:
    """Copy KV between the cache and shared buffers, beside the steps."""
    try:
        while True:
            content = rank_json.loads(moves.get()[1])
            cache.move(memory, move_of(content))
            channel.send_json(MessageKind.MOVED, {"number": content["number"]})
    except Exception as error:
        _fail(channel, error)


def _fail(channel: Channel, error: Exception) -> NoReturn:
    """End this rank, which rank 0 is told if it is still there."""
    log.exception("this rank failed")
    with contextlib.suppress(OSError):
        channel.send_json(MessageKind.FAILED, {"message": str(error) or type(error).__name__})
    logging.shutdown()
    os._exit(1)


def _serve(channel: Channel, messages: Messages, moves: Messages, memory_fd: int) -> None:
    start = _expect(messages, MessageKind.START)
    log_lines.configure(start["log_level"], f"%(asctime)s %(levelname)s rank {start['rank']}: %(message)s")
    network, collectives = _load(start)
    device = network.backend.device
    free_bytes = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 0
    channel.send_json(MessageKind.LOADED, {"free_bytes": free_bytes})
    cache = _expect(messages, MessageKind.CACHE)
    collectives.connect(join_store(start["store_port"], start["size"], start["timeout_s"]))
    layout = KvLayout(**cache["layout"])
    dtype: torch.dtype = getattr(torch, layout.dtype)
    buffers = cache["buffers"]
    host = None if buffers else HostCopy(layout, cache["blocks"], dtype, memory_fd)
    heads = Shard(start["rank"], start["size"]).part(layout.kv_heads)
    memory = CacheMemory(layout, cache["blocks"], dtype, device, heads, host)
    if buffers:
        ends = channel, moves, memory, SharedMemory(memory_fd, buffers)
        threading.Thread(target=_move, args=ends, name="kv-moves", daemon=True).start()
    executor = LocalExecutor(network, memory)
    channel.send_json(MessageKind.READY, {})
    while True:
        kind, content = messages.get()
        if kind is not MessageKind.STEP:
            raise RuntimeError(f"expected STEP, got {kind.name}")
        number, step = step_bytes.decode(content)

        def exported(layer: int, number: int = number) -> None:
            channel.send_json(MessageKind.EXPORTED, {"step": number, "layer": layer})

        executor.run(step, exported if step.export else None)


def main() -> None:
    # Only rank 0 reacts to signals; it ends the others by closing their sockets.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    channel = Channel(socket.socket(fileno=int(sys.argv[1])), send_timeout_s=60.0)
    messages: Messages = queue.Queue(maxsize=16)
    moves: Messages = queue.Queue()  # There are no more than buffers.
    threading.Thread(target=_listen, args=(channel, messages, moves), name="messages", daemon=True).start()
    try:
        _serve(channel, messages, moves, int(sys.argv[2]))
    except Exception as error:
        _fail(channel, error)


if __name__ == "__main__":
    main()
