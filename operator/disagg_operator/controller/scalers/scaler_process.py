"""The running operator of an installation that carries out DisaggScalers and nothing else."""

from __future__ import annotations

import asyncio
import logging
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from disagg_operator.autoscaling.records.decision_log import DecisionLog
from disagg_operator.controller.elector import Leadership
from disagg_operator.controller.health import HealthServer
from disagg_operator.controller.metrics import Metrics
from disagg_operator.controller.patience import until_it_works
from disagg_operator.controller.scalers.scaler_part import ScalerPart
from disagg_operator.controller.terms import work_in_terms
from disagg_operator.kube.client import HttpKube
from disagg_operator.kube.errors import KubeError
from disagg_operator.kube.resources import DISAGG_SCALER
from disagg_operator.settings import OperatorSettings

log = logging.getLogger(__name__)

_UNSERVED = f"the API server does not serve {DISAGG_SCALER.plural}"


class ScalerProcess:
    """One operator process. `epoch` tells the seconds since 1970."""

    def __init__(
        self,
        settings: OperatorSettings,
        kube: HttpKube,
        *,
        clock: Callable[[], float],
        wall: Callable[[], str],
        new_id: Callable[[], str],
        epoch: Callable[[], float],
        leadership: Leadership,
    ) -> None:
        self._settings = settings
        self._kube = kube
        self._clock = clock
        self._leadership, self._leading = leadership, False
        self._metrics = Metrics()
        self._metrics.watch_writes(lambda: kube.writes)
        self._record_dir = Path(settings.record_dir or tempfile.mkdtemp(prefix="disagg-decisions-"))
        self._log = DecisionLog(self._record_dir)
        epoch_0 = epoch() - clock()  # time follows the monotonic clock from then on
        self._part = ScalerPart(
            settings, kube, self._log, self._metrics,
            clock=clock, epoch=lambda: epoch_0 + clock(), wall=wall, new_id=new_id,
        )  # fmt: skip
        self._health = HealthServer(settings, kube, clock, self.sick, self.useless, self._metrics.page, self._log.read)
        self._main: asyncio.Task[None] | None = None
        self._trouble: str | None = None
        self._ticked_at = clock()

    async def start(self) -> None:
        """Serve the health endpoint at once, and start the rest in the background."""
        await self._health.start()
        self._main = asyncio.create_task(self._terms(), name="operator")

    async def ended(self) -> None:
        """Wait until the work has ended by a bug."""
        if self._main is not None:
            await asyncio.wait((self._main,))

    async def stop(self) -> None:
        if self._main is not None:
            self._main.cancel()
            await asyncio.gather(self._main, return_exceptions=True)
        await self._part.close()
        if not self._settings.record_dir:
            shutil.rmtree(self._record_dir, ignore_errors=True)
        await self._health.stop()
        await self._kube.close()

    def sick(self) -> str | None:
        """Return the problem of this process that a restart may cure, or None."""
        if self._main is not None and self._main.done():
            return "the work ended"
        since_s = self._clock() - self._ticked_at
        if self._leading and since_s > self._settings.heartbeat_timeout_s:
            return f"no look at the DisaggScalers for {since_s:.0f} s"
        return None

    def useless(self) -> str | None:
        """Return why this process can do nothing here, whatever could cure it, or None."""
        return self.sick() or self._trouble or self._leadership.refused()

    async def _terms(self) -> None:
        log.info("API server %s", await until_it_works("version", self._kube.version))
        await work_in_terms(self._leadership, self._term, leads=self._leads, forget=self._forget)

    def _leads(self, now: bool) -> None:
        self._leading, self._ticked_at = now, self._clock()
        self._metrics.leading.set(now)

    def _forget(self) -> None:
        self._part.loop.end_term()
        self._log.begin_anew()

    async def _term(self) -> None:
        while True:
            try:
                self._trouble = None if await self._kube.has_api(DISAGG_SCALER) else _UNSERVED
                await self._part.loop.tick()
            except KubeError as error:
                self._trouble = str(error)
                log.warning("%s", error)
            self._ticked_at = self._clock()
            await asyncio.sleep(self._settings.scaler_interval_s)
