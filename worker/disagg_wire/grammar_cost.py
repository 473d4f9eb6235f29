"""PURE: What a format of the output would cost an engine, estimated before anything is built.

An engine unrolls counted repetitions in one way or another: what is counted here are the elements
of a regular expression with all of its repetitions written out. Lark grammars are bounded by their
length and by the limits of the library alone.
"""

from __future__ import annotations

import json
import re
from typing import Any

MAX_ELEMENTS = 100_000
MAX_DEPTH = 100
MAX_SCHEMA_NODES = 20_000
# The opening of a group, with what says which kind of group it is.
_GROUP = re.compile(r"\((?:\?(?:P?<\w*>|<?[=!]|[\w-]*:))?")
_COUNT = re.compile(r"\{(\d{0,9})(?:(,)(\d{0,9}))?\}")


def problem(kind: str, value: str) -> str:
    """Return why a format of the kind (`sampling.structured.kind`) is too complex, or "".

    A format that is wrong in other ways is the business of whoever compiles it.
    """
    if kind == "regex":
        return _too_many(_elements(value))
    if kind != "json_schema":
        return ""
    try:
        schema = json.loads(value)
    except ValueError:
        return ""
    except RecursionError:
        return f"it is nested more than {MAX_DEPTH} times"
    return _schema_problem(schema)


def _too_many(elements: int | None) -> str:
    if elements is None:
        return f"it is nested more than {MAX_DEPTH} times"
    return f"with its repetitions it has over {MAX_ELEMENTS} elements" if elements > MAX_ELEMENTS else ""


def _schema_problem(schema: Any) -> str:
    """Return the problem of a JSON schema: its size, its depth, or the patterns in it."""
    nodes = elements = 0
    left = [(schema, 1)]
    while left:
        node, depth = left.pop()
        nodes += 1
        if nodes > MAX_SCHEMA_NODES:
            return f"it has over {MAX_SCHEMA_NODES} values"
        if depth > MAX_DEPTH:
            return _too_many(None)
        if isinstance(node, list):
            left += [(inner, depth + 1) for inner in node]
        if not isinstance(node, dict):
            continue
        left += [(inner, depth + 1) for inner in node.values()]
        names = node.get("patternProperties")
        patterns = [node.get("pattern"), *(names if isinstance(names, dict) else ())]
        for pattern in patterns:
            found = _elements(pattern) if isinstance(pattern, str) else 0
            elements += found or 0
            if found is None or elements > MAX_ELEMENTS:
                return _too_many(found and elements)
    return ""


def _elements(regex: str) -> int | None:
    """Return the number of elements, about; None for too many levels of groups.

    What is no regular expression has some number, too.
    """
    sums, last, at = [0], 0, 0
    while at < len(regex):
        letter, step = regex[at], 1
        if group := _GROUP.match(regex, at):
            step = len(group[0])
            sums[-1] += last
            sums.append(0)
            last = 0
            if len(sums) > MAX_DEPTH:
                return None
        elif letter == ")":
            last = sums.pop() + last
            sums = sums or [0]
        elif letter == "{" and (count := _COUNT.match(regex, at)):
            last *= max(1, int(count[3] or 0), int(count[1] or 0))
            step = len(count[0])
        elif letter not in "*+?|^$":
            sums[-1] += last
            last = 1
            step = _length(regex, at)
        at += step
    return sum(sums) + last


def _length(regex: str, at: int) -> int:
    """Return the length of the element that begins here: an escape, a class or a character."""
    if regex[at] == "\\":
        return 2
    if regex[at] != "[":
        return 1
    end = at + 1
    # A bracket that comes first is one of the class.
    end += regex.startswith("^", end)
    end += regex.startswith("]", end)
    while end < len(regex) and regex[end] != "]":
        end += 2 if regex[end] == "\\" else 1
    return end + 1 - at
