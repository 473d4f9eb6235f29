"""What became of a request, as it counts for a revision that is tried."""

from __future__ import annotations

from disagg_router.objectives import Objectives
from disagg_router.openai.generation import Generation
from disagg_router.router import Router


def count(router: Router, g: Generation, now_s: float, epoch_s: float) -> None:
    """Count a request of an answer that is over, if a revision is tried now."""
    canary = router.table.canary
    if canary is None or not canary.name:
        return
    word = next(word for _, word in sorted(canary.words.items()) if word.revision)
    met = kept(g, Objectives(word.ttft_s, word.tpot_s, router.settings.objectives.prefill_s), now_s)
    new = canary.side(*(g.trace.broken or (g.trace.prefill, g.trace.decode)))
    if met is not None and new is not None:
        router.tally.count(canary, epoch_s, new=new, met=met)


def kept(g: Generation, objectives: Objectives, now_s: float) -> bool | None:
    """Return whether a request was answered as the objectives ask, or None if nobody can tell.

    A request that workers have failed is not, even if others have answered it. One that was refused
    because everybody was busy tells nothing of a revision, and one whose client has left does only
    if it was late by then.
    """
    if g.trace.broken is not None:
        return False
    limit_s = objectives.ttft_limit_s(max(1, len(g.state.prompt) - g.state.cached_tokens))
    ttft_s = g.ttft_s if g.first_s else now_s - g.started_s
    if limit_s is not None and ttft_s > limit_s and not g.failed:
        return False
    if not g.ended:
        return None
    return objectives.tpot_s is None or g.tpot_s is None or g.tpot_s <= objectives.tpot_s
