"""The series of a router's process: how late its event loop is, and how silent workers are."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping

from prometheus_client import CollectorRegistry, Histogram
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from disagg_wire import series

_LAG_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_EVERY_S = 0.25


class ProcessMetrics(Collector):
    """The series of a process. `poll_ages` returns the age of the oldest poll of each pool."""

    def __init__(self, registry: CollectorRegistry, poll_ages: Callable[[], Mapping[str, float]]) -> None:
        self._poll_ages = poll_ages
        self._lag = Histogram(
            series.ROUTER_LOOP_LAG_SECONDS,
            "How much later than asked the event loop went on, four times a second",
            registry=registry,
            buckets=_LAG_S,
        )
        registry.register(self)

    def collect(self) -> Iterator[GaugeMetricFamily]:
        ages = GaugeMetricFamily(
            series.ROUTER_OLDEST_POLL_AGE_SECONDS,
            "Time since the last answer of the worker that has been silent for longest, of those that are listed",
            labels=[series.POOL],
        )
        for pool, age_s in self._poll_ages().items():
            ages.add_metric([pool], age_s)
        yield ages

    async def run(self) -> None:
        """Observe the event loop until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            due_s = loop.time() + _EVERY_S
            await asyncio.sleep(_EVERY_S)
            self._lag.observe(max(0.0, loop.time() - due_s))
