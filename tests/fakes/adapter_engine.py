"""An engine in the test's process that keeps the contract of the adapter's engines.

Tests hold it in a phase, make it fail, and see which generators were closed.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from disagg_adapter.engines.contract import Delta, Engine, HandOver, Identity, Output, Work
from disagg_protocol.errors import InvalidInput
from disagg_wire.engine_metrics.readings import Readings

IDENTITY = Identity(
    version="1.2.3",
    started="first start",
    connector="c-1",
    max_model_len=1000,
    block_size_tokens=16,
    blocks_total=100,
    adapters=("polite",),
    adapter_places={"polite": "/adapters/polite"},
    features=frozenset({"adapter", "first_token_from_decode"}),
)
PARAMETERS: Mapping[str, Any] = {"blocks": [1, 2, 3], "peer": "prefill"}


class Gate:
    """A point that the engine passes while the gate is open."""

    def __init__(self) -> None:
        self.reached = asyncio.Event()
        self._open = asyncio.Event()
        self._open.set()

    def shut(self) -> None:
        self.reached.clear()
        self._open.clear()

    def open(self) -> None:
        self._open.set()

    async def enter(self) -> None:
        self.reached.set()
        await self._open.wait()


@dataclass
class FakeEngine(Engine):
    """An engine whose n-th token of a prompt is `token_of(prompt, n)`."""

    identity: Identity = IDENTITY
    readings: Readings = field(default_factory=Readings)
    fault: Exception | None = None
    """What `identify` raises."""
    read_fault: Exception | None = None
    probe_fault: Exception | None = None
    handover: Mapping[str, Any] = field(default_factory=lambda: dict(PARAMETERS))
    hands_over_first: bool = False
    """Whether prefill hands over before it computes, as SGLang does."""
    piece: int = 1
    """The number of tokens in a piece of the stream."""
    calls: list[tuple[str, Work]] = field(default_factory=list)
    taken: list[HandOver] = field(default_factory=list)
    probes: int = 0
    steps: float = 0.0
    open_generators: int = 0
    closed_early: list[str] = field(default_factory=list)
    """The generators that were closed before their end."""

    def __post_init__(self) -> None:
        # Before prefill has computed; before decode has read; before decode's third token.
        self.prefill_gate, self.read_gate, self.token_gate = Gate(), Gate(), Gate()
        self.probe_gate, self.sent_gate = Gate(), Gate()
        self.idle = asyncio.Event()
        self.idle.set()
        self.looked = asyncio.Event()

    async def identify(self) -> Identity:
        if self.fault is not None:
            raise self.fault
        return self.identity

    async def read(self) -> Readings:
        self.looked.set()
        if self.read_fault is not None:
            raise self.read_fault
        return replace(self.readings, started=self.identity.started, steps_total=self.steps)

    def check(self, work: Work) -> None:
        if work.sampling.structured is not None:
            raise InvalidInput("sampling.structured: this engine has no formats")

    def check_handover(self, parameters: Mapping[str, Any]) -> None:
        if set(parameters) != set(PARAMETERS):
            raise InvalidInput(f"parameters: {sorted(parameters)}")

    def generate(self, work: Work) -> AsyncGenerator[Delta]:
        return self._stream("generate", work)

    def decode(self, work: Work, handover: HandOver) -> AsyncGenerator[Delta]:
        self.taken.append(handover)
        return self._stream("decode", work)

    async def _stream(self, name: str, work: Work) -> AsyncGenerator[Delta]:
        self.calls.append((name, work))
        self._began()
        ended = False
        try:
            await self.read_gate.enter()
            total = work.new_tokens
            for n in range(0, total, self.piece):
                if n >= 2:
                    await self.token_gate.enter()
                tokens = tuple(Output(token_of(work.tokens, n + i)) for i in range(min(self.piece, total - n)))
                self.steps += 1
                ended = n + len(tokens) == total
                yield Delta(tokens, "length" if ended else None, 7 if name == "generate" else 0)
        finally:
            self._over(name, ended)

    async def prefill(self, work: Work) -> AsyncGenerator[HandOver]:
        self.calls.append(("prefill", work))
        self._began()
        ended = False
        try:
            handover = HandOver(dict(self.handover), token_of(work.tokens, 0), 5)
            if self.hands_over_first:
                yield handover
            await self.prefill_gate.enter()
            self.steps += 1
            if not self.hands_over_first:
                yield handover
            ended = True
        finally:
            self._over("prefill", ended)

    async def probe(self) -> None:
        self.probes += 1
        await self.probe_gate.enter()
        if self.probe_fault is not None:
            raise self.probe_fault

    async def close(self) -> None:
        pass

    def _began(self) -> None:
        self.open_generators += 1
        self.idle.clear()

    def _over(self, name: str, ended: bool) -> None:
        self.open_generators -= 1
        if not ended:
            self.closed_early.append(name)
        if self.open_generators == 0:
            self.idle.set()


def token_of(prompt: list[int], n: int) -> int:
    return (sum(prompt) + n) % 97
