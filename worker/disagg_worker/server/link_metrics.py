"""The metrics of a worker's links and of what it holds for others."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Gauge

from disagg_wire import series
from disagg_worker.transfer.busy_time import BusyTime

_NETWORK = Path("/sys/class/net")


def speed_bytes(interface: str, network: Path = _NETWORK) -> float | None:
    """Return the speed of an interface in bytes per second, or None if it has none."""
    try:
        megabits = int((network / interface / "speed").read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None
    return megabits * 125_000.0 if megabits > 0 else None


class LinkMetrics:
    """What moves KV, how busy it is, and how old the oldest thing is that waits for it."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._lock = threading.Lock()
        self._spans = {direction: BusyTime() for direction in (series.SENT, series.RECEIVED)}
        self._busy = Counter(
            series.KV_LINK_BUSY_SECONDS,
            "Time in which at least one KV transfer was under way, counted when it ends",
            [series.DIRECTION],
            registry=registry,
        )
        for direction in self._spans:
            self._busy.labels(direction)
        self._speed = Gauge(
            series.KV_INTERFACE_SPEED_BYTES,
            "Speed per second that the driver of the interface reports, if it does",
            [series.INTERFACE],
            registry=registry,
        )
        self._oldest_reservation = Gauge(
            series.WORKER_OLDEST_RESERVATION_AGE_SECONDS,
            "Age of the oldest reservation whose KV has not come yet; 0 without one",
            registry=registry,
        )
        self._load_seconds = Gauge(
            series.WORKER_LOAD_SECONDS,
            "How long the worker took to get its model: to download it if it must, and to read and warm it",
            [series.PHASE],
            registry=registry,
        )

    def moved(self, direction: str, seconds: float) -> None:
        """Note a transfer that has just ended. Any thread may call this."""
        now_s = time.monotonic()
        with self._lock:
            added_s = self._spans[direction].note(now_s - seconds, now_s)
        self._busy.labels(direction).inc(added_s)

    @contextlib.contextmanager
    def loads(self, phase: str) -> Iterator[None]:
        """Tell how long it takes until the block ends to get the model, or a part of that."""
        began_s = time.monotonic()
        yield
        self._load_seconds.labels(phase).set(time.monotonic() - began_s)

    def uses(self, interface: str, oldest_s: Callable[[], float]) -> None:
        """Tell the speed of the interface that KV goes over, and the age of what waits for it."""
        self._oldest_reservation.set_function(oldest_s)
        if interface and (speed := speed_bytes(interface)) is not None:
            self._speed.labels(interface).set(speed)
