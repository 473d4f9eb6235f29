"""PURE: The series of an engine of another project, by what they tell."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class EngineSeries:
    """The names of an engine's series, which everybody takes from here.

    A name may select one value of a label, as PromQL writes it. Several names are those of several
    versions: the first one that is there counts.
    """

    prefix: str
    """The beginning of the names of all its series."""
    prompt_lengths: tuple[str, ...]
    """A histogram of the tokens of prompts, of requests that have ended."""
    computed_lengths: tuple[str, ...]
    """The same of the tokens of prompts that no cache held."""
    answer_lengths: tuple[str, ...]
    ttft: tuple[str, ...]
    """A histogram of the seconds to the first token."""
    gaps: tuple[str, ...]
    """A histogram of the seconds between two tokens of an answer."""
    tpot: tuple[str, ...]
    """A histogram of the mean seconds per output token of each answer."""
    prompt_tokens: tuple[str, ...]
    cached_tokens: tuple[str, ...]
    """A counter of the prompt tokens that some cache held."""
    computed_tokens: tuple[str, ...]
    """A counter of the prompt tokens that were computed, as they were."""
    own_cached_tokens: tuple[str, ...]
    """A counter of the prompt tokens that the engine's own cache held."""
    generated_tokens: tuple[str, ...]
    """A counter of the tokens that were generated, as they were."""
    running: tuple[str, ...]
    """A gauge of the requests that run."""
    waiting: tuple[str, ...]
    """A gauge of the requests that wait to be computed."""
    kv_usage: tuple[str, ...]
    """A gauge of the share of the KV cache that is in use."""
    ended: tuple[str, ...]
    """A counter of the requests that ended."""
    preemptions: tuple[str, ...]
    """A counter of the requests that lost their blocks."""
    workers: str = ""
    """The label that tells the engines of one page apart, or ""."""
    copies: tuple[str, ...] = ()
    """Labels of series that repeat those of rank 0."""
