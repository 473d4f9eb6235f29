"""PURE: The interface that the module of every engine implements.

An engine's module says what a resource may ask of the engine, and renders the process that serves
it. Everything else in the operator knows engines only through these classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from disagg_wire.engine_metrics.engine_series import EngineSeries
from disagg_wire.engine_metrics.readings import PoolReadings
from disagg_wire.engine_metrics.sample_table import Samples, names_read
from disagg_wire.engines import AUTO, RDMA, TCP

# The TCP ports on which UCX may listen, which its UCX_TCP_PORT_RANGE pins; the network policy opens
# them between workers.
UCX_PORTS = (21000, 21255)
# The ports that the kernel hands out where an engine asks for any free one. Pods of such engines
# pin the range by a sysctl that Kubernetes counts as safe, since nodes may have another one.
EPHEMERAL_PORTS = (32768, 60999)
EPHEMERAL_SYSCTL = ("net.ipv4.ip_local_port_range", "32768 60999")


_MOVES_BY_ITSELF = "the engine moves KV by itself"
# The values that every engine of another project can have. Which way KV takes within a machine is
# the engine's own choice.
ADAPTED_VALUES = {"engine.prefixCaching.eviction": ("lru",), "kvTransfer.transport": (AUTO, RDMA, TCP)}
# The fields that no engine of another project has.
ADAPTED_ABSENT = {
    "engine.prefixCaching.hostMemory": "",
    "engine.numerics": "how the engine rounds is up to its own arguments",
    "kvTransfer.integrity": _MOVES_BY_ITSELF,
    "router.localPrefillMaxTokens": _MOVES_BY_ITSELF,
}
# The reason of an experiment in which nothing keeps KV until decode has read it.
UNPINNED_KV = "UnpinnedKV"


class TensorRule(StrEnum):
    """The tensor parallel sizes that the two pools may have together."""

    ANY = "any"
    INTEGER_RATIO = "integer ratio"
    EQUAL = "equal"
    EQUAL_IF_EXPERIMENTAL = "equal if experimental"


@dataclass(frozen=True, slots=True)
class EngineLimits:
    """The fields of a spec that an engine cannot map, or not with every value.

    The paths are those of the API below `spec`. They become rules of the resource, in CEL.
    """

    values: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """The values that an enumeration may have."""
    absent: Mapping[str, str] = field(default_factory=dict)
    """The fields that must not be set, each with advice or ""."""
    cpu_alone: tuple[tuple[str, str], ...] = ()
    """The values of fields, each with its path, that no pool with accelerators can have."""
    off: tuple[str, ...] = ()
    """The switches that must not be on."""
    needs_accelerators: bool = False
    """Whether both pools must have accelerators."""
    tensor: TensorRule = TensorRule.ANY
    batch_holds_running: bool = False
    """Whether maxBatchTokens must be at least maxRunningRequests."""
    batch_in_blocks: bool = False
    """Whether maxBatchTokens must be a multiple of blockSizeTokens."""
    experimental_transport: str | None = None
    """The only transport of the experimental hand-over."""


@dataclass(frozen=True, slots=True)
class EnginePool:
    """The facts of one pool from which its engine's process is rendered."""

    role: str
    """The role of the pool."""
    model: str
    """The folder of the model in the container, or its ORG/NAME on the Hugging Face hub."""
    served_name: str
    """The name of the model in requests."""
    revision: str | None
    """The branch, tag or commit of a model on the hub."""
    uses_hub: bool
    """Whether the model or an adapter comes from the hub."""
    loras: tuple[tuple[str, str], ...]
    """The name of each LoRA adapter, and its folder or its ORG/NAME on the hub."""
    dtype: str
    quantization: str
    max_model_len: int | None
    block_size: int
    prefix_cache: bool
    threads: int
    tensor: int
    accelerators: int
    max_running: int
    max_batch_tokens: int
    kv_cache_bytes: int | None
    drain_s: int
    lease_s: int
    """The seconds for which prefill keeps KV that decode has not read."""
    transport: str
    """The transport that the spec declares, one of those in ADAPTED_VALUES."""
    forbids_fallback: bool
    """Whether no other transport than the declared one may be used."""
    interface: str | None
    """The interface of the attached network, or None for the pod's own."""
    copies: tuple[str, str]
    """The transports of UCX within a node and between its accelerators' memory and the host's."""
    experimental: bool
    args: tuple[str, ...]
    """The arguments of the user, which come last."""


@dataclass(frozen=True, slots=True)
class EngineProcess:
    """The process of an engine in its container, and what its pod must provide."""

    command: tuple[str, ...]
    environment: Mapping[str, str]
    role: str
    """The role in which the router uses the worker."""
    address_variables: tuple[str, ...] = ()
    """The variables that get the pod's address on the network of the KV cache."""
    pins_devices: bool = False
    """Whether UCX must be told the devices of the network."""
    ports: Mapping[str, int] = field(default_factory=dict)
    """The ports, by name, on which the container is reached from outside the pod."""
    peer_ports: tuple[tuple[int, int], ...] = ()
    """The ranges of TCP ports on which workers reach each other's engines."""
    sysctls: tuple[tuple[str, str], ...] = ()
    guarded: bool = False
    """Whether the engine listens on the pod's address, and asks for the key of its adapter."""


@dataclass(frozen=True, slots=True)
class EngineMeter:
    """The reader of an engine's own metrics, where no adapter and no router of ours is."""

    port: int
    """The port at which the engine serves them unless it is told another one."""
    series: EngineSeries
    """Their names, by which `disagg assess` reads an engine that somebody else has started."""
    readings_of: Callable[[Samples], PoolReadings]

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all samples that are read."""
        return names_read(self.readings_of)


@dataclass(frozen=True, slots=True)
class Experiment:
    """What `engine.experimental` puts at risk, as the condition Experimental says it."""

    reason: str
    message: str
    """A sentence that says what may go wrong, and what to watch."""


@dataclass(frozen=True, slots=True)
class Engine:
    """An engine as the operator knows it."""

    name: str
    limits: EngineLimits
    image: str | None = None
    """The default image, or None: the operator's own worker image."""
    owned: Mapping[str, str] = field(default_factory=dict)
    """The arguments that the operator sets, each with the field to use instead, or "".

    A name that ends with * stands for all arguments that begin so.
    """
    reserved: tuple[str, ...] = ()
    """The environment variables that the operator sets beside those of every worker."""
    process: Callable[[EnginePool], EngineProcess] | None = None
    """Renders the process. None: the worker speaks the token protocol itself, without adapter."""
    meter: EngineMeter | None = None
    """Its own metrics, if it can be read by them. None: by the series of our worker."""
    serves_every_model: bool = False
    """Whether it serves mixtures of experts and latent attention."""
    experiment: Experiment | None = None
    """What `engine.experimental` puts at risk; None where the switch must be off."""
    plans_pairs: bool = True
    """Whether a plan of two pools can be applied without an opt-in."""
    fp8_cache: tuple[str, ...] | None = None
    """The arguments that make the elements of the KV cache 8 bits wide, or None."""
