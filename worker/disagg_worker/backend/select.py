"""The choice of a backend by the setting `device`."""

from __future__ import annotations

import importlib
import logging
import os
from pathlib import Path

import torch

from disagg_worker.backend.interface import Backend
from disagg_worker.backend.plain import PlainBackend
from disagg_worker.backend.row_by_row import RowByRowBackend
from disagg_worker.values.choices import Numerics

log = logging.getLogger(__name__)


def select(device: str, threads: int, index: int = 0, numerics: Numerics = "auto") -> Backend:
    """Return the backend for a device and for `numerics`: `exact` asks for one whose tokens depend
    on nothing but their sequence; the other two take what is fastest.

    Raises ValueError for what `on_device` refuses, or if `exact` is asked for on a GPU.
    """
    backend = on_device(device, threads, index)
    if numerics != "exact" or backend.exact:
        return backend
    if backend.device.type != "cpu":
        raise ValueError("numerics: exact is not supported on a GPU, where rounding depends on the batch")
    log.warning("numerics exact without the CPU kernels: each token of a prompt takes as long as a decode step")
    return RowByRowBackend(backend.device)


def on_device(device: str, threads: int, index: int = 0) -> Backend:
    """Return the fastest backend for a device.

    `auto` is the GPU if torch sees one, else the CPU. `cpu` uses the CPU kernels, or plain torch if
    there are none for this machine (logged). `cuda` uses the GPU `index`. `plain` is plain torch on
    the CPU. `threads` is the number of threads of the CPU kernels.

    Raises ValueError for another device, or for a GPU that torch does not see.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
        if device == "cpu":
            reason = (
                "torch was built without CUDA"
                if torch.version.cuda is None
                else "torch finds no CUDA device or no driver"
            )
            log.info("device auto: computing on the CPU, for %s", reason)
    if device == "plain":
        return PlainBackend(torch.device("cpu"))
    if device == "cpu":
        return _cpu(threads)
    if device == "cuda":
        return _cuda(index)
    raise ValueError(f"device: {device!r} is not supported (auto, cpu, cuda, plain)")


def _cpu(threads: int) -> Backend:
    from disagg_worker.backend.cpu import build, library
    from disagg_worker.backend.cpu.backend import CpuBackend

    try:
        path = build.find(os.environ, Path("/proc/cpuinfo").read_text())
        return CpuBackend(library.load(path), threads)
    except (build.KernelsUnavailable, OSError, ImportError) as error:
        log.warning("the CPU kernels can't be used, plain torch computes instead: %s", error)
        return PlainBackend(torch.device("cpu"))


def _cuda(index: int) -> Backend:
    if not torch.cuda.is_available():
        raise ValueError("device: cuda was asked for, but torch sees no CUDA device")
    if index >= torch.cuda.device_count():
        raise ValueError(f"device: rank {index} has no GPU, torch sees {torch.cuda.device_count()}")
    # Imported only here, so that neither Triton nor a driver is needed where no GPU is used.
    try:
        package = importlib.import_module("disagg_worker.backend.cuda")
    except ImportError as error:
        log.warning("the CUDA kernels can't be used, plain torch computes instead: %s", error)
        return PlainBackend(torch.device("cuda", index))
    backend: Backend = package.CudaBackend(torch.device("cuda", index))
    return backend
