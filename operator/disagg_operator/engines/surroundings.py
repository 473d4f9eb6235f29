"""PURE: The environment that every stock engine image gets: caches, threads and UCX.

The root file system is read-only and the user has no name in the image: whatever engines and their
libraries write goes to two empty volumes.
"""

from __future__ import annotations

from disagg_operator.engines.contract import EnginePool
from disagg_wire.environment import WorkerOption

CACHE_MOUNT = "/cache"
TMP_MOUNT = "/tmp"  # noqa: S108 (a mount point inside the pod)
# The interface of a pod's own network.
POD_INTERFACE = "eth0"
# The variables that `common` sets, and those that would contradict the pod. Those of networks are
# the user's to replace.
RESERVED = (
    str(WorkerOption.HF_HOME), "HF_HUB_CACHE", "HF_HUB_OFFLINE", "HOME", "OMP_NUM_THREADS", "TMPDIR",
    "TRANSFORMERS_OFFLINE", "UCX_TCP_PORT_RANGE", "USER",
)  # fmt: skip


def common(pool: EnginePool) -> dict[str, str]:
    """Return the variables of caches and threads."""
    out: dict[str, str] = {
        "HOME": CACHE_MOUNT,
        WorkerOption.HF_HOME: CACHE_MOUNT,
        "TMPDIR": TMP_MOUNT,
        # Without a name of the user, torch asks the password database, which does not know it.
        "USER": "disagg",
        "OMP_NUM_THREADS": str(pool.threads),
    }
    # The network policy lets pods reach the hub only where something is fetched from it.
    return out if pool.uses_hub else out | {"HF_HUB_OFFLINE": "1"}


def ucx(pool: EnginePool) -> dict[str, str]:
    """Return the variables of UCX, which moves the KV cache for NIXL.

    The devices of an attached network are found in the pod (disagg_operator.engines.launch).
    """
    out = {} if pool.interface else {"UCX_NET_DEVICES": POD_INTERFACE}
    if pool.transport == "rdma":
        if pool.forbids_fallback:
            out["UCX_TLS"] = ",".join(("rc", *pool.copies)) if pool.accelerators else "^tcp"
    elif not pool.accelerators:
        out["UCX_TLS"] = "tcp"
    elif pool.transport == "tcp":
        out["UCX_TLS"] = f"tcp,{pool.copies[1]}"
    return out
