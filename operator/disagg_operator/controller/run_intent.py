"""What a run of the reconciler means to do, in the words of status."""

from __future__ import annotations

from dataclasses import replace

from disagg_operator.controller.feasibility import uneven
from disagg_operator.controller.intent import intent_of, pool_intents
from disagg_operator.controller.one_pass import Pass
from disagg_operator.controller.zero_orders import ZeroOrders
from disagg_operator.status.conditions import Intent
from disagg_operator.vocabulary import Obj
from disagg_wire.roles import ROLES


def of(run: Pass, zero: ZeroOrders, stored: Obj, now: str) -> Intent:
    """Return the intent of a run. `stored` is the status so far, `now` the time in RFC 3339."""
    judged = run.judgement
    found = intent_of(
        run.plan,
        pool_intents(run.key[1], run.pools, run.plan.scaling, run.live.decisions, stored, now),
        "" if run.step is None else run.step.revision,
        run.live.trouble,
        refusal=judged.refusal,
        warnings=(
            *judged.warnings,
            *uneven({r: run.pools[r].count for r in ROLES}),
            *zero.warnings(run),
        ),
        runtime=run.runtime,
    )
    rollout = None if run.step is None else run.step.view
    return replace(found, rollout=rollout, zero=zero.words(run, stored), awake=zero.awake(run))
