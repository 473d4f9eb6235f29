"""PURE: How much of a deployment serves: the workers with a partner, and the share of its size.

Workers that can exchange KV form a cell. A worker serves if its cell has ready workers of every
role that is wanted. The share of a cell is that of its scarcer role, so that prefill and decode
workers of different cells do not count as pairs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction

from disagg_operator.rollout.values import Workers, WorkersKey
from disagg_wire.roles import DECODE, PREFILL, ROLES

Cells = Mapping[WorkersKey, int]


def cells_of(workers: Iterable[Workers], pairs: Iterable[tuple[str, str]]) -> Cells:
    """Return the number of the cell of each group of workers.

    Two groups share a cell if they report the same compatibility, or if one spec rendered both and
    they do not report different ones.
    """
    groups = {w.key: w for w in workers}
    cell = {key: number for number, key in enumerate(groups)}

    def join(one: WorkersKey, other: WorkersKey) -> None:
        old, new = cell[one], cell[other]
        for key, number in cell.items():
            if number == old:
                cell[key] = new

    by_compat: dict[str, WorkersKey] = {}
    for key, group in groups.items():
        if group.compat:
            join(key, by_compat.setdefault(group.compat, key))
    for prefill, decode in sorted(pairs):
        left, right = groups.get((PREFILL, prefill)), groups.get((DECODE, decode))
        if left is not None and right is not None and "" in (left.compat, right.compat):
            join(left.key, right.key)
    return cell


@dataclass(frozen=True, slots=True)
class Serving:
    """What serves: the share of the wanted size, and the workers with a partner by role."""

    share: Fraction
    paired: Mapping[str, int]


def standing(serving: Mapping[WorkersKey, int], cells: Cells, wanted: Mapping[str, int]) -> Serving:
    """Return what serves if so many workers of each group are ready."""
    needed = [role for role in ROLES if wanted[role] > 0]
    ready: dict[int, dict[str, int]] = {}
    for key, count in serving.items():
        by_role = ready.setdefault(cells[key], dict.fromkeys(ROLES, 0))
        by_role[key[0]] += count
    share = Fraction(0)
    paired = dict.fromkeys(ROLES, 0)
    for by_role in ready.values():
        if not needed or any(by_role[role] == 0 for role in needed):
            continue
        share += min(Fraction(by_role[role], wanted[role]) for role in needed)
        for role in needed:
            paired[role] += by_role[role]
    return Serving(share, paired)


def one_sided(desired: Mapping[WorkersKey, int], cells: Cells, cell: int, wanted: Mapping[str, int]) -> bool:
    """Return whether a cell would have workers of one role only, where both are wanted."""
    has = {key[0] for key, count in desired.items() if count > 0 and cells[key] == cell}
    return 0 < len(has) < sum(wanted[role] > 0 for role in ROLES)
