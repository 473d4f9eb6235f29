"""PURE: The processes that serve a resource on one machine, for `disagg local`.

They get the environment that pods would get.
"""

from __future__ import annotations

from dataclasses import dataclass

from disagg_operator.api import DisaggDeployment
from disagg_operator.desired.environment import router_environment, transport_environment, worker_environment
from disagg_wire.environment import RouterVariable, WorkerVariable


@dataclass(frozen=True, slots=True)
class ProcessSpec:
    """A process to run: a Python module with an environment."""

    name: str
    module: str
    """The module that is run by `python -m`."""
    environment: dict[str, str]
    """The variables that are added to the environment of the caller."""


def worker_process(dd: DisaggDeployment, role: str, index: int, port: int, key_file: str) -> ProcessSpec:
    """Return a worker of a pool on the loopback interface. The kernel chooses its KV port."""
    name = f"{dd.metadata.name}-{role}-{index}"
    own = {
        WorkerVariable.HOST: "127.0.0.1",
        WorkerVariable.PORT: str(port),
        WorkerVariable.KV_PORT: "0",
        WorkerVariable.POD_NAME: name,
        WorkerVariable.CLUSTER_KEY_FILE: key_file,
    }
    return ProcessSpec(name, "disagg_worker", worker_environment(dd, role) | transport_environment(dd) | own)


def router_process(dd: DisaggDeployment, port: int, key_file: str, membership_file: str) -> ProcessSpec:
    """Return the router on the loopback interface. It reads the list of workers from a file."""
    own = {
        RouterVariable.HOST: "127.0.0.1",
        RouterVariable.PORT: str(port),
        RouterVariable.CLUSTER_KEY_FILE: key_file,
        RouterVariable.MEMBERSHIP: f"file://{membership_file}",
    }
    return ProcessSpec(f"{dd.metadata.name}-router", "disagg_router", router_environment(dd) | own)
