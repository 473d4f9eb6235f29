"""Chat templates: programs from a model's folder that turn messages into text.

They run in jinja's sandbox, within a number of turns of their loops, and whatever they raise
concerns one request.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NoReturn

import jinja2
from jinja2.ext import Extension
from jinja2.lexer import (
    TOKEN_BLOCK_BEGIN,
    TOKEN_BLOCK_END,
    TOKEN_LPAREN,
    TOKEN_NAME,
    TOKEN_RPAREN,
    TOKEN_VARIABLE_BEGIN,
    TOKEN_VARIABLE_END,
    Token,
    TokenStream,
)
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

from disagg_router.errors import ApiError

log = logging.getLogger(__name__)
# A template goes through the messages a few times, of which there are at most 4,096.
_MAX_TURNS = 1_000_000
# The most elements or digits of a product.
_MAX_PRODUCT = 1 << 20
_TURN = "__turn"


class _CountedLoops(Extension):
    """Lets each turn of a loop call `__turn`."""

    def filter_stream(self, stream: TokenStream) -> Iterable[Token]:
        loop, previous = False, ""
        for token in stream:
            yield token
            if token.type == TOKEN_NAME and previous == TOKEN_BLOCK_BEGIN:
                loop = token.value == "for"
            elif token.type == TOKEN_BLOCK_END and loop:
                loop = False
                yield from _call(token.lineno)
            previous = token.type


def _call(line: int) -> Iterator[Token]:
    kinds = (TOKEN_VARIABLE_BEGIN, "{{"), (TOKEN_NAME, _TURN), (TOKEN_LPAREN, "("), (TOKEN_RPAREN, ")")
    for kind, text in (*kinds, (TOKEN_VARIABLE_END, "}}")):
        yield Token(line, kind, text)


class _Turns(threading.local):
    """The turns that the template running on this thread has left."""

    left = 0

    def __call__(self) -> str:
        self.left -= 1
        if self.left < 0:
            raise jinja2.TemplateError("its loops take too many turns")
        return ""


class _Bounded(ImmutableSandboxedEnvironment):
    """A sandbox in which no operator makes something huge."""

    intercepted_binops = frozenset({"*", "**"})

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if operator == "**" and not (isinstance(right, int | float) and abs(right) <= 64):
            raise jinja2.TemplateError("a power is too large")
        if operator == "*" and max(_repeated(left, right), _repeated(right, left)) > _MAX_PRODUCT:
            raise jinja2.TemplateError("a product is too large")
        if any(isinstance(n, int) and n.bit_length() > _MAX_PRODUCT for n in (left, right)):
            raise jinja2.TemplateError("a number is too large")
        return super().call_binop(context, operator, left, right)


def _repeated(items: object, times: object) -> int:
    """Return how long a sequence is that is repeated, or 0 for what is none."""
    return len(items) * times if isinstance(items, str | list | tuple) and isinstance(times, int) else 0


class ChatTemplate:
    """A compiled template, with the names that it may use. Raises ValueError if it has errors."""

    def __init__(self, source: str, names: Mapping[str, str]) -> None:
        self._names = dict(names)
        self._turns = _Turns()
        # What is constant is not computed before it is needed: it could be anything.
        environment = _Bounded(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", _CountedLoops], optimized=False
        )
        environment.globals["raise_exception"] = _refuse
        environment.globals[_TURN] = self._turns
        try:
            self._template = environment.from_string(source)
        except Exception as error:
            raise ValueError(f"{type(error).__name__}: {error}") from None

    def render(self, messages: Sequence[Mapping[str, Any]]) -> str:
        """Return the text of a chat. Raises ApiError if the template refuses it."""
        self._turns.left = _MAX_TURNS
        try:
            return self._template.render(messages=messages, add_generation_prompt=True, **self._names)
        # A template is a program: it may do anything with messages that it did not expect.
        except Exception as error:
            message = str(error)[:256] if isinstance(error, jinja2.TemplateError) else type(error).__name__
            raise ApiError(
                400, f"messages: the chat template refuses them: {message}", code="invalid_value", param="messages"
            ) from None


def _refuse(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)
