"""PURE: The planner of rollouts: from what is seen to the next replicas of every workload.

Each step is safe on its own, in any order and if only some of it is written, so that the operator
may be killed between any two writes. What is remembered may be lost.
"""

from __future__ import annotations

from disagg_operator.rollout import telling
from disagg_operator.rollout.board import Board
from disagg_operator.rollout.progress import advanced, expired, last_moved_s, room_wait_s
from disagg_operator.rollout.values import RolloutPlan, RolloutRules, RolloutState
from disagg_wire.roles import ROLES

_LOOK_AT_CANARY_S = 10.0


def plan(state: RolloutState, rules: RolloutRules) -> RolloutPlan:
    """Return the next replicas of every workload."""
    board = Board(state, rules)
    _drop_the_useless(board)
    if not board.changing:
        _follow(board)
    elif rules.paused:
        _hold(board)
    else:
        _roll(board)
    done = all(w.gone and not board.desired[w.key] for w in board.old()) and all(
        board.target(role).ready >= state.wanted[role] for role in ROLES
    )
    rolling = bool(board.changing) or not (board.proven or done)
    waits = rules.paused or _tries(board)
    progress = advanced(state, rules, board.seen, waits=waits) if rolling else None
    late = rolling and not done and expired(state, rules, progress, waits=waits)
    reason, message = telling.words(state, rules, board.room, telling.Stage(done, board.proven, late))
    return RolloutPlan(
        replicas=board.desired,
        reason=reason,
        message=message,
        complete=done,
        single=not board.changing,
        rolling=rolling,
        proven=board.proven,
        exchanging=_exchanges(board) and not any(board.kept(role) for role in ROLES),
        expired=late,
        progress=progress,
        wake_s=_wake_s(board, last_moved_s(state, progress) if progress is not None and not late else None),
    )


def _wake_s(board: Board, progress_since_s: float | None) -> float | None:
    """Return the seconds until something follows from the time alone."""
    waits = [] if not board.changing else [room_wait_s(board.state, board.rules, board.room.full)]
    if _tries(board):
        waits.append(_LOOK_AT_CANARY_S)
    elif progress_since_s is not None and not board.rules.paused:
        # After a step back of the clock, the last progress lies in the future.
        passed_s = max(0.0, board.state.now_s - progress_since_s)
        waits.append(max(1.0, board.rules.deadline_s - passed_s))
    return min((s for s in waits if s is not None), default=None)


def _drop_the_useless(board: Board) -> None:
    """Remove old workers that have never served and are not ready, and those of pools of size 0."""
    for w in board.old():
        if board.state.wanted[w.role] == 0 or (not w.served and w.ready == 0 and not board.rules.paused):
            board.desired[w.key] = 0


def _follow(board: Board) -> None:
    """Give the pools their sizes where there is one revision only."""
    for role in ROLES:
        key = board.target(role).key
        if board.proven or board.desired[key] > board.state.wanted[role]:
            board.desired[key] = board.state.wanted[role]
    board.grow(board.state.wanted)


def _tries(board: Board) -> bool:
    """Return whether a first new pair has served, and the rollout stays at the canary's share."""
    return bool(board.changing) and board.proven and board.rules.canary is not None and not _exchanges(board)


def _exchanges(board: Board) -> bool:
    return bool(board.changing) and board.room.exchange and not board.room.hopeless


def _roll(board: Board) -> None:
    """Take the next steps of a rollout."""
    for role in ROLES:
        _trim(board, role)
    given_up = {w.key: 0 for w in board.old() if w.given_up and board.desired[w.key]}
    if given_up and board.keeps_floors(given_up):
        board.desired |= given_up
    board.withdraw()
    if _exchanges(board):
        for w in board.old():
            board.desired[w.key] = 0
        board.grow(board.state.wanted)
        return
    if board.rules.canary is not None and board.proven:
        _stay(board, board.rules.canary)
        return
    if board.proven:
        board.retire()
        board.grow({role: board.limit(role) for role in ROLES})
    else:
        _try_out(board)
    untried = any(w.existing == w.unscheduled for w in map(board.target, board.changing))
    if board.quiet and (board.proven or untried):
        _untie(board)


