"""PURE: What the operator tells the routers of a canary: the value of a label of the pools'
Services.

EndpointSlices carry the labels of their Service, and the routers watch them. Routers that know
nothing of the label share requests out by the pairs that are ready, as without it.

The value is the percentage of the requests, followed by parts of a letter and a value:
`10.r0a1b2c3d4e.i5f6a7.x9f8e7d6c5b.t1000000.p60000`. `r` is the revision of this pool that gets
the percentage, `i` which trial of it this is, `x` a revision that gets nothing; `t` and `p` are the
objectives for the time to first token and per token, in microseconds. Other letters are ignored.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

# The routers forget what they have counted before.
KEPT_MINUTES = 120
# A value has at most 63 characters.
_MAX_CHARS = 63
_MAX_PERCENT = 100


@dataclass(frozen=True, slots=True)
class CanaryWord:
    """What is said of one pool."""

    percent: int
    revision: str = ""
    """The revision that gets that part of the requests; empty if only `left` is said."""
    left: tuple[str, ...] = ()
    """Revisions that get no requests while others serve."""
    ttft_s: float | None = None
    """The objectives by which the two are compared, in seconds; None for none."""
    tpot_s: float | None = None
    trial: str = ""
    """What distinguishes this trial of the revision from others: they share no counts."""

    def text(self) -> str:
        """Return the value of the label."""
        return self._text(self.fitted().left)

    def fitted(self) -> CanaryWord:
        """Return what the label really says: the last revisions in `left` may find no room."""
        left = self.left
        while left and len(self._text(left)) > _MAX_CHARS:
            left = left[:-1]
        return replace(self, left=left)

    def _text(self, left: tuple[str, ...]) -> str:
        said = [("r", self.revision), ("i", self.trial), *(("x", revision) for revision in left)]
        said += [(c, str(round(1e6 * s))) for c, s in (("t", self.ttft_s), ("p", self.tpot_s)) if s is not None]
        return ".".join((str(self.percent), *(c + value for c, value in said if value)))


def read_word(text: str) -> CanaryWord | None:
    """Return what a label says, or None if it is not readable."""
    first, *rest = text.split(".")
    if not (first.isascii() and first.isdigit() and int(first) <= _MAX_PERCENT):
        return None
    found: dict[str, list[str]] = {}
    for part in rest:
        if part[1:]:
            found.setdefault(part[0], []).append(part[1:])
    revision, left = found.get("r", [""])[0], tuple(found.get("x", ()))
    if not revision and not left:
        return None
    ttft_s, tpot_s = _seconds(found.get("t")), _seconds(found.get("p"))
    return CanaryWord(int(first), revision, left, ttft_s, tpot_s, trial=found.get("i", [""])[0])


def _seconds(values: list[str] | None) -> float | None:
    text = values[0] if values else ""
    return int(text) / 1e6 if text.isascii() and text.isdigit() else None


def name_of(words: Mapping[str, CanaryWord]) -> str:
    """Return one name for the revisions that are tried, by pool, and for the trial."""
    tried = [word for _, word in sorted(words.items()) if word.revision]
    return "-".join(dict.fromkeys([word.revision for word in tried] + [word.trial for word in tried if word.trial]))
