"""The DisaggScalers of an operator process: the loop with the clients that it needs."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from disagg_operator.autoscaling.records.decision_log import DecisionLog
from disagg_operator.autoscaling.records.state_store import StateStore
from disagg_operator.autoscaling.signals.direct import DirectDoor
from disagg_operator.autoscaling.signals.prometheus_query import PrometheusDoor
from disagg_operator.autoscaling.signals.prometheus_source import PrometheusSource
from disagg_operator.autoscaling.state_keeper import StateKeeper
from disagg_operator.controller.metrics import Metrics
from disagg_operator.controller.scalers.pod_reports import PodReports
from disagg_operator.controller.scalers.scaler_loop import ScalerLoop
from disagg_operator.kube.client import HttpKube
from disagg_operator.kube.resources import DISAGG_SCALER
from disagg_operator.settings import OperatorSettings
from disagg_operator.status.recorder import Recorder

log = logging.getLogger(__name__)


class ScalerPart:
    """The loop of DisaggScalers; `close` ends its clients."""

    def __init__(
        self,
        settings: OperatorSettings,
        kube: HttpKube,
        decision_log: DecisionLog,
        metrics: Metrics,
        clock: Callable[[], float],
        epoch: Callable[[], float],
        wall: Callable[[], str],
        new_id: Callable[[], str],
    ) -> None:
        self._settings = settings
        self._direct = DirectDoor(timeout_s=settings.scrape_timeout_s, concurrency=settings.scrape_concurrency)
        self._prometheus = PrometheusSource(kube, PrometheusDoor(timeout_s=settings.prometheus_timeout_s), clock)
        self.loop = ScalerLoop(
            kube=kube,
            reports=PodReports(self._direct, self._prometheus),
            states=StateKeeper(StateStore(kube, DISAGG_SCALER), self._prometheus, epoch),
            decision_log=decision_log,
            metrics=metrics.scaling,
            recorder=Recorder(kube, clock, wall, new_id),
            policy=settings.policy,
            namespaces=settings.namespaces,
            timeout_s=settings.reconcile_timeout_s,
            clock=clock,
            epoch=epoch,
            wall=wall,
        )

    async def close(self) -> None:
        """Save what has been learned, and end."""
        try:
            async with asyncio.timeout(self._settings.shutdown_timeout_s):
                await self.loop.keep()
        except TimeoutError:
            log.warning("stopping without the scaling state of every DisaggScaler")
        await self._direct.close()
        await self._prometheus.close()
