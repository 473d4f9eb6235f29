"""The conversion of text to tokens and back.

Tokenizer and chat template come from a worker, so the router needs no model files.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tokenizers import Tokenizer

from disagg_router.errors import ApiError
from disagg_router.text.chat_template import ChatTemplate
from disagg_router.text.markers import Markers

log = logging.getLogger(__name__)
_REPLACEMENT = "\ufffd"
# No character takes more tokens than this. Longer text that ends in the middle of a character is
# broken, and is shown as it is.
_MAX_HELD_TOKENS = 16
# Text is tokenized on the thread that asks for it. A common pool of threads would let one long text
# hold up all short ones.
os.environ["TOKENIZERS_PARALLELISM"] = "false"


@contextlib.contextmanager
def _refusing(what: str) -> Iterator[None]:
    """Raise ValueError for whatever the library raises within the block."""
    try:
        yield
    except Exception as error:
        raise ValueError(f"{what}: {error}") from None
    except BaseException as error:
        # A panic in Rust is no Exception, and would end more than this.
        if type(error).__name__ != "PanicException":
            raise
        raise ValueError(f"{what}: {error}") from None


def _check_length(chars: int, most_chars: int | None) -> None:
    if most_chars is not None and chars > most_chars:
        message = f"the prompt has {chars} characters; with this model's context, {most_chars} are taken"
        raise ApiError(400, message, code="context_length_exceeded", param="prompt")


class Text:
    """The tokenizer and the chat template of one model. Raises ValueError if the files are not
    usable.
    """

    def __init__(self, files: Mapping[str, Any]) -> None:
        self.digest = str(files["digest"])
        with _refusing("tokenizer.json"):
            self._tokenizer = Tokenizer.from_str(files["tokenizer_json"])
            self._tokenizer.no_truncation()
            self._tokenizer.no_padding()
            added = self._tokenizer.get_added_tokens_decoder()
            # One that fails with every text is found out here.
            self.decode(self._ids("Some text.", special=True))
        self._hidden = {i for i, token in added.items() if token.special}
        self._markers = Markers(token.content for token in added.values() if token.special)
        template = files.get("chat_template")
        self._template: ChatTemplate | None = None
        if isinstance(template, str):
            try:
                self._template = ChatTemplate(template, _special_tokens(files.get("tokenizer_config")))
            except ValueError as error:  # The model can do everything but chat.
                log.error("the model's chat template is not usable: %s", error)

    def encode(self, text: str, *, special: bool, most_chars: int | None = None) -> list[int]:
        """Return the token ids of a text.

        `special` lets the tokenizer add its begin token; markers inside the text are always
        recognized. Raises ApiError for more than `most_chars` characters.
        """
        _check_length(len(text), most_chars)
        try:
            with _refusing("tokenizer"):
                return self._ids(text, special=special)
        except ValueError as error:
            log.error("a text was not tokenized: %s", error)
            message = "the model's tokenizer fails with this text"
            raise ApiError(503, message, code="tokenizer_failed", retry_after_s=5) from None

    def _ids(self, text: str, *, special: bool) -> list[int]:
        # Unlike `encode`, this lets other threads run meanwhile, and leaves out what is not used.
        [encoded] = self._tokenizer.encode_batch_fast([text], add_special_tokens=special)
        return list(encoded.ids)

    def encode_chat(self, messages: Sequence[Mapping[str, Any]], most_chars: int | None = None) -> list[int]:
        """Return the token ids of a chat, in which only the template makes special tokens.

        Raises ApiError if the template refuses it, if there is none, or for more than `most_chars`
        characters.
        """
        if self._template is None:
            raise ApiError(
                400,
                "this model has no usable chat template; use /v1/completions",
                code="no_chat_template",
                param="messages",
            )
        try:
            pieces = self._markers.split(messages, self._template.render)
        except ValueError as error:
            raise ApiError(400, f"messages: {error}", code="invalid_value", param="messages") from None
        _check_length(sum(map(len, pieces)), most_chars)
        known: dict[str, list[int]] = {}
        for piece in pieces:
            if piece not in known:
                known[piece] = self.encode(piece, special=False) if piece else []
        return [token for piece in pieces for token in known[piece]]

    def piece(self, token: int) -> str:
        """Return the text of one token alone, for the log probabilities."""
        return str(self._tokenizer.decode([token], skip_special_tokens=False))

    def shows(self, token: int) -> bool:
        """Return whether a token is part of a text: special tokens and unknown ones are not."""
        return token not in self._hidden and self._tokenizer.id_to_token(token) is not None

    def decode(self, tokens: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(tokens), skip_special_tokens=True))


def _special_tokens(config: object) -> dict[str, str]:
    """Return `bos_token` and the like for the template; each is a string or an object with
    `content`.
    """
    named = (
        {k: v.get("content") if isinstance(v, dict) else v for k, v in config.items()}
        if isinstance(config, dict)
        else {}
    )
    return {k: v for k, v in named.items() if str(k).endswith("_token") and isinstance(v, str)}


class Detokenizer:
    """A converter that takes tokens one by one and returns text, never half a character.

    It compares the text of a window with and without the new tokens. The window never has more than
    a few tokens: the work for each token is the same, however many there were before.
    """

    def __init__(self, text: Text) -> None:
        self._text = text
        self._shown: list[int] = []
        self._held: list[int] = []

    def feed(self, token: int) -> str:
        if not self._text.shows(token):
            return ""  # The whole text is what it would be without it.
        self._held.append(token)
        before, after = self._texts()
        if len(self._held) < _MAX_HELD_TOKENS and (len(after) <= len(before) or after.endswith(_REPLACEMENT)):
            return ""
        return self._show(before, after)

    def flush(self) -> str:
        """Return the rest; an unfinished character becomes the replacement character."""
        return self._show(*self._texts())

    def _texts(self) -> tuple[str, str]:
        """Return the text of the window without the tokens that are held back, and with them."""
        return self._text.decode(self._shown), self._text.decode([*self._shown, *self._held])

    def _show(self, before: str, after: str) -> str:
        if len(after) > len(before):
            self._shown, self._held = self._held, []
        else:  # What comes next still needs the text before it.
            self._held = []
        return after[len(before) :]
