"""Structured output: the tokens that may come next under a JSON schema, a regular expression, a
choice or a grammar.

It uses llguidance, which needs no torch, reads tokenizer.json itself, bounds its own work by fuel
limits and makes a mask in a millisecond or less. The allowed tokens are a pure function of the
tokens emitted so far, so they are the same after a failover, a hand-over or a preemption.
"""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import llguidance
import llguidance.numpy
import numpy as np
import numpy.typing as npt

from disagg_protocol.errors import InvalidInput
from disagg_protocol.sampling_params import Structured

if TYPE_CHECKING:
    from llguidance._lib import JsonCompileOptions

# What a compiled grammar takes in memory, for each character of its text and at least.
_BYTES_A_CHAR, _LEAST_BYTES = 256, 64 << 10
# The most bytes of the compiled grammars that are kept for the next request.
_CACHED_BYTES = 64 << 20
# The most states of the automaton of one request, each of which takes about a KiB.
_MAX_STATES = 32_000
# Without this, a model may put white space between two tokens of JSON without end.
_COMPACT: JsonCompileOptions = {"whitespace_flexible": False}


class GrammarError(Exception):
    """Raised when no token can follow under a grammar."""


class Grammars:
    """The compiled grammars, cached. Any thread may call the methods."""

    def __init__(self, tokenizer_json: Path, vocab_size: int, eos_token_ids: Sequence[int]) -> None:
        self._vocab_size = vocab_size
        self._eos = list(eos_token_ids)
        self._path = tokenizer_json
        self._lock = threading.Lock()
        self._tokenizer: llguidance.LLTokenizer | None = None
        self._compiled: OrderedDict[Structured, llguidance.LLMatcher] = OrderedDict()
        self._limits = llguidance.LLParserLimits(max_lexer_states=_MAX_STATES)

    def compile(self, wanted: Structured) -> None:
        """Compile a grammar. Raises InvalidInput, which says what is wrong with it."""
        self._matcher(wanted)

    def start(self, wanted: Structured) -> GrammarState:
        """Return the state of a grammar before the first token. Raises InvalidInput."""
        return GrammarState(self._matcher(wanted).deep_copy(), self._vocab_size, self._eos)

    def _matcher(self, wanted: Structured) -> llguidance.LLMatcher:
        with self._lock:
            if (found := self._compiled.get(wanted)) is not None:
                self._compiled.move_to_end(wanted)
                return found
            tokenizer = self._tokenizer = self._tokenizer or self._load()
        matcher = llguidance.LLMatcher(tokenizer, _grammar(wanted), log_level=0, limits=self._limits)
        if matcher.is_error():
            raise InvalidInput(f"sampling.structured.{wanted.kind}: {matcher.get_error().strip()[:500]}")
        with self._lock:
            self._compiled[wanted] = matcher
            while len(self._compiled) > 1 and self.cached_bytes > _CACHED_BYTES:
                self._compiled.popitem(last=False)
        return matcher

    @property
    def cached_bytes(self) -> int:
        """About how many bytes the compiled grammars take that are kept."""
        return sum(max(_LEAST_BYTES, _BYTES_A_CHAR * len(wanted.value)) for wanted in self._compiled)

    def _load(self) -> llguidance.LLTokenizer:
        if not self._eos:
            raise InvalidInput(
                "sampling.structured: the model names no end token (eos_token_id), so nothing could end the output"
            )
        if not self._path.is_file():
            raise InvalidInput("sampling.structured: the model has no tokenizer.json")
        return llguidance.LLTokenizer(str(self._path), n_vocab=self._vocab_size, eos_token=self._eos)


def _grammar(wanted: Structured) -> str:
    make = llguidance.LLMatcher
    if wanted.kind == "regex":
        return make.grammar_from_regex(wanted.value)
    if wanted.kind == "grammar":
        return make.grammar_from_lark(wanted.value)
    if wanted.kind == "choice":
        return make.grammar_from_lark(
            "start: " + " | ".join(json.dumps(c, ensure_ascii=False) for c in json.loads(wanted.value))
        )
    try:
        return make.grammar_from_json_schema(wanted.value, overrides=_COMPACT)
    except ValueError as error:
        raise InvalidInput(f"sampling.structured.{wanted.kind}: {error}") from None


class GrammarState:
    """The state of one sequence in its grammar."""

    def __init__(self, matcher: llguidance.LLMatcher, vocab_size: int, eos_token_ids: Sequence[int]) -> None:
        self._matcher = matcher
        self._vocab_size = vocab_size
        self._eos = list(eos_token_ids)
        self._consumed = 0
        self._bits = llguidance.numpy.allocate_token_bitmask(1, vocab_size)

    def allowed(self, emitted: Sequence[int]) -> npt.NDArray[np.bool_]:
        """Return the mask [vocab] of the tokens that may follow `emitted`.

        Each call must extend the tokens of the one before. Raises GrammarError.
        """
        if not self._matcher.is_stopped():
            self._matcher.consume_tokens(list(emitted[self._consumed :]))
            self._consumed = len(emitted)
        if self._matcher.is_error():
            raise GrammarError(self._matcher.get_error())
        if self._matcher.is_stopped():  # Nothing can be added, so the output ends.
            mask = np.zeros(self._vocab_size, dtype=np.bool_)
            mask[self._eos] = True
            return mask
        llguidance.numpy.fill_next_token_bitmask(self._matcher, self._bits, 0)
        if self._matcher.is_error():
            raise GrammarError(self._matcher.get_error())
        bits = np.unpackbits(self._bits.view(np.uint8), bitorder="little")[: self._vocab_size]
        if not bits.any():
            raise GrammarError("no token of this model can follow")
        return bits.view(np.bool_)