def _trim(board: Board, role: str) -> None:
    """Remove workers of the target that the pool's size no longer holds, one by one."""
    key = board.target(role).key
    while board.desired[key] > board.limit(role) and board.keeps_floors({key: board.desired[key] - 1}):
        board.desired[key] -= 1


def _try_out(board: Board) -> None:
    """Start one new pair. The old workers keep the pool's size, less what makes room.

    A role whose workers of the target have served before, because it goes back to them, goes on.
    """
    state, room = board.state, board.room
    give = dict.fromkeys(ROLES, 0) if room.exchange else room.give
    served = any(board.kept(role) for role in ROLES)
    goals, first = {}, {}
    for role in ROLES:
        target = board.target(role)
        runs = board.desired[target.key] if target.served else 0
        goals[role] = max(min(1, state.wanted[role]), room.runs[role] - give[role]) - runs
        tried = served and role in board.changing and not target.served
        first[role] = min(board.limit(role), 1) if tried else board.limit(role)
    if served:
        board.shrink({role: max(0, goal) for role, goal in goals.items()})
        for role in sorted(board.changing):
            board.restore(role, goals[role])
    board.grow(first)


def _stay(board: Board, percent: int) -> None:
    """Keep as many new workers as a part of the requests needs, and old ones for the rest.

    The old ones stay as they are where there is room. While none of them is ready, new ones take
    their place, but none of them goes.
    """
    state, room = board.state, board.room
    new, old = {role: board.limit(role) for role in ROLES}, {}
    for role in board.changing:
        wanted, ready = state.wanted[role], sum(w.ready for w in board.old(role))
        old[role] = board.kept(role)
        if not ready or not wanted:
            continue
        new[role] = min(new[role], max(1, -(-wanted * percent // 100)))
        least = -(-wanted * (100 - percent) // 100)
        fits = max(least, room.caps[role] - new[role])
        old[role] = max(1, min(room.runs[role] - room.give[role], fits))
        key = board.target(role).key
        while board.desired[key] > new[role] and board.keeps_floors({key: board.desired[key] - 1}):
            board.desired[key] -= 1
    board.shrink({role: old.get(role, 0) for role in ROLES})
    for role in sorted(board.changing):
        board.restore(role, old[role])
    board.grow(new)


def _untie(board: Board) -> None:
    """Take a step where the floors forbid every step although nothing will change by itself.

    That happens with three revisions or more, and after a pool has changed its size: no step may
    keep the whole share. Then the numbers of the roles count alone; if that is not enough, one old
    revision goes as long as a pair is left, or a new worker that has no partner.
    """
    board.share_counts = False
    if board.proven:
        board.retire()
    if board.quiet:
        whole = [
            {w.key: 0 for w in board.old() if board.cells[w.key] == cell and board.desired[w.key]}
            for cell in sorted({board.cells[w.key] for w in board.old() if board.desired[w.key]})
        ]
        board.take([change for change in whole if board.standing_after(change).share > 0])
    if board.quiet:
        many = [key for key in (board.target(role).key for role in ROLES) if board.desired[key] > 1]
        fewer = [{key: board.desired[key] - 1} for key in many]
        board.take([change for change in fewer if board.keeps_floors(change)])


def _hold(board: Board) -> None:
    """Follow the sizes of the pools without moving the rollout on."""
    for role in ROLES:
        wanted = board.state.wanted[role]
        everyone = sum(count for key, count in board.desired.items() if key[0] == role)
        live = [w for w in board.groups.values() if w.role == role and board.desired[w.key]]
        if live and everyone < wanted - board.rules.unavailable[role]:
            main = max(live, key=lambda w: (w.served, w.ready, board.desired[w.key]))
            board.desired[main.key] += wanted - everyone
    goals = {}
    for role in ROLES:
        everyone = sum(count for key, count in board.desired.items() if key[0] == role)
        goals[role] = board.kept(role) - max(0, everyone - board.state.wanted[role] - board.rules.surge[role])
    board.shrink(goals)
