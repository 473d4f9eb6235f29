"""PURE: The names of the interfaces of a second network that is attached once for each device."""

from __future__ import annotations

import re


def rail_interfaces(first: str, count: int) -> tuple[str, ...]:
    """Return the names of `count` interfaces: the first one, and those counted on from it.

    They are net1, net2 and so on; after a name without a number come its 1, 2 and so on.
    """
    found = re.fullmatch(r"(.*?)(\d*)", first)
    stem, number = (first, "") if found is None else found.groups()
    start = int(number or 0)
    return (first, *(f"{stem}{start + further}" for further in range(1, max(1, count))))
