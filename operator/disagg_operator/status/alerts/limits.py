"""PURE: The limits of the alerts, which the chart lets users set."""

from __future__ import annotations

from collections.abc import Mapping

# Each by the name of its alert. Shares are from 0 to 1, ages and gaps in seconds.
LIMITS: Mapping[str, float] = {
    "Shedding": 0.01,  # of the generations
    "StreamsStall": 2,
    "Failovers": 0.05,  # of the arrivals
    "TransferFailing": 0.02,  # of the transfers
    "TransferSlow": 0.3,  # of the goodput of the day before
    "HandoverSlow": 5,  # times the objective per token
    "LinkSaturated": 0.8,  # of the time
    "NotDisaggregating": 0.2,  # of the requests
    "LeasesHeld": 60,
    "PrefillBacklog": 2,  # times the objective of first tokens
    "DecodeFull": 0.05,  # of the blocks
    "PrefillHeldBack": 0.5,  # of a batch
    "WorkerUnheard": 10,
    "EngineHung": 30,
    "ScalerFlaps": 3,  # each way in an hour
    "EditsIgnored": 120,
}


def limit(name: str) -> str:
    """Return what stands for the limit of an alert in its expression, until it is filled in."""
    if name not in LIMITS:
        raise KeyError(name)
    return f"@{name}@"


def filled(text: str, limits: Mapping[str, float] = LIMITS) -> str:
    """Return a text with numbers for the limits in it."""
    for name, value in limits.items():
        text = text.replace(f"@{name}@", f"{value:g}")
    return text


def as_text() -> str:
    """Return the limits as a file that the chart reads."""
    return "".join(f"{name}: {value:g}\n" for name, value in LIMITS.items())
