"""Keeps what the predictive policy has learned: loads it after a start, and saves it regularly."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from disagg_operator.autoscaling.chosen_policy import PolicyMemory
from disagg_operator.autoscaling.live import Live, LiveTable
from disagg_operator.autoscaling.policy import history
from disagg_operator.autoscaling.policy.memory import State
from disagg_operator.autoscaling.records.saved_state import from_json, to_json
from disagg_operator.autoscaling.records.state_store import StateStore
from disagg_operator.autoscaling.scale_plan import ScalePlan
from disagg_operator.autoscaling.signals.pod_facts import Starts
from disagg_operator.autoscaling.signals.prometheus_access import Unreadable
from disagg_operator.autoscaling.signals.prometheus_source import PrometheusSource
from disagg_operator.kube.errors import KubeError
from disagg_operator.vocabulary import Key

log = logging.getLogger(__name__)

SAVE_EVERY_S = 60.0
# An older state has missed so much that learning from the history in Prometheus, if there is one,
# is better.
_STALE_S = 6 * 3600.0
_SAVES_AT_ONCE = 8


class StateKeeper:
    """Keeps the states of all deployments. What it remembers of each is in its `Live` entry."""

    def __init__(self, store: StateStore, prometheus: PrometheusSource, epoch: Callable[[], float]) -> None:
        self._store = store
        self._prometheus = prometheus
        self._epoch = epoch
        self._gate = asyncio.Semaphore(_SAVES_AT_ONCE)

    async def ready(self, key: Key, entry: Live, plan: ScalePlan) -> bool:
        """Load the state from before the operator's last start, if there is one.

        Returns False if it cannot be read now; then nothing may be decided.
        """
        if not entry.loaded:
            try:
                kept = await self._store.load(key, entry.uid)
            except KubeError as error:
                log.warning("%s/%s: the scaling state can't be read: %s", *key, error)
                return False
            now_s = self._epoch()
            if kept is not None:
                _restore(entry, kept)
                entry.stored_s = _number(kept.get("saved_s"))
            entry.loaded, entry.unseeded = True, kept is None or not now_s - _number(kept.get("saved_s")) < _STALE_S
            # Spread the saving of many resources after a start.
            entry.saved_s = now_s - SAVE_EVERY_S * (hash(key) % 100) / 200
        if entry.unseeded and entry.trouble is None:
            await self._seed(key, entry, plan)
        return True

    async def _seed(self, key: Key, entry: Live, plan: ScalePlan) -> None:
        """Learn from the previous days as soon as Prometheus can be read.

        Without a Prometheus, or with one that has no history, there is nothing to learn.
        """
        entry.unseeded = False
        if plan.prometheus is not None:
            try:
                minutes = await self._prometheus.history(key, plan.prometheus, self._epoch())
            except Unreadable as error:
                log.warning("%s/%s: the history can't be read: %s", *key, error)
                return
            if minutes:
                state = await asyncio.to_thread(history.seed, plan.settings, minutes)
                entry.memory = _with_state(entry.memory, state)
                log.info("%s/%s: learned from %d minutes of history", *key, len(minutes))

    async def save_if_due(self, key: Key, entry: Live, now_s: float) -> None:
        """Save what was learned since the last time, at most once in SAVE_EVERY_S."""
        if entry.unsaved and now_s - entry.saved_s >= SAVE_EVERY_S:
            await self._save(key, entry)

    async def save_all(self, live: LiveTable) -> None:
        """Save all states that have changed, before the operator stops."""
        await asyncio.gather(*(self._save(key, entry) for key, entry in live.items() if entry.unsaved))

    async def _save(self, key: Key, entry: Live) -> None:
        entry.saved_s = saved_s = self._epoch()
        content = {
            "saved_s": saved_s,
            "state": to_json(entry.memory.predicting.state),
            "starts": {pool: dict(starts.taken_s) for pool, starts in entry.starts.items()},
        }
        async with self._gate:
            entry.unsaved = not await self._store.save(key, entry.uid, content)
        if not entry.unsaved:
            entry.stored_s = saved_s

    async def look(self, key: Key, entry: Live) -> None:
        """Read what was saved, and have it saved again if somebody has deleted or edited it.

        Raises KubeError.
        """
        if (before := entry.stored_s) is None:
            return
        kept = await self._store.load(key, entry.uid)
        if entry.stored_s == before and (kept is None or _number(kept.get("saved_s")) != before):
            entry.unsaved, entry.saved_s, entry.stored_s = True, -math.inf, None


def _restore(entry: Live, kept: dict[str, Any]) -> None:
    state = kept.get("state")
    if isinstance(state, dict):
        entry.memory = _with_state(entry.memory, from_json(state))
    for pool, taken in (kept.get("starts") or {}).items():
        found = (
            {str(uid): s for uid, value in taken.items() if not math.isnan(s := _number(value))}
            if isinstance(taken, dict)
            else {}
        )
        known = entry.starts.get(str(pool), Starts())
        entry.starts[str(pool)] = replace(known, taken_s={**found, **known.taken_s})


def _with_state(memory: PolicyMemory, state: State) -> PolicyMemory:
    return replace(memory, predicting=replace(memory.predicting, state=state))


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan
