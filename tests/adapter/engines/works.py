"""Requests for the tests of engines."""

from __future__ import annotations

from typing import Any

from disagg_adapter.engines.contract import Delta, Output, Work
from disagg_protocol.bodies import Sampling, StructuredOutput

PROMPT = [11, 12, 13]


def work(emitted: int = 0, tenant: str = "", adapter: str | None = None, **sampling: Any) -> Work:
    """Return a request for up to four tokens, unless `sampling` says more."""
    values: dict[str, Any] = {"seed": 7, "max_new_tokens": 4, "stop_token_ids": [2]} | sampling
    return Work("r", PROMPT + [20] * emitted, len(PROMPT), Sampling(**values), tenant, adapter)


def structured(kind: Any, value: str) -> StructuredOutput:
    return StructuredOutput(kind=kind, value=value)


def delta(*tokens: int, reason: str | None = None) -> Delta:
    return Delta(tuple(Output(t) for t in tokens), reason)
