"""A streamed chat completion on the terminal, followed by a description of how it was served."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

import httpx

from disagg_wire import series


class ChatFailed(Exception):
    """Raised when the server refused or interrupted the completion; the message is the server's."""


def stream_chat(
    base_url: str, model: str, question: str, write: Callable[[str], Any] = sys.stdout.write, timeout_s: float = 60.0
) -> dict[str, Any]:
    """Write the answer as it arrives, and return the `disagg` object of the last chunk.

    Raises ChatFailed.
    """
    body = {
        "model": model,
        "messages": [{"role": "user", "content": question}],
        "stream": True,
        "temperature": 0,
        "max_tokens": 120,
    }
    trace: dict[str, Any] = {}
    try:
        with httpx.stream(
            "POST",
            f"{base_url}/v1/chat/completions",
            json=body,
            headers={"x-disagg-trace": "1"},
            timeout=timeout_s,
            trust_env=False,
        ) as answer:
            if answer.status_code != 200:
                raise ChatFailed(answer.read().decode(errors="replace"))
            for line in answer.iter_lines():
                if not line.startswith("data: ") or line == "data: [DONE]":
                    continue
                chunk = json.loads(line[6:])
                if "error" in chunk:
                    raise ChatFailed(chunk["error"]["message"])
                for choice in chunk["choices"]:
                    write(choice["delta"].get("content") or "")
                    sys.stdout.flush()
                trace = chunk.get("disagg", trace) | {"usage": chunk.get("usage")}
    except httpx.HTTPError as error:
        raise ChatFailed(f"{type(error).__name__}: {error}") from None
    return trace


# Why decode has prefilled a prompt, by the reason that the router gives.
_WHY_THERE = {
    series.FEW_MISSING: "it lacked only a few tokens of the prompt",
    series.NO_PREFILL: "no prefill worker was ready",
    series.BOTH_ROLES: "it does both",
}


def explain(trace: dict[str, Any]) -> list[str]:
    """Return lines that describe how a completion was served."""
    out = []
    prefill, decode = trace.get("prefill"), trace.get("decode")
    if prefill and decode:
        out.append(f"prefill on   {prefill['pod']}")
        out.append(f"decode on    {decode['pod']}")
        out.append(
            f"KV transfer  {trace['kv_bytes']:,} bytes in {1e3 * trace['transfer_s']:.1f} ms over {trace['interface']}"
            f" ({1e3 * trace['exposed_s']:.1f} ms of it not hidden by the prefill)"
        )
    elif decode:
        why = _WHY_THERE.get(trace.get("reason", ""), "the router does not say why")
        out.append(f"prefill and decode on {decode['pod']} ({why})")
    out.append(f"first token  {1e3 * trace['ttft_s']:.0f} ms")
    if trace.get("tpot_s") is not None:
        out.append(f"then         {1e3 * trace['tpot_s']:.1f} ms per token")
    return out
