"""The collector of the metrics of all deployments, read from the pods or from their Prometheus."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from disagg_operator.autoscaling.signals import pod_facts
from disagg_operator.autoscaling.signals.bounded_parsing import read_all
from disagg_operator.autoscaling.signals.direct import DirectDoor, Target, parse_json_object
from disagg_operator.autoscaling.signals.fold import Look
from disagg_operator.autoscaling.signals.metrics_page import parse
from disagg_operator.autoscaling.signals.pod_facts import Starts
from disagg_operator.autoscaling.signals.pool_reading import loads
from disagg_operator.autoscaling.signals.prometheus_access import METRICS_UNAVAILABLE, Access, Unreadable
from disagg_operator.autoscaling.signals.prometheus_source import PrometheusSource
from disagg_operator.autoscaling.signals.prompt_sources import prompt_tokens
from disagg_operator.autoscaling.signals.samples import Sample
from disagg_operator.kube.pods import DeploymentPods, address_of, http_port, identity_of
from disagg_operator.kube.resources import name_of, namespace_of
from disagg_operator.status.effectiveness import PromptTokens
from disagg_operator.vocabulary import Key, Obj
from disagg_wire.ports import ROUTER_PORT, WORKER_PORT
from disagg_wire.protocol import METRICS_PATH, STATE_PATH
from disagg_wire.roles import DECODE, PREFILL, ROLES

Pages = Mapping[tuple[str, str], str]  # by pod and path


@dataclass(frozen=True, slots=True)
class Scrape:
    """The query for one deployment in one sweep."""

    key: Key
    """The deployment."""
    pods: DeploymentPods
    """The pods of the deployment."""
    replicas: Mapping[str, int | None]
    """The replicas that each pool is set to; None if unknown."""
    starts: Mapping[str, Starts]
    """The starting times of the last pods of each pool, as known before."""
    bearer: str | None
    """The token for /internal/ of the routers, or None."""
    prometheus: Access | None
    """The Prometheus to read instead of the pods' own metrics, or None."""


@dataclass(frozen=True, slots=True)
class Signals:
    """The answers of one deployment in one sweep."""

    look: Look
    """The metrics of the pods."""
    states: tuple[Mapping[str, Any], ...]
    """The states that the routers returned."""
    starts: Mapping[str, Starts]
    """The starting times of the last pods of each pool."""
    loads: Mapping[str, float]
    """The number of requests that each pod holds, for the pods that answered."""
    prompts: Mapping[str, PromptTokens]
    """The prompt tokens of each decode worker by where their KV came from."""
    trouble: tuple[str, str] | None
    """(reason, message) if Prometheus could not be read, otherwise None."""


class Collector:
    """Collects the metrics of all deployments.

    `epoch` returns the seconds since 1970 and never goes back.
    """

    def __init__(self, direct: DirectDoor, prometheus: PrometheusSource, epoch: Callable[[], float]) -> None:
        self._direct = direct
        self._prometheus = prometheus
        self._epoch = epoch

    async def sweep(self, scrapes: Iterable[Scrape]) -> Pages:
        """Return the pages of all pods that are asked directly and answered."""
        bodies = await self._direct.fetch([target for scrape in scrapes for target in _targets(scrape)])
        return {(target.pod, target.path): body for target, body in bodies.items()}

    async def signals_of(self, scrape: Scrape, pages: Pages) -> Signals:
        """Return the signals of one deployment, from `pages` or from its Prometheus."""
        now_s = self._epoch()
        stored, trouble = await self._stored(scrape, now_s)
        pods, starts, facts = scrape.pods, {}, {}
        if stored is None:
            asked = (*pods.routers, *(pod for role in ROLES for pod in pods.workers[role]))
            told_of = ((name_of(pod), pages.get((identity_of(pod), METRICS_PATH))) for pod in asked)
            samples = await read_all(told_of, lambda page: parse(page, now_s))
        else:
            samples = stored

        def answers(pods: tuple[Obj, ...]) -> dict[str, Sample | None]:
            return {name_of(pod): samples.get(name_of(pod)) for pod in pods}

        for role in ROLES:
            seen = pod_facts.note_seen(scrape.starts.get(role, Starts()), pods.all_of[role], now_s)
            starts[role] = pod_facts.note_starts(seen, pods.workers[role], now_s)
            facts[role] = pod_facts.facts(pods.all_of[role], scrape.replicas[role] or 0, now_s, starts[role])
        prefill, decode = (answers(pods.workers[role]) for role in ROLES)
        look = Look(now_s, answers(pods.routers), prefill, decode, facts[PREFILL], facts[DECODE])
        states = ((name_of(pod), pages.get((identity_of(pod), STATE_PATH))) for pod in pods.routers)
        told = (await read_all(states, parse_json_object)).values()
        return Signals(
            look=look,
            states=tuple(state for state in told if state is not None),
            starts=starts,
            loads=loads(prefill) | loads(decode),
            prompts=prompt_tokens(decode),
            trouble=trouble,
        )

    def forget(self, key: Key) -> None:
        """Forget a resource that has been deleted."""
        self._prometheus.forget(key)

    async def _stored(self, scrape: Scrape, now_s: float) -> tuple[Mapping[str, Sample] | None, tuple[str, str] | None]:
        """Return (samples, problem) from Prometheus, or (None, None) if there is none to ask."""
        if scrape.prometheus is None:
            return None, None
        try:
            found = await self._prometheus.read(scrape.key, scrape.prometheus, now_s)
        except Unreadable as error:
            return {}, (error.reason, str(error))
        if found:
            return found, None
        return {}, (METRICS_UNAVAILABLE, "Prometheus has no recent series of these pods with labels namespace and pod")


def worker_target(pod: Obj, bearer: str | None) -> Target:
    """Return the address of a worker, for calls of its internal API."""
    group = str(namespace_of(pod) or "")
    return Target(identity_of(pod), address_of(pod), http_port(pod, WORKER_PORT), bearer=bearer, group=group)


def _targets(scrape: Scrape) -> list[Target]:
    targets, direct, group = [], scrape.prometheus is None, scrape.key[0]
    for pod in scrape.pods.routers:
        port = http_port(pod, ROUTER_PORT)
        if direct:
            targets.append(Target(identity_of(pod), address_of(pod), port, group=group))
        if scrape.bearer is not None:
            targets.append(Target(identity_of(pod), address_of(pod), port, STATE_PATH, scrape.bearer, group))
    if direct:
        workers = (pod for role in ROLES for pod in scrape.pods.workers[role])
        targets.extend(worker_target(pod, None) for pod in workers)
    return targets
