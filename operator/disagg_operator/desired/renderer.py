"""PURE: The versions of the renderer, and the steps in which it changed.

An object that is rendered differently may restart all pods of a deployment. Therefore each
deployment keeps the version with which it was first rendered, until somebody asks for another one
(`desired/pins.py`). A step is a constant: the first version that renders something in a new way.
The code that renders it asks `images.renderer >= STEP`; nothing else is kept of older versions.
"""

from __future__ import annotations

# Release 0.1.0.
FIRST = 1

# Workers request CPU and memory, so that they are not the first pods that a full node evicts.
WORKER_REQUESTS = 2
# A disruption budget does not protect pods that are not ready: a node with nothing else can be
# drained.
UNREADY_ARE_EVICTED = 2
# A rollout has as long as a worker may take to load its model.
PATIENT_ROLLOUT = 2
# Only the port of the API is open on routers.
ROUTER_POLICY = 2
# A router that ends waits longer than it may hold requests.
ROUTERS_OUTLAST_HOLDS = 2
# The status of a container that has failed quotes the end of its log.
LAST_WORDS = 2
# Bundled workers know the transport that the spec prefers.
WORKER_TRANSPORT = 2
# Workers are attached to their network once for each RDMA device that they ask for.
NETWORK_OF_EACH_DEVICE = 2
# The rdma plugin is chained where virtual functions are the RDMA devices.
RDMA_CHAIN = 2
# A subnet is passed to host-local by its first address.
SUBNETS_FIRST_ADDRESS = 2
# Workers that are not root don't ask for IPC_LOCK, which is of no use to them, and tell which
# devices they find and how much memory they may lock.
RDMA_REPORTS = 2
# Nodes are chosen by the labels and tolerated by the taints of the accelerator's maker.
MAKERS_LABELS = 2
# A pod that is deleted as it starts hears of it.
SIGNAL_AFTER_START = 2
# Workers that reach the web do not reach link-local addresses, where clouds have credentials.
NO_METADATA_SERVICES = 2
# Containers that a podTemplate adds are confined as the operator's, unless they ask for more.
CONFINED_SIDECARS = 2
# No pod may fill the disk of its node.
BOUNDED_VOLUMES = 2

CURRENT = 2
