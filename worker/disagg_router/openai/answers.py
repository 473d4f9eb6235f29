"""PURE: The answer objects of OpenAI's API, whole and in chunks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from disagg_router.dispatch.request_state import RequestState, Token

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of the answer: text that may be shown, and the tokens behind it.

    Only the last piece has a `finish_reason`.
    """

    text: str
    tokens: tuple[Token, ...] = ()
    finish_reason: str | None = None


class TokenText(Protocol):
    """A tokenizer, as far as log-probabilities need it."""

    def piece(self, token: int) -> str:
        """Return the text of one token alone."""


class AnswerChoice(Protocol):
    """A choice of an answer, as far as the objects of the API show it."""

    @property
    def index(self) -> int: ...
    @property
    def text(self) -> TokenText: ...
    @property
    def state(self) -> RequestState: ...
    @property
    def shares_prompt(self) -> bool: ...
    @property
    def tokens(self) -> int: ...


def usage(generations: Sequence[AnswerChoice]) -> Json:
    """Return the token counts; a prompt with n choices counts once, as OpenAI counts it."""
    prompt = sum(len(g.state.prompt) for g in generations if not g.shares_prompt)
    completion = sum(g.tokens for g in generations)
    cached = sum(g.state.cached_tokens for g in generations if not g.shares_prompt)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": cached},
    }


def _entry(text: TokenText, token: int, logprob: float | None) -> Json:
    piece = text.piece(token)
    return {"token": piece, "logprob": logprob, "bytes": list(piece.encode())}


def chat_logprobs(text: TokenText, tokens: Sequence[Token]) -> Json | None:
    if not tokens or tokens[0].logprob is None:
        return None
    content = [
        _entry(text, t.token, t.logprob) | {"top_logprobs": [_entry(text, i, p) for i, p in t.top_logprobs]}
        for t in tokens
    ]
    return {"content": content, "refusal": None}


def completion_logprobs(text: TokenText, tokens: Sequence[Token], offset: int) -> Json | None:
    if not tokens or tokens[0].logprob is None:
        return None
    pieces = [text.piece(t.token) for t in tokens]
    offsets, at = [], offset
    for piece in pieces:
        offsets.append(at)
        at += len(piece)
    return {
        "tokens": pieces,
        "token_logprobs": [t.logprob for t in tokens],
        "top_logprobs": [{text.piece(i): p for i, p in t.top_logprobs} for t in tokens],
        "text_offset": offsets,
    }


class AnswerFormat:
    """The shapes of one endpoint's answers.

    `chat` distinguishes /v1/chat/completions from /v1/completions. `fingerprint` names the weights.
    """

    def __init__(self, *, chat: bool, identity: str, created_s: int, model: str, fingerprint: str) -> None:
        self._chat = chat
        self._base = {
            "id": ("chatcmpl-" if chat else "cmpl-") + identity,
            "created": created_s,
            "model": model,
            "system_fingerprint": fingerprint,
        }

    def whole(self, results: Sequence[tuple[AnswerChoice, Sequence[Piece]]]) -> Json:
        choices = []
        for generation, pieces in results:
            text = "".join(p.text for p in pieces)
            tokens = [t for p in pieces for t in p.tokens]
            choice: Json = {"index": generation.index, "finish_reason": pieces[-1].finish_reason}
            if self._chat:
                choice["message"] = {"role": "assistant", "content": text, "refusal": None}
                choice["logprobs"] = chat_logprobs(generation.text, tokens)
            else:
                choice |= {"text": text, "logprobs": completion_logprobs(generation.text, tokens, 0)}
            choices.append(choice)
        kind = "chat.completion" if self._chat else "text_completion"
        return {**self._base, "object": kind, "choices": choices, "usage": usage([g for g, _ in results])}

    def _chunk(self, choices: list[Json], extra: Json | None = None) -> Json:
        kind = "chat.completion.chunk" if self._chat else "text_completion"
        return {**self._base, "object": kind, "choices": choices, **(extra or {})}

    def opening(self, index: int) -> Json | None:
        """Return the chunk before the first token; only chat has one."""
        if not self._chat:
            return None
        return self._chunk(
            [{"index": index, "delta": {"role": "assistant", "content": ""}, "logprobs": None, "finish_reason": None}]
        )

    def piece(self, generation: AnswerChoice, piece: Piece, offset: int) -> Json:
        choice: Json = {"index": generation.index, "finish_reason": piece.finish_reason}
        if self._chat:
            choice |= {
                "delta": {"content": piece.text} if piece.text else {},
                "logprobs": chat_logprobs(generation.text, piece.tokens),
            }
        else:
            choice |= {"text": piece.text, "logprobs": completion_logprobs(generation.text, piece.tokens, offset)}
        return self._chunk([choice])

    def closing(self, generations: Sequence[AnswerChoice], extra: Json) -> Json:
        """Return the last chunk, with the usage and no choices."""
        return self._chunk([], {"usage": usage(generations), **extra})
