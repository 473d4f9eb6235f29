"""PURE: The volumes in which pods write, and how much each of them may hold.

They are on the disk of the node, which all of its pods share. The kubelet evicts a pod that writes
more than the limit of a volume; without one, it evicts whichever pods it likes once the disk is
full.
"""

from __future__ import annotations

from disagg_operator.api import DisaggDeployment
from disagg_operator.desired.model_places import uses_hub
from disagg_operator.desired.renderer import BOUNDED_VOLUMES, CURRENT
from disagg_operator.vocabulary import Obj

# A compiler's files and sockets.
_TMP_GIB = 16
# What engines compile for their GPUs, and keep.
_CACHE_GIB = 32
# A checkpoint as it is downloaded may hold several times what the GPUs do: they may get it
# quantized, and a repository may have it in more than one form.
_CHECKPOINT_GIB, _CHECKPOINT_GIB_PER_DEVICE = 64, 512


def tmp_volume(name: str = "tmp", renderer: int = CURRENT) -> Obj:
    """Return a volume for short-lived files."""
    return _volume(name, _TMP_GIB, renderer)


def cache_volume(dd: DisaggDeployment, role: str, renderer: int = CURRENT) -> Obj:
    """Return the volume into which a worker downloads its model, and its engine compiles.

    How large a model of the hub is, nobody knows before; its limit follows the worker's devices.
    """
    size = _CACHE_GIB
    if uses_hub(dd):
        size += max(_CHECKPOINT_GIB, _devices(dd, role) * _CHECKPOINT_GIB_PER_DEVICE)
    return _volume("cache", size, renderer)


def _devices(dd: DisaggDeployment, role: str) -> int:
    """Return the number of devices over which a worker's weights are spread, 0 on a CPU."""
    pool = dd.spec.pool(role)
    if pool.accelerator is None and pool.device_claim is None:
        return 0
    return max(pool.parallelism.tensor, 0 if pool.accelerator is None else pool.accelerator.count)


def _volume(name: str, gib: int, renderer: int) -> Obj:
    return {"name": name, "emptyDir": {"sizeLimit": f"{gib}Gi"} if renderer >= BOUNDED_VOLUMES else {}}
