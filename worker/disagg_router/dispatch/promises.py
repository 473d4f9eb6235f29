"""PURE: What a request is promised that not every worker can keep after a failover.

An engine behind an adapter sees the tokens that are already out as a part of the prompt.
"""

from __future__ import annotations

from collections.abc import Iterable

from disagg_router.dispatch.request_state import RequestState
from disagg_router.workers.pair_choice import Choice
from disagg_router.workers.worker_info import Worker
from disagg_wire import series
from disagg_wire.protocol import FEATURE_SEED_LOST, FEATURE_STRUCTURED_NOT_RESUMED


def weakened(state: RequestState, choice: Choice) -> frozenset[str]:
    """Return which promises are weaker if the request goes on with these workers.

    `series.SEED`: the seed that the client has given leads to other tokens than without the
    failure. `series.PENALTY`: the presence and frequency penalties do not count the tokens that are
    already out.
    """
    worker = choice.decode or choice.prefill
    if worker is None or not state.emitted:
        return frozenset()
    sampling, found = state.sampling, set()
    if FEATURE_SEED_LOST in worker.features and state.has_own_seed and sampling.get("temperature", 1.0) > 0:
        found.add(series.SEED)
    penalized = sampling.get("presence_penalty") or sampling.get("frequency_penalty")
    if FEATURE_STRUCTURED_NOT_RESUMED in worker.features and penalized:
        found.add(series.PENALTY)
    return frozenset(found)


def cannot_go_on(state: RequestState, workers: Iterable[Worker], last: Worker | None) -> bool:
    """Return whether no worker can continue an output that has to match a format.

    `last` is the worker that generated it so far. While no worker is known, it tells what those to
    come will be like.
    """
    if not state.resumes_format:
        return False
    known = [w for w in workers if w.offers(state.identity)] or ([] if last is None else [last])
    return bool(known) and all(FEATURE_STRUCTURED_NOT_RESUMED in w.features for w in known)
