"""What became of a request, as it counts for a revision that is tried."""

from __future__ import annotations

from collections.abc import Sequence

from disagg_router.objectives import Objectives
from disagg_router.openai.generation import Generation
from disagg_router.router import Router


def count(router: Router, generations: Sequence[Generation], now_s: float, epoch_s: float) -> None:
    """Count a request whose answer is over, if a revision is tried now.

    All choices of an answer are of one request: they have had the same workers at the same time,
    and tell no more than one. The request was kept if all of them were.
    """
    canary = router.table.canary
    if canary is None or not canary.name:
        return
    word = next(word for _, word in sorted(canary.words.items()) if word.revision)
    objectives = Objectives(word.ttft_s, word.tpot_s, router.settings.objectives.prefill_s)
    found = [
        (met, new)
        for g in generations
        if (new := canary.side(*(g.trace.broken or (g.trace.prefill, g.trace.decode)))) is not None
        and (met := kept(g, objectives, now_s)) is not None
    ]
    if found:
        met, new = min(found)
        router.tally.count(canary, epoch_s, new=new, met=met)


def kept(g: Generation, objectives: Objectives, now_s: float) -> bool | None:
    """Return whether a choice was answered as the objectives ask, or None if nobody can tell.

    A request that workers have failed is not, even if others have answered it. One that was refused
    because everybody was busy tells nothing of a revision, and one whose client has left does only
    if it was late, or its tokens were slow, by then.
    """
    if g.trace.broken is not None:
        return False
    limit_s = objectives.ttft_limit_s(max(1, len(g.state.prompt) - g.state.cached_tokens))
    ttft_s = g.ttft_s if g.first_s else now_s - g.started_s
    if limit_s is not None and ttft_s > limit_s and not g.failed:
        return False
    if objectives.tpot_s is not None and (g.tpot_s or 0.0) > objectives.tpot_s and not g.failed:
        return False
    return True if g.ended else None
