"""The conversion of text to tokens and back.

Tokenizer and chat template come from a worker, so the router needs no model files.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer

from disagg_router.errors import ApiError

log = logging.getLogger(__name__)
_REPLACEMENT = "\ufffd"
# No character takes more tokens than this. Longer text that ends in the middle of a character is
# broken, and is shown as it is.
_MAX_HELD_TOKENS = 16


class Text:
    """The tokenizer and the chat template of one model. Raises ValueError if the files are not
    usable.
    """

    def __init__(self, files: Mapping[str, Any]) -> None:
        self.digest = str(files["digest"])
        try:
            self._tokenizer = Tokenizer.from_str(files["tokenizer_json"])
        except Exception as error:
            raise ValueError(f"tokenizer.json: {error}") from None
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._names = _special_tokens(files.get("tokenizer_config"))
        template = files.get("chat_template")
        self._template = _compile(template) if isinstance(template, str) else None

    def encode(self, text: str, *, special: bool) -> list[int]:
        """Return the token ids of a text.

        `special` lets the tokenizer add its begin token; markers inside the text are always
        recognized.
        """
        return list(self._tokenizer.encode(text, add_special_tokens=special).ids)

    def encode_chat(self, messages: Sequence[Mapping[str, Any]]) -> list[int]:
        """Return the token ids of a chat. Raises ApiError if the template refuses it or there is
        none.
        """
        if self._template is None:
            raise ApiError(
                400,
                "this model has no usable chat template; use /v1/completions",
                code="no_chat_template",
                param="messages",
            )
        try:
            text = self._template.render(messages=messages, add_generation_prompt=True, **self._names)
        # A template is a program: it may do anything with messages that it did not expect.
        except Exception as error:
            message = str(error)[:256] if isinstance(error, jinja2.TemplateError) else type(error).__name__
            raise ApiError(
                400, f"messages: the chat template refuses them: {message}", code="invalid_value", param="messages"
            ) from None
        return self.encode(text, special=False)

    def piece(self, token: int) -> str:
        """Return the text of one token alone, for the log probabilities."""
        return str(self._tokenizer.decode([token], skip_special_tokens=False))

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


def _compile(template: str) -> jinja2.Template | None:
    """Return the compiled template, or None if it has errors: the model can then do everything but
    chat.
    """
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.globals["raise_exception"] = _refuse
    try:
        return environment.from_string(template)
    except jinja2.TemplateError as error:
        log.error("the model's chat template is not usable: %s", error)
        return None


def _refuse(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


class Detokenizer:
    """A converter that takes tokens one by one and returns text, never half a character.

    It compares the text of a window with and without the new token.
    """

    def __init__(self, text: Text) -> None:
        self._text = text
        self._tokens: list[int] = []
        self._window = 0
        self._shown = 0

    def feed(self, token: int) -> str:
        self._tokens.append(token)
        before = self._text.decode(self._tokens[self._window : self._shown])
        after = self._text.decode(self._tokens[self._window :])
        held = len(self._tokens) - self._shown
        if len(after) <= len(before) or (after.endswith(_REPLACEMENT) and held < _MAX_HELD_TOKENS):
            return ""
        self._window, self._shown = self._shown, len(self._tokens)
        return after[len(before) :]

    def flush(self) -> str:
        """Return the rest; an unfinished character becomes the replacement character."""
        before = self._text.decode(self._tokens[self._window : self._shown])
        after = self._text.decode(self._tokens[self._window :])
        self._window = self._shown = len(self._tokens)
        return after[len(before) :]
