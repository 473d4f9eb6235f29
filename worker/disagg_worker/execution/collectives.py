"""Sums and gathers over the ranks with torch.distributed: gloo on CPUs, NCCL on GPUs.

There is no global group, so two engines can share a process.

Everything listens on the loopback interface, since neither the store nor gloo authenticates its
peers (compare CVE-2025-47277, a TCPStore on every interface).
"""

from __future__ import annotations

import os
import socket
from datetime import timedelta
from typing import Any

import torch
from torch import distributed
from torch.distributed.distributed_c10d import GatherOptions

# torch's own type stubs lack half of the names used here.
c10d: Any = distributed
_LOOPBACK = "127.0.0.1"


class Collectives:
    """Implements model.decoder.Parallel, once `connect` has been called.

    If a rank dies or hangs, the calls of the others raise RuntimeError, after the timeout at the
    latest.
    """

    def __init__(self, rank: int, size: int, device: torch.device, timeout_s: float) -> None:
        self.rank, self.size = rank, size
        self._device = device
        self._ordered = device.type != "cuda"
        self._timeout = timedelta(seconds=timeout_s)
        self._group: Any
        self._store: Any  # It must outlive the group.

    def connect(self, store: Any) -> None:
        """Connect to the other ranks, which must do the same at about the same time.

        Raises RuntimeError if they do not.
        """
        self._store = store
        if self._device.type == "cuda":
            os.environ.setdefault("NCCL_SOCKET_IFNAME", "lo")
            torch.cuda.set_device(self._device)
            nccl = c10d.ProcessGroupNCCL.Options()
            nccl._timeout = self._timeout
            self._group = c10d.ProcessGroupNCCL(store, self.rank, self.size, nccl)
        else:
            gloo = c10d.ProcessGroupGloo._Options()
            gloo._devices = [c10d.ProcessGroupGloo.create_device(hostname=_LOOPBACK)]
            gloo._timeout = self._timeout
            self._group = c10d.ProcessGroupGloo(store, self.rank, self.size, gloo)

    def sum_(self, x: torch.Tensor) -> torch.Tensor:
        """Implement Parallel.sum_.

        On CPUs the partial sums are added in the order of the ranks, because gloo's own order
        depends on the size of x and on its algorithm. NCCL's is fixed for one shape and one
        machine.
        """
        if not self._ordered:
            self._group.allreduce([x]).wait()
            return x
        parts = [torch.empty_like(x) for _ in range(self.size)]
        self._group.allgather([parts], [x.contiguous()]).wait()
        torch.add(parts[0], parts[1], out=x)
        for part in parts[2:]:
            x.add_(part)
        return x

    def gather(self, x: torch.Tensor, widths: list[int]) -> torch.Tensor:
        if not x.shape[0]:  # Chunks that end no prompt need no logits.
            return x
        most = max(widths)
        part = torch.nn.functional.pad(x, (0, most - x.shape[1])).contiguous()
        parts = [torch.empty_like(part) for _ in widths] if self.rank == 0 else []
        options = GatherOptions()
        options.rootRank = 0
        self._group.gather([parts] if parts else [], [part], options).wait()
        return torch.cat([p[:, :w] for p, w in zip(parts, widths, strict=True)], dim=1) if parts else x


def serve_store(size: int, timeout_s: float) -> tuple[Any, int]:
    """Start the store through which the ranks find each other, on the loopback interface only.

    Returns the store and its port.
    """
    listening = socket.create_server((_LOOPBACK, 0))
    port = listening.getsockname()[1]
    timeout = timedelta(seconds=timeout_s)
    # The store closes the descriptor. `wait_for_workers` is False because ranks connect when they
    # are up.
    store = c10d.TCPStore(_LOOPBACK, port, size, True, timeout, False, master_listen_fd=listening.detach())
    return store, port


def join_store(port: int, size: int, timeout_s: float) -> Any:
    return c10d.TCPStore(_LOOPBACK, port, size, False, timedelta(seconds=timeout_s))
