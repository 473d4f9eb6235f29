"""What became of a request, as it counts for a revision that is tried."""

from __future__ import annotations

from typing import Any, cast

import pytest

from disagg_router.dispatch.request_state import RequestState
from disagg_router.dispatch.trace import Trace
from disagg_router.objectives import Objectives
from disagg_router.openai.generation import Generation
from disagg_router.openai.outcomes import failed_or_late, kept
from disagg_router.workers.worker_info import Identity

OBJECTIVES = Objectives(1.0, 0.1)
FAST, SLOW = {"first_s": 0.5, "last_s": 1.0, "tokens": 11}, {"first_s": 0.5, "last_s": 3.0, "tokens": 11}


@pytest.mark.parametrize(
    ("what", "expected", "changes"),
    [
        ("it hangs before its first token", False, {}),
        ("the client's fault, found late", None, {"refused": True}),
        ("the client's fault, found after slow tokens", None, {**SLOW, "refused": True}),
        ("workers failed, and then it was the client's fault", False,
         {"refused": True, "trace": Trace(broken=(None, None))}),
        ("everybody was busy after slow tokens", None, {**SLOW, "failed": True}),
        ("the client has left a stream that hung", False, {**FAST, "last_s": 0.6, "tokens": 2}),
        ("kept", True, {**FAST, "ended": True}),
        ("one token", True, {"first_s": 0.5, "last_s": 0.5, "tokens": 1, "ended": True}),
        ("late", False, {"first_s": 1.5, "last_s": 1.5, "tokens": 1, "ended": True}),
        ("slow", False, {**SLOW, "ended": True}),
        ("workers failed", False, {**FAST, "ended": True, "trace": Trace(broken=(None, None))}),
        ("everybody was busy", None, {"failed": True}),
        ("the client has left in time", None, {**FAST, "first_s": 0.5, "last_s": 10.0, "tokens": 96}),
        ("the client has left a slow stream", False, SLOW),
    ],
)  # fmt: skip
def test_what_counts_as_kept(what: str, expected: bool | None, changes: dict[str, Any]) -> None:
    state = RequestState("r", Identity("m", "D"), (1, 2), {}, 1, "")
    g = Generation(0, cast("Any", None), state, [], started_s=0.0, **changes)
    assert kept(g, OBJECTIVES, now_s=10.0) is expected


@pytest.mark.parametrize(
    ("expected", "changes"),
    [
        (True, {}),
        (True, {"first_s": 1.5, "last_s": 1.5, "tokens": 1}),
        (True, {"trace": Trace(broken=(None, None))}),
        (False, SLOW),  # the next tokens may be faster
        (False, FAST),
        (False, {"refused": True}),
    ],
)
def test_what_is_missed_for_good(expected: bool, changes: dict[str, Any]) -> None:
    state = RequestState("r", Identity("m", "D"), (1, 2), {}, 1, "")
    g = Generation(0, cast("Any", None), state, [], started_s=0.0, **changes)
    assert failed_or_late(g, OBJECTIVES, now_s=10.0) is expected
    assert not failed_or_late(g, Objectives(None, 0.1), now_s=10.0) or g.trace.broken is not None
