"""PURE: The seam between the adapter and an engine; each engine implements it in one module."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from disagg_protocol.bodies import Sampling
from disagg_wire.engine_metrics.readings import Readings

NAN = math.nan


class EngineFault(Exception):
    """Raised when a call to the engine fails. `code` is one of disagg_wire.codes.

    `is_gone` says that nobody listens at the engine's port.
    """

    def __init__(self, code: str, message: str, *, retryable: bool = True, is_gone: bool = False) -> None:
        super().__init__(message)
        self.code = code
        self.retryable = retryable
        self.is_gone = is_gone


class NotReady(Exception):
    """Raised while the engine is starting; the message says what it is waiting for."""


class Unusable(Exception):
    """Raised when the engine can never serve as it is; `reason` is a word in CamelCase."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Identity:
    """An engine that answers: what it is and what it holds."""

    version: str
    """The engine's version, as it reports it."""
    started: str
    """A text that is another one after each start of the engine."""
    connector: str
    """The version of its hand-over; part of the compatibility hash."""
    max_model_len: int
    """The longest sequence in tokens."""
    block_size_tokens: int
    """The size of a block of its KV cache, in tokens."""
    blocks_total: int
    """The number of blocks of its KV cache."""
    kv_dtype: str = "auto"
    """The type of its KV cache, as it reports it."""
    adapters: tuple[str, ...] = ()
    """The names of the LoRA adapters that it has loaded."""
    adapter_places: Mapping[str, str] = field(default_factory=dict)
    """Where it has loaded them from, by name, as far as it tells."""
    features: frozenset[str] = frozenset()
    """What it cannot do, and what it can beyond the protocol (disagg_wire.protocol)."""


@dataclass(frozen=True, slots=True)
class Work:
    """A request as an engine gets it."""

    request_id: str
    """A name that is used for one call only."""
    tokens: list[int]
    """The prompt and the tokens emitted so far."""
    prompt_tokens: int
    """The number of tokens of the prompt."""
    sampling: Sampling
    tenant: str
    """The scope within which cached KV may be shared."""
    adapter: str | None
    """The LoRA adapter, or None for the model itself."""

    @property
    def emitted(self) -> int:
        return len(self.tokens) - self.prompt_tokens

    @property
    def new_tokens(self) -> int:
        """The most tokens that may still be generated."""
        return self.sampling.max_new_tokens - self.emitted

    @property
    def min_new_tokens(self) -> int:
        """The fewest tokens that must still be generated."""
        return max(0, self.sampling.min_tokens - self.emitted)


class Output(NamedTuple):
    """One generated token."""

    token: int
    logprob: float | None = None
    top_logprobs: tuple[tuple[int, float], ...] = ()


class Delta(NamedTuple):
    """A piece of an engine's stream."""

    outputs: tuple[Output, ...] = ()
    """The new tokens, in order."""
    finish_reason: str | None = None
    """`stop` or `length` in the last piece."""
    cached_tokens: int | None = None
    """The number of prompt tokens from the prefix cache, once it is known."""


@dataclass(frozen=True, slots=True)
class HandOver:
    """What decode's engine needs to take the KV of a prompt over."""

    parameters: dict[str, Any]
    """The engine's own object."""
    first_token: int | None = None
    """The first token that prefill sampled, where it is known by then."""
    cached_tokens: int | None = None
    """The number of prompt tokens that prefill found in its prefix cache."""
    taken: Callable[[], None] = field(default=lambda: None, compare=False)
    """Called at prefill when decode's engine has the KV; never, if that is not certain."""


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """What the adapter's settings tell its engine's module."""

    model: str
    """The name under which the engine serves the model."""
    lease_s: float
    """The seconds for which prefill keeps KV that nobody has read."""
    role: str
    experimental: bool
    """Whether a hand-over may be used that the engine does not make safe."""
    host: str
    """The pod's address on the network for KV."""
    bootstrap_port: int
    """The port of SGLang's bootstrap server."""


class Engine(ABC):
    """An engine over HTTP.

    The generators end the engine's work when they are closed, at once or as soon as the engine
    survives it.
    """

    @abstractmethod
    async def identify(self) -> Identity:
        """Ask the engine what it is. Raises NotReady, Unusable or EngineFault."""

    @abstractmethod
    async def read(self) -> Readings:
        """Read the engine's metrics. Raises EngineFault."""

    @abstractmethod
    def check(self, work: Work) -> None:
        """Check that the engine can do this work. Raises InvalidInput, which names the field."""

    @abstractmethod
    def check_handover(self, parameters: Mapping[str, Any]) -> None:
        """Check every key of a hand-over that came from another adapter. Raises InvalidInput."""

    @abstractmethod
    def generate(self, work: Work) -> AsyncGenerator[Delta]:
        """Prefill and decode here. Raises EngineFault."""

    @abstractmethod
    def prefill(self, work: Work) -> AsyncGenerator[HandOver]:
        """Compute the prompt for another engine, and yield its hand-over once.

        It is yielded when decode's engine may start. The generator ends when prefill's own work is
        done. Raises EngineFault.
        """

    @abstractmethod
    def decode(self, work: Work, handover: HandOver) -> AsyncGenerator[Delta]:
        """Take KV over and decode. Raises EngineFault."""

    def when_gone(self, request_id: str, then: Callable[[], None]) -> None:
        """Call `then` when the engine has ended a request whose generator is closed."""
        then()

    @abstractmethod
    async def probe(self) -> None:
        """Generate one token with a prompt that is in no cache. Raises EngineFault."""

    @abstractmethod
    async def close(self) -> None:
        """Close the connections to the engine."""
