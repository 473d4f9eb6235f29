"""PURE: When the operator leaves something as it is for now, and what it says about that."""

from __future__ import annotations

from collections.abc import Sequence

from disagg_operator.controller import drift
from disagg_operator.kube.contests import Contests, rival
from disagg_operator.kube.resources import name_of
from disagg_operator.status.events import WARNING, Note
from disagg_operator.vocabulary import Obj

_MOST_FIELDS = 5


def pause(contests: Contests, rendered: Obj, live: Obj | None, now_s: float) -> tuple[float, list[Note]]:
    """Return the seconds until an object may be written, 0 if it may be now, and what to tell.

    Only an object that others change all the time has to wait.
    """
    which = (str(rendered["kind"]), name_of(rendered))
    if not contests.has(which) or (live is not None and drift.up_to_date(rendered, live)):
        return 0.0, []
    words = f"{' '.join(which)} is changed again and again by {rival(live)}, and restored once a minute"
    notes = [Note(WARNING, "ContestedObject", words)] if contests.told(which) else []
    return contests.wait_s(which, drift.rendered_hash(rendered), now_s), notes


def fields_dropped(lost: Sequence[str]) -> Note:
    """Return the note about a resource whose fields the installed CRD does not know."""
    words = f"the installed CRD drops {', '.join(lost[:_MOST_FIELDS])}: apply the CRDs of this release"
    return Note(WARNING, "FieldsDropped", f"{words}; until then nothing changes")
