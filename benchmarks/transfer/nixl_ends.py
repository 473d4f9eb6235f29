"""The transfer by NIXL in the benchmark: decode's offer, and prefill's writes into it.

The agents are made at the first transfer and kept, as those of workers are.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

from benchmarks.transfer.memory import LAYOUT, PREFILL, Memory
from disagg_protocol.ticket import Ticket
from disagg_wire.engines import AUTO, TCP
from disagg_worker.transfer.landing import Landing, Landings
from disagg_worker.transfer.nixl_agent import NixlAgent
from disagg_worker.transfer.nixl_peers import Writer
from disagg_worker.transfer.offers import Offer
from disagg_worker.transfer.reach import Place
from disagg_worker.transfer.sender import TransferDone
from disagg_worker.transfer.writes import NixlKvSender

# Both ends say that they reach each other over TCP; what UCX really uses is asked afterwards.
_REACH = {TCP: "network"}


@cache
def _landings(memory: Memory, device: str) -> Landings:
    made = Landings(lambda: NixlAgent(memory.region, [device]), _REACH, AUTO, Place("", "", ""), memory.n_blocks)
    made.open()
    return made


def offer(memory: Memory, device: str) -> tuple[Offer, Landing]:
    """Offer all blocks to the sender."""
    offered = _landings(memory, device).offer(_REACH, PREFILL, memory)
    if offered is None:
        raise SystemExit("the blocks of the last transfer are still in quarantine")
    return offered


@cache
def _writer(memory: Memory, device: str) -> Writer:
    made = Writer(lambda: NixlAgent(memory.region, [device]))
    made.open()
    return made


def sender(
    ticket: Ticket,
    key: bytes,
    tokens: list[int],
    source: tuple[str, str],
    on_done: Callable[[TransferDone], None],
    memory: Memory,
) -> NixlKvSender:
    """Return the sender that writes into what the ticket offers."""
    ends = ticket, key, PREFILL, tokens, source, on_done
    return NixlKvSender(*ends, writer=_writer(memory, source[1]), layout=LAYOUT, place=Place("", "", ""))
