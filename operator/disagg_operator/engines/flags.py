"""PURE: Finds arguments of the user that contradict those which the operator sets.

Engines read their command line with argparse: an option may be written with `=` or with its value
behind it, with any unambiguous beginning of its name, and with `_` instead of `-`. vLLM also takes
`--option.key value` for a part of an option that is JSON, and `--no-option` for a switch.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

_NUMBER = re.compile(r"-\d+(\.\d*)?|-\.\d+")


def refusals_of(args: Sequence[str], owned: Mapping[str, str]) -> Iterator[tuple[int, str]]:
    """Yield the index of each argument that is refused, and the reason.

    `owned` has the arguments of the operator, each with the field of the spec to use, or "".
    """
    for index, argument in enumerate(args):
        if "\0" in argument:
            yield index, "has a character NUL, which ends a word of a command line"
            continue
        if not argument.startswith("-") or _NUMBER.fullmatch(argument):
            if index == 0:
                yield index, f"{_shown(argument)} must begin with an option"
            continue
        name = argument.partition("=")[0]
        if not name.strip("-_") or re.search(r"\s", name):
            yield index, f"{_shown(argument)} is no option: write each word as an item of its own"
            continue
        for option, instead in owned.items():
            if _same(name, option):
                use = f"; use {instead}" if instead else ""
                yield index, f"{_shown(name)}: {option} is set by the operator{use}"
                break


def _same(name: str, option: str) -> bool:
    """Return whether argparse may take `name` for `option`."""
    if not name.startswith("--"):
        return _same_short(name, option)
    if not option.startswith("--"):
        return False
    plain = "--" + name[2:].partition(".")[0].replace("_", "-")
    spellings = {plain, plain.replace("--no-", "--", 1)}
    if option.endswith("*"):
        family = option[:-1]
        return any(s.startswith(family) or family.startswith(s) for s in spellings)
    return any(option.startswith(s) for s in spellings)


def _same_short(name: str, option: str) -> bool:
    """Compare options of one dash. The value may follow a letter directly, as in -qfp8."""
    if option.startswith("--"):
        return False
    return option.startswith(name) or (len(option) == 2 and name.startswith(option))


def _shown(argument: str) -> str:
    return argument if len(argument) <= 64 else f"{argument[:61]}..."
