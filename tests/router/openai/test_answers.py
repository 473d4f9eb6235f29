"""Tests that answers have OpenAI's form, whole and in chunks, with the same content."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest

from disagg_router.dispatch.request_state import RequestState, Token
from disagg_router.openai.answers import AnswerFormat, Piece, chat_logprobs, completion_logprobs, usage
from disagg_router.workers.worker_info import Identity


class Letters:
    """A tokenizer in which token 0 is "a", 1 is "b" and so on; 26 is a character of two bytes."""

    def piece(self, token: int) -> str:
        return "\u00e9" if token == 26 else chr(ord("a") + token)


@dataclass
class Chosen:
    """A choice that has ended."""

    index: int
    state: RequestState
    tokens: int
    shares_prompt: bool = False
    text: Letters = field(default_factory=Letters)


def chosen(index: int = 0, prompt: int = 3, tokens: int = 2, cached: int = 0, shares_prompt: bool = False) -> Chosen:
    state = RequestState("r", Identity("m", "D"), tuple(range(prompt)), {}, 3, cached_tokens=cached)
    return Chosen(index, state, tokens, shares_prompt)


def answers(*, chat: bool) -> AnswerFormat:
    return AnswerFormat(chat=chat, identity="x1", created_s=1700, model="m", fingerprint="fp_D")


PLAIN = (Token(0, 0), Token(1, 26))
SCORED = (Token(0, 0, -0.5, ((0, -0.5), (1, -1.5))), Token(1, 26, -0.25, ()))


def test_a_prompt_with_several_choices_counts_once_and_each_answer_counts() -> None:
    choices = [chosen(0, prompt=3, tokens=2, cached=1), chosen(1, 3, 4, 1, shares_prompt=True), chosen(2, 5, 1, 2)]
    assert usage(choices) == {
        "prompt_tokens": 8,
        "completion_tokens": 7,
        "total_tokens": 15,
        "prompt_tokens_details": {"cached_tokens": 3},
    }


def test_a_chat_names_each_token_with_its_bytes_and_the_likeliest_beside_it() -> None:
    assert chat_logprobs(Letters(), SCORED) == {
        "content": [
            {
                "token": "a", "logprob": -0.5, "bytes": [97],
                "top_logprobs": [
                    {"token": "a", "logprob": -0.5, "bytes": [97]}, {"token": "b", "logprob": -1.5, "bytes": [98]}
                ],
            },
            {"token": "\u00e9", "logprob": -0.25, "bytes": [195, 169], "top_logprobs": []},
        ],
        "refusal": None,
    }  # fmt: skip


def test_a_completion_names_tokens_their_place_in_the_text_and_the_likeliest() -> None:
    assert completion_logprobs(Letters(), SCORED, 10) == {
        "tokens": ["a", "\u00e9"],
        "token_logprobs": [-0.5, -0.25],
        "top_logprobs": [{"a": -0.5, "b": -1.5}, {}],
        "text_offset": [10, 11],
    }


@pytest.mark.parametrize("tokens", [(), PLAIN])
def test_where_none_were_asked_for_there_are_no_log_probabilities(tokens: tuple[Token, ...]) -> None:
    assert chat_logprobs(Letters(), tokens) is None
    assert completion_logprobs(Letters(), tokens, 0) is None


def test_a_whole_chat_is_one_message_for_each_choice() -> None:
    pieces = [Piece("He", SCORED[:1]), Piece("y", SCORED[1:], "stop")]
    answer = answers(chat=True).whole([(chosen(1), pieces)])
    assert {k: answer[k] for k in ("id", "object", "created", "model")} == {
        "id": "chatcmpl-x1", "object": "chat.completion", "created": 1700, "model": "m",
    }  # fmt: skip
    assert answer["choices"] == [
        {
            "index": 1,
            "finish_reason": "stop",
            "message": {"role": "assistant", "content": "Hey", "refusal": None},
            "logprobs": chat_logprobs(Letters(), SCORED),
        }
    ]
    assert answer["usage"] == usage([chosen(1)])


def test_a_whole_completion_is_one_text_for_each_choice() -> None:
    answer = answers(chat=False).whole(
        [(chosen(0), [Piece("He", SCORED, "length")]), (chosen(1), [Piece("", (), "stop")])]
    )
    assert (answer["id"], answer["object"]) == ("cmpl-x1", "text_completion")
    assert answer["choices"] == [
        {"index": 0, "finish_reason": "length", "text": "He", "logprobs": completion_logprobs(Letters(), SCORED, 0)},
        {"index": 1, "finish_reason": "stop", "text": "", "logprobs": None},
    ]


def test_a_chat_opens_with_its_role_and_a_completion_does_not_open() -> None:
    opening = answers(chat=True).opening(2)
    assert opening is not None
    assert (opening["object"], opening["choices"]) == (
        "chat.completion.chunk",
        [{"index": 2, "delta": {"role": "assistant", "content": ""}, "logprobs": None, "finish_reason": None}],
    )
    assert answers(chat=False).opening(2) is None


@pytest.mark.parametrize(
    ("piece", "delta"),
    [(Piece("He", SCORED), {"content": "He"}), (Piece("", SCORED), {}), (Piece("", (), "stop"), {})],
)
def test_a_chunk_of_a_chat_has_text_only_where_there_is_some(piece: Piece, delta: dict[str, Any]) -> None:
    chunk = answers(chat=True).piece(chosen(1), piece, 10)
    assert chunk["choices"] == [
        {
            "index": 1,
            "finish_reason": piece.finish_reason,
            "delta": delta,
            "logprobs": chat_logprobs(Letters(), piece.tokens),
        }
    ]


def test_a_chunk_of_a_completion_counts_its_places_from_what_is_out() -> None:
    chunk = answers(chat=False).piece(chosen(1), Piece("He", SCORED, "stop"), 10)
    assert chunk["object"] == "text_completion"
    assert chunk["choices"] == [
        {"index": 1, "finish_reason": "stop", "text": "He", "logprobs": completion_logprobs(Letters(), SCORED, 10)}
    ]


def test_the_last_chunk_has_the_usage_and_no_choice() -> None:
    closing = answers(chat=True).closing([chosen()], {"disagg": {"path": "local"}})
    assert (closing["choices"], closing["usage"], closing["disagg"]) == ([], usage([chosen()]), {"path": "local"})
