"""PURE: the same resource as plain processes on one machine, for `disagg local`.

The environment is that of the pods.
"""

from __future__ import annotations

from dataclasses import dataclass

from disagg_operator.api import DisaggDeployment
from disagg_operator.desired.environment import router_environment, worker_environment
from disagg_wire.environment import RouterVariable, WorkerVariable


@dataclass(frozen=True, slots=True)
class ProcessSpec:
    """One process to run: `module` by `python -m`, with this environment on top of the caller's."""

    name: str
    module: str
    environment: dict[str, str]


def worker_process(dd: DisaggDeployment, role: str, index: int, port: int, key_file: str) -> ProcessSpec:
    """The index-th worker of a pool, on loopback; the kernel picks its KV port."""
    name = f"{dd.metadata.name}-{role}-{index}"
    own = {
        WorkerVariable.HOST: "127.0.0.1",
        WorkerVariable.PORT: str(port),
        WorkerVariable.KV_PORT: "0",
        WorkerVariable.POD_NAME: name,
        WorkerVariable.CLUSTER_KEY_FILE: key_file,
    }
    return ProcessSpec(name, "disagg_worker", worker_environment(dd, role) | own)


def router_process(dd: DisaggDeployment, port: int, key_file: str, membership_file: str) -> ProcessSpec:
    """The router, on loopback; it finds the workers in a file."""
    own = {
        RouterVariable.HOST: "127.0.0.1",
        RouterVariable.PORT: str(port),
        RouterVariable.CLUSTER_KEY_FILE: key_file,
        RouterVariable.MEMBERSHIP: f"file://{membership_file}",
    }
    return ProcessSpec(f"{dd.metadata.name}-router", "disagg_router", router_environment(dd) | own)
