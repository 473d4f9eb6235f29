"""Where a profile comes from, and of which model it is none."""

from __future__ import annotations

import pytest

from disagg_operator.performance.origin import Origin, parse, same_model, to_raw
from disagg_operator.performance.profile import ProfileError

OF = Origin("org/some-model", "engine", "1.0", "H100", "0.2.0", "2026-11-30", 0.123)


def test_what_is_written_is_read_and_later_fields_are_ignored() -> None:
    assert parse("p.json", to_raw(OF) | {"later": {"a": 1}}) == OF
    assert parse("p.json", {}) == Origin()


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        ([], "measured: must be an object"),
        ({"model": 7}, "measured.model: 7 is of the wrong type"),
        ({"worst_error": "low"}, "measured.worst_error: 'low'"),
        ({"worst_error": True}, "measured.worst_error: True"),
    ],
)
def test_what_is_no_origin_is_named(raw: object, words: str) -> None:
    with pytest.raises(ProfileError, match=r"p\.json: ") as caught:
        parse("p.json", raw)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("meta-llama/Llama-3.1-70B-Instruct", "llama-3.1-70b", True),
        ("/models/Llama-3.1-70B/", "meta-llama/Llama-3.1-70B", True),
        ("org/own-model", "Own-Model", True),
        ("llama-3.1-70b", "llama-3.1-8b", False),
        ("own-model", "llama-3.1-8b", False),
    ],
)
def test_names_of_one_model(one: str, other: str, same: bool) -> None:
    assert same_model(one, other) is same


def test_what_is_not_known_is_not_compared() -> None:
    assert Origin().refusal("p.json", "llama-3.1-8b", "H100") is None
    assert OF.refusal("p.json", "", "") is None
    assert OF.refusal("p.json", "SOME-MODEL", "h100") is None
    assert OF.refusal("p.json", "other", "H100") == "p.json: is a profile of the model org/some-model, not of other"
    assert OF.refusal("p.json", "some-model", "A100") == "p.json: is a profile of H100, not of A100"


def test_the_origin_in_words() -> None:
    assert OF.words() == "org/some-model on H100 with engine 1.0, measured by disagg 0.2.0 on 2026-11-30, within 12 %"
    assert Origin().words() == "an unnamed model on unnamed hardware, measured by disagg, within 0 %"
