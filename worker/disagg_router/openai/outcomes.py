"""What became of a request, as it counts for a revision that is tried."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from http import HTTPStatus

from disagg_router.errors import ApiError
from disagg_router.objectives import Objectives
from disagg_router.openai.generation import Generation
from disagg_router.router import Router
from disagg_router.workers.canary import Canary
from disagg_router.workers.canary_tally import Outcome
from disagg_wire import series


def followed(router: Router, generations: Sequence[Generation]) -> Callable[[], None]:
    """Follow a request that begins, if a revision is tried now; returns what is to be called when
    it is over. Its choices may still come into `generations`.
    """
    canary = router.table.canary
    if canary is None or not canary.name:
        return lambda: None
    request = router.tally.begin(canary.name, time.time(), partial(_outcome, router, canary, generations))
    return partial(router.tally.end, request)


def _outcome(router: Router, canary: Canary, generations: Sequence[Generation], over: bool) -> Outcome | None:
    """Return what became of a request, or what is known of it so far; None if it tells nothing.

    All choices of an answer are of one request: they have had the same workers at the same time,
    and tell no more than one. The request was kept if all of them were. The first requests of a
    worker tell nothing: it may compile and warm up.
    """
    if any(g.refused and g.trace.broken is None for g in generations):
        return None
    word = next(word for _, word in sorted(canary.words.items()) if word.revision)
    objectives = Objectives(word.ttft_s, word.tpot_s, router.settings.objectives.prefill_s)
    now_s, found, settled = time.monotonic(), list[tuple[bool, bool]](), over
    for g in generations:
        workers = g.trace.broken or (g.trace.prefill, g.trace.decode)
        new, met = canary.side(*workers), kept(g, objectives, now_s)
        if new is None or (met is None and over):
            continue
        if any(w is not None and router.table.is_fresh(w, g.started_s) for w in workers):
            continue
        found.append((met is not False, new))
        settled = settled or failed_or_late(g, objectives, now_s)
    if not found:
        return None
    met_all, new = min(found)
    return Outcome(new, missed=not met_all, settled=settled)


def tells_of_service(status: int) -> bool:
    """Return whether a refusal is the fault of the service, and not of the request."""
    return status >= HTTPStatus.INTERNAL_SERVER_ERROR or status == HTTPStatus.TOO_MANY_REQUESTS


def compare_refused(router: Router, error: ApiError, *, streamed: bool) -> None:
    """Count a request for which the pools did not even begin an answer, as `compare` does."""
    if router.upstream is not None and streamed and tells_of_service(error.status):
        router.split.count(series.POOLS, within=False, ttft_s=None, tpot_s=None)


def compare(router: Router, generations: Sequence[Generation], now_s: float) -> None:
    """Count a streamed answer of the pools, if others go to a service beside them.

    It counts as one of that service does, whose prompts have not been counted: by objectives that
    are the same for prompts of any length, and by its first choice.
    """
    if router.upstream is None or not generations:
        return
    first = generations[0]
    met = False if first.failed else _met(first, router.settings.objectives.without_patience(), now_s)
    if met is not None:
        ttft_s = first.ttft_s if first.first_s else None
        router.split.count(series.POOLS, within=met, ttft_s=ttft_s, tpot_s=first.tpot_s)


def kept(g: Generation, objectives: Objectives, now_s: float) -> bool | None:
    """Return whether a choice was answered as the objectives ask, or None if nobody can tell (yet).

    A request that workers have failed is not, even if others have answered it. One that was refused
    because everybody was busy tells nothing of a revision, nor does one that its client got wrong.
    One whose client has left does only if it was late, or its tokens were slow, by then.
    """
    return False if g.trace.broken is not None else _met(g, objectives, now_s)


def missed(g: Generation, objectives: Objectives, now_s: float) -> bool:
    """Return whether a client that has left did so after an objective was missed."""
    if not g.first_s:
        return _is_late(g, objectives, now_s)
    return _is_slow(g, objectives, now_s)


def _met(g: Generation, objectives: Objectives, now_s: float) -> bool | None:
    """Return whether the client saw what the objectives ask, or None if nobody can tell (yet)."""
    if late_or_slow(g, objectives, now_s):
        return False
    return True if g.ended else None


def late_or_slow(g: Generation, objectives: Objectives, now_s: float) -> bool:
    """Return whether an objective has been missed, by a choice that has not failed."""
    return _is_late(g, objectives, now_s) or _is_slow(g, objectives, now_s)


def failed_or_late(g: Generation, objectives: Objectives, now_s: float) -> bool:
    """Return whether workers have failed a choice, or its first token is late, both for good."""
    return g.trace.broken is not None or _is_late(g, objectives, now_s)


def _is_late(g: Generation, objectives: Objectives, now_s: float) -> bool:
    limit_s = objectives.ttft_limit_s(max(1, len(g.state.prompt) - g.state.cached_tokens))
    ttft_s = g.ttft_s if g.first_s else now_s - g.started_s
    return limit_s is not None and ttft_s > limit_s and not (g.failed or g.refused)


def _is_slow(g: Generation, objectives: Objectives, now_s: float) -> bool:
    """Return whether the tokens of a choice are slower than they should be, on average so far."""
    if objectives.tpot_s is None or not g.first_s or g.failed or g.refused:
        return False
    # The next token of one that has not ended is out at best now.
    tpot_s = (g.tpot_s or 0.0) if g.ended else (now_s - g.first_s) / max(1, g.tokens)
    return tpot_s > objectives.tpot_s
