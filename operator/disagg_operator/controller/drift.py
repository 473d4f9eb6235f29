"""PURE: Decides whether an object in the cluster already matches the rendered object.

An apply is skipped if the object carries the hash of the same rendering (so no field has been
dropped from it since) and every rendered field still has the rendered value (so nobody changed it).
Fields that others set belong to them, but for those of a selector, which is one value.
"""

from __future__ import annotations

import hashlib
import json
from decimal import Decimal, InvalidOperation
from typing import Any

from disagg_operator.kube.resources import annotations_of
from disagg_operator.vocabulary import Obj

APPLIED_HASH = "disagg.dev/applied-hash"
_SUFFIXES = {
    "n": Decimal("1e-9"), "u": Decimal("1e-6"), "m": Decimal("1e-3"), "": Decimal(1), "k": Decimal(10**3),
    "M": Decimal(10**6), "G": Decimal(10**9), "T": Decimal(10**12), "P": Decimal(10**15), "E": Decimal(10**18),
    "Ki": Decimal(2**10), "Mi": Decimal(2**20), "Gi": Decimal(2**30), "Ti": Decimal(2**40), "Pi": Decimal(2**50),
    "Ei": Decimal(2**60),
}  # fmt: skip
_SELECTORS = ("selector", "podSelector", "namespaceSelector")
_AMOUNTS_BEGIN_WITH = "0123456789.+-"


def stamped(obj: Obj) -> Obj:
    """Return a rendered object that also carries the hash of the rendering."""
    annotations = {**annotations_of(obj), APPLIED_HASH: rendered_hash(obj)}
    return {**obj, "metadata": {**obj["metadata"], "annotations": annotations}}


def rendered_hash(obj: Obj) -> str:
    """Return the hash of a rendering.

    metadata.resourceVersion is a precondition and not part of it.
    """
    meta = {k: v for k, v in obj["metadata"].items() if k != "resourceVersion"}
    text = json.dumps({**obj, "metadata": meta}, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def up_to_date(rendered: Obj, live: Obj) -> bool:
    """Return whether applying `rendered` (not stamped) would leave `live` as it is."""
    if annotations_of(live).get(APPLIED_HASH) != rendered_hash(rendered):
        return False
    wanted = {k: v for k, v in rendered.items() if k != "status"}
    wanted["metadata"] = {k: v for k, v in rendered["metadata"].items() if k != "resourceVersion"}
    return _within(wanted, live)


def _within(wanted: Any, live: Any) -> bool:
    if wanted == live:  # of most parts of most objects, and quick
        return True
    if isinstance(wanted, dict):
        if not isinstance(live, dict):
            return not wanted and live is None  # the API server drops empty maps
        return all(
            _within(value, live.get(key)) and (key not in _SELECTORS or _within(live.get(key) or {}, value))
            for key, value in wanted.items()
        )
    if isinstance(wanted, list):
        live = [] if live is None else live
        if not isinstance(live, list) or len(live) < len(wanted):
            return False
        return _list_within(wanted, live)
    if live is None and wanted in ("", 0, False):
        return True
    return isinstance(wanted, str | int | float) and isinstance(live, str | int | float) and _same_amount(wanted, live)


def _list_within(wanted: list[Any], live: list[Any]) -> bool:
    """Return whether the live list holds the wanted one.

    Lists of maps are compared by content, in any order and with elements of others in between,
    because server-side apply merges them by key.
    """
    if not wanted or not all(isinstance(item, dict) for item in wanted):
        return len(wanted) == len(live) and all(_within(a, b) for a, b in zip(wanted, live, strict=True))
    # Nearly always they are in the same order.
    return all(
        _within(item, live[place]) or any(_within(item, other) for other in live) for place, item in enumerate(wanted)
    )


def _same_amount(left: str | float, right: str | float) -> bool:
    """Return whether two quantities are equal. The API server writes 1000m as 1."""
    if isinstance(left, bool) or isinstance(right, bool):
        return False
    a, b = _amount(str(left)), _amount(str(right))
    return a is not None and a == b


def _amount(text: str) -> Decimal | None:
    if not text or text[0] not in _AMOUNTS_BEGIN_WITH:
        return None
    digits = text.rstrip("numkMGTPEi")
    factor = _SUFFIXES.get(text[len(digits) :])
    if factor is None:
        return None
    try:
        return Decimal(digits) * factor
    except InvalidOperation:
        return None
