"""The language of the admission rules: the CEL of each word, and its value for a model."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from disagg_operator.api.base import Model
from disagg_operator.api.expressions import (
    Expression,
    at_most,
    choice,
    contains,
    differ,
    divides,
    equal,
    field,
    filled,
    length,
    lower_case,
    matches,
    none_named,
    one_of,
    present,
    starts_with,
)


class Inner(Model):
    """A part."""

    how_many: int = 3
    tags: list[str] = []


class Item(Model):
    """An item of a list."""

    name: str


class Outer(Model):
    """A whole, with a part that may be absent."""

    first_name: str = "Ab"
    other_name: str | None = None
    on: bool = False
    inner: Inner | None = None
    items: list[Item] = []


FULL = Outer(first_name="Ab", other_name="Ab", on=True, inner=Inner(how_many=3, tags=["x"]), items=[Item(name="a")])
BARE = Outer(first_name="b\n")
NAME, OTHER = field("firstName"), field("otherName")
HAS, ON = present("otherName"), field("on")

# The expression, its CEL, its value for FULL, and its value for BARE.
CASES: list[tuple[Expression, str, object, object]] = [
    (NAME, "self.firstName", "Ab", "b\n"),
    (HAS, "has(self.otherName)", True, False),
    (~HAS, "!has(self.otherName)", False, True),
    (~~ON, "!!self.on", True, False),
    (equal(NAME, "Ab"), "self.firstName == 'Ab'", True, False),
    (equal(NAME, OTHER), "self.firstName == self.otherName", True, False),
    (differ(NAME, "b"), "self.firstName != 'b'", True, True),
    (differ(HAS, ON), "has(self.otherName) != self.on", False, False),
    (equal(HAS & ON, ~HAS), "(has(self.otherName) && self.on) == (!has(self.otherName))", False, False),
    (none_named("items", ["a", "c"]), "self.items.all(item, !(item.name in ['a', 'c']))", False, True),
    (divides(length("firstName"), length("firstName")), "size(self.firstName) % size(self.firstName) == 0", True, True),
    (at_most(length("firstName"), 1), "size(self.firstName) <= 1", False, False),
    (one_of(NAME, ["Ab", "c"]), "self.firstName in ['Ab', 'c']", True, False),
    (~one_of(lower_case("firstName"), ("ab",)), "!(self.firstName.lowerAscii() in ['ab'])", False, True),
    (starts_with("firstName", "A"), "self.firstName.startsWith('A')", True, False),
    (matches("firstName", "^[A-Zb]+$"), "self.firstName.matches('^[A-Zb]+$')", True, False),
    (matches("firstName", r"^(\w|\s)+$"), r"self.firstName.matches(r'^(\w|\s)+$')", True, True),
    (contains("firstName", "b"), "self.firstName.matches('b')", True, True),
    (HAS & ON & equal(NAME, "Ab"), "has(self.otherName) && self.on && self.firstName == 'Ab'", True, False),
    (HAS & (ON & ON), "has(self.otherName) && self.on && self.on", True, False),
    (HAS | ON | ON, "has(self.otherName) || self.on || self.on", True, False),
    (~HAS | ON & ON, "!has(self.otherName) || (self.on && self.on)", True, True),
    (ON & (~HAS | ON), "self.on && (!has(self.otherName) || self.on)", True, False),
    (~(HAS & ON), "!(has(self.otherName) && self.on)", False, True),
    (
        present("inner") & filled("inner.tags"),
        "has(self.inner) && has(self.inner.tags) && size(self.inner.tags) > 0", True, False,
    ),
    (
        ~present("inner") | at_most(field("inner.howMany"), 2),
        "!has(self.inner) || self.inner.howMany <= 2", False, True,
    ),
    (~choice(HAS, ON, NAME), "!(has(self.otherName) ? self.on : self.firstName)", False, False),
    (
        ON | choice(HAS, ~ON, ON | HAS),
        "self.on || (has(self.otherName) ? !self.on : self.on || has(self.otherName))", True, False,
    ),
]  # fmt: skip


@pytest.mark.parametrize(("expression", "cel", "full", "bare"), CASES, ids=[case[1] for case in CASES])
def test_an_expression_is_cel_and_finds_out_the_same_in_python(
    expression: Expression,
    cel: str,
    full: object,
    bare: object,
) -> None:
    assert expression.cel == cel
    assert (expression.value(FULL), expression.value(BARE)) == (full, bare)


def test_a_field_that_may_be_absent_is_asked_for_first() -> None:
    """As in CEL, reading it is an error, so a rule without the guard fails its first test."""
    with pytest.raises(AttributeError):
        field("inner.howMany").value(BARE)


@pytest.mark.parametrize("pattern", ["b", "^b", "b$"])
def test_a_pattern_of_the_whole_has_both_ends(pattern: str) -> None:
    with pytest.raises(ValueError, match="must begin with"):
        matches("firstName", pattern)


def test_a_quotation_mark_does_not_end_a_literal() -> None:
    with pytest.raises(ValueError, match="quotation mark"):
        equal(NAME, "a' || 'b")


Condition = tuple[str, Expression]


def _and(left: Condition, right: Condition) -> Condition:
    return f"({left[0]} and {right[0]})", left[1] & right[1]


def _or(left: Condition, right: Condition) -> Condition:
    return f"({left[0]} or {right[0]})", left[1] | right[1]


def _equal(left: Condition, right: Condition) -> Condition:
    return f"({left[0]} == {right[0]})", equal(left[1], right[1])


def _not(one: Condition) -> Condition:
    return f"(not {one[0]})", ~one[1]


_CONDITIONS: st.SearchStrategy[Condition] = st.recursive(
    st.sampled_from([("True", ON), ("False", ~ON)]),
    lambda inner: st.one_of(*(st.builds(f, inner, inner) for f in (_and, _or, _equal)), st.builds(_not, inner)),
    max_leaves=12,
)


def _as_python(cel: str) -> str:
    """Return the same text in Python.

    Python's operators have the same order, except `not`, which binds less tightly than `!`.
    """
    return cel.replace("&&", " and ").replace("||", " or ").replace("!", " not ").replace("self.on", "True")


@given(_CONDITIONS)
def test_parentheses_keep_the_meaning_of_a_condition(pair: Condition) -> None:
    text, expression = pair
    assert expression.value(FULL) == eval(text)
    assert eval(_as_python(expression.cel)) == eval(text)
