"""From a setting to a backend."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import torch

from disagg_worker.backend.api import Backend
from disagg_worker.backend.plain import PlainBackend

log = logging.getLogger(__name__)


def select(device: str, threads: int) -> Backend:
    """`cpu`: the kernels, or plain torch where there are none for this machine (logged); `plain`: plain torch on the CPU."""
    if device == "plain":
        return PlainBackend(torch.device("cpu"))
    if device != "cpu":
        raise ValueError(f"device: {device!r} is not supported (cpu, plain)")
    from disagg_worker.backend.cpu import build, library
    from disagg_worker.backend.cpu.backend import CpuBackend

    try:
        path = build.find(os.environ, Path("/proc/cpuinfo").read_text())
        return CpuBackend(library.load(path), threads)
    except (build.KernelsUnavailable, OSError) as error:
        log.warning("the CPU kernels can't be used, plain torch computes instead: %s", error)
        return PlainBackend(torch.device("cpu"))
