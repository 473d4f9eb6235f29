"""PURE: The language of the admission rules.

An expression is written once and read twice: `cel` is its text for the API server, and `value`
evaluates it on a parsed model. The language is a part of CEL with the same semantics: paths are
those of the API (`scaling.roleFlip`), `&` and `|` stop at the side that decides, and `present` must
guard a field that may be absent. `~present("tlsConfig") | starts_with("url", "https://")` stands
for

    !has(self.tlsConfig) || self.url.startsWith('https://')
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import cache
from typing import Any

from pydantic import BaseModel


class Binding(IntEnum):
    """The outermost operator of an expression, ordered by how tightly it binds."""

    CHOICE = 0
    OR = 1
    AND = 2
    COMPARISON = 3
    NOT = 4
    OPERAND = 5


@dataclass(frozen=True, slots=True)
class Expression:
    """A statement about a model, as CEL and as a function of the parsed model."""

    cel: str
    value: Callable[[BaseModel], Any]
    binding: Binding = Binding.OPERAND

    def __invert__(self) -> Expression:
        return Expression(f"!{self.above(Binding.NOT)}", lambda model: not self.value(model), Binding.NOT)

    def __and__(self, other: Expression) -> Expression:
        text = f"{self.above(Binding.AND)} && {other.above(Binding.AND)}"
        return Expression(text, lambda model: bool(self.value(model)) and bool(other.value(model)), Binding.AND)

    def __or__(self, other: Expression) -> Expression:
        sides = (self, other)
        text = " || ".join(s.cel if s.binding not in (Binding.AND, Binding.CHOICE) else f"({s.cel})" for s in sides)
        return Expression(text, lambda model: bool(self.value(model)) or bool(other.value(model)), Binding.OR)

    def above(self, binding: Binding) -> str:
        """Return the text, in parentheses unless it binds at least as tightly as `binding`."""
        return self.cel if self.binding >= binding else f"({self.cel})"


def field(path: str) -> Expression:
    """Return the value of a field."""
    return Expression(f"self.{path}", lambda model: _read(model, path))


def present(path: str) -> Expression:
    """Test whether an optional field is set. For a list, whose default is [], use `filled`."""
    return Expression(f"has(self.{path})", lambda model: _read(model, path) is not None)


def filled(path: str) -> Expression:
    """Test whether a list is set and has items."""
    some = Expression(f"size(self.{path}) > 0", lambda model: bool(_read(model, path)), Binding.COMPARISON)
    return present(path) & some


def equal(left: Expression, right: Expression | str | int) -> Expression:
    """Test whether both sides are the same."""
    other = _operand(right)
    return _comparison(left, "==", other, lambda model: bool(left.value(model) == other.value(model)))


def differ(left: Expression, right: Expression | str | int) -> Expression:
    """Test whether the sides are not the same; for two conditions, whether exactly one holds."""
    other = _operand(right)
    return _comparison(left, "!=", other, lambda model: bool(left.value(model) != other.value(model)))


def at_most(left: Expression, right: Expression | int) -> Expression:
    """Test whether `left` does not exceed `right`."""
    other = _operand(right)
    return _comparison(left, "<=", other, lambda model: bool(left.value(model) <= other.value(model)))


def one_of(left: Expression, values: Sequence[str]) -> Expression:
    """Test whether a text is one of `values`."""
    literals = Expression(f"[{', '.join(_literal(value) for value in values)}]", lambda _: values)
    return _comparison(left, "in", literals, lambda model: left.value(model) in values)


def none_named(path: str, names: Sequence[str]) -> Expression:
    """Test whether no item of a list that is set has one of these names."""
    literals = ", ".join(_literal(name) for name in names)
    text = f"self.{path}.all(item, !(item.name in [{literals}]))"
    return Expression(text, lambda model: not any(item.name in names for item in _read(model, path)))


def divides(divisor: Expression, number: Expression) -> Expression:
    """Test whether a number, such as a size, is a multiple of another one, which is not 0."""
    text = f"{number.above(Binding.OPERAND)} % {divisor.above(Binding.OPERAND)} == 0"
    return Expression(text, lambda model: number.value(model) % divisor.value(model) == 0, Binding.COMPARISON)


def length(path: str) -> Expression:
    """Return the number of characters of a text."""
    return Expression(f"size(self.{path})", lambda model: len(_read(model, path)))


def lower_case(path: str) -> Expression:
    """Return a text of ASCII characters in lower case."""
    return Expression(f"self.{path}.lowerAscii()", lambda model: _read(model, path).lower())


def starts_with(path: str, prefix: str) -> Expression:
    """Test whether a text begins with `prefix`."""
    text = f"self.{path}.startsWith({_literal(prefix)})"
    return Expression(text, lambda model: _read(model, path).startswith(prefix))


def matches(path: str, pattern: str) -> Expression:
    """Test whether a whole text matches a pattern, which begins with ^ and ends with $."""
    if not (pattern.startswith("^") and pattern.endswith("$")):
        raise ValueError(f"{pattern}: must begin with ^ and end with $")
    # Not re.search: in Python, but not in CEL, $ also matches before a newline at the end.
    text = f"self.{path}.matches({_literal(pattern)})"
    return Expression(text, lambda model: re.fullmatch(pattern, _read(model, path)) is not None)


def contains(path: str, pattern: str) -> Expression:
    """Test whether a part of a text matches a pattern."""
    text = f"self.{path}.matches({_literal(pattern)})"
    return Expression(text, lambda model: re.search(pattern, _read(model, path)) is not None)


def choice(condition: Expression, then: Expression, otherwise: Expression) -> Expression:
    """Return `then` if the condition holds, and `otherwise` if it does not."""
    text = f"{condition.above(Binding.OR)} ? {then.above(Binding.OR)} : {otherwise.cel}"
    return Expression(text, lambda model: (then if condition.value(model) else otherwise).value(model), Binding.CHOICE)


def _comparison(left: Expression, operator: str, right: Expression, value: Callable[[BaseModel], bool]) -> Expression:
    text = f"{left.above(Binding.OPERAND)} {operator} {right.above(Binding.OPERAND)}"
    return Expression(text, value, Binding.COMPARISON)


def _operand(operand: Expression | str | int) -> Expression:
    if isinstance(operand, Expression):
        return operand
    return Expression(_literal(operand) if isinstance(operand, str) else str(operand), lambda _: operand)


def _literal(text: str) -> str:
    """Return a text as a CEL literal, which is a raw one if the text has a backslash."""
    if "'" in text:
        raise ValueError(f"{text}: a quotation mark can't stand in a literal")
    return f"r'{text}'" if "\\" in text else f"'{text}'"


def _read(model: BaseModel, path: str) -> Any:
    *parents, last = path.split(".")
    for name in parents:
        model = getattr(model, attributes(type(model))[name])
    return getattr(model, attributes(type(model))[last])


@cache
def attributes(model: type[BaseModel]) -> dict[str, str]:
    """Return the attribute that holds each field of the API."""
    return {found.alias or name: name for name, found in model.model_fields.items()}
