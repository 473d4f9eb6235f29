"""Tests of the file of API keys: both forms, and that what is wrong is named without a key."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from disagg_router.key_file import MAX_KEYS, KeyFileError, parse

SECRET = "sk-secret-1"


def listed(*entries: Any) -> str:
    return json.dumps({"keys": list(entries)})


def test_the_plain_form_is_keys_without_limits_each_once() -> None:
    keys = parse(" a\n\nb a\tc\n")
    assert [k.key for k in keys] == ["a", "b", "c"]
    assert all(k.priority == 0 and not k.limits.model_dump(exclude_none=True) for k in keys)


def test_the_file_of_the_page_is_valid() -> None:
    page = (Path(__file__).parents[2] / "docs/operator.md").read_text()
    (block,) = re.findall(r"```json\n(\{\"keys\".*?)```", page, re.DOTALL)
    first, second = parse(block)
    assert (first.limits.concurrency, second.priority) == (32, -10)


def test_the_form_with_limits() -> None:
    limits = {"requestsPerMinute": 60, "tokensPerMinute": 1000, "concurrency": 2}
    first, second, third = parse(
        "\n" + listed({"key": "a", "limits": limits, "priority": 5}, {"key": "b"}, {"key": "c", "limits": {}})
    )
    assert (first.key, first.priority) == ("a", 5)
    assert first.limits.model_dump(by_alias=True) == limits
    assert (second.key, second.limits, second.priority) == ("b", third.limits, 0)
    assert "'a'" not in repr(first)


# (text, what the message says)
WRONG: list[tuple[str, str]] = [
    ("", "holds no key"),
    (" \n", "holds no key"),
    (" ".join(f"k{i}" for i in range(MAX_KEYS + 1)), "holds over 10000 keys"),
    ("{", "begins with { and is no JSON, line 1 column 2"),
    ('{"keys": [{"key": "a"},]}', "begins with { and is no JSON"),
    ('{"a": ' * 100_000, "too deep"),
    (f'{{"keys": {"9" * 5000}}}', "begins with { and is no JSON"),
    ("{}", "keys: Field required"),
    (listed(), "keys: List should have at least 1 item"),
    (listed({"key": SECRET}, "b"), "keys[1]: "),
    (listed({"key": SECRET}, {}), "keys[1].key: Field required"),
    (listed({"key": ""}), "keys[0].key: must be a text without white space"),
    (listed({"key": SECRET + " "}), "keys[0].key: must be a text without white space"),
    (listed({"key": 5}), "keys[0].key: "),
    (listed({"key": SECRET}, {"key": "b"}, {"key": SECRET}), "keys[2].key: is that of keys[0]"),
    (listed({"key": "a", "limit": {}}), "keys[0].limit: is no field"),
    (listed({SECRET: {}, "key": "a"}), "keys[0]....: is no field"),
    (listed({"key": "a", "limits": []}), "keys[0].limits: "),
    (listed({"key": "a", "limits": {"requestsPerMinute": 0}}), "keys[0].limits.requestsPerMinute: Input should be"),
    (listed({"key": "a", "limits": {"requestsPerMinute": "5"}}), "keys[0].limits.requestsPerMinute: "),
    (listed({"key": "a", "limits": {"tokensPerMinute": 1.5}}), "keys[0].limits.tokensPerMinute: "),
    (listed({"key": "a", "limits": {"tokensPerMinute": 10**10}}), "keys[0].limits.tokensPerMinute: "),
    (listed({"key": "a", "limits": {"concurrency": True}}), "keys[0].limits.concurrency: "),
    (listed({"key": "a", "limits": {"requests_per_minute": 5}}), "keys[0].limits....: is no field"),
    (listed({"key": "a", "priority": 101}), "keys[0].priority: "),
    (listed({"key": "a", "priority": 1000}, {"key": 5}), "keys[1].key: "),
]


@pytest.mark.parametrize(("text", "said"), WRONG, ids=[f"{i}: {w[1]}" for i, w in enumerate(WRONG)])
def test_what_is_wrong_is_named_by_its_place_and_no_key_is_told(text: str, said: str) -> None:
    with pytest.raises(KeyFileError) as caught:
        parse(text)
    assert said in str(caught.value)
    assert SECRET not in str(caught.value)
    assert len(str(caught.value)) < 2000


@given(st.text() | st.text().map(lambda t: "{" + t) | st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda v: st.lists(v, max_size=3) | st.dictionaries(st.sampled_from(("key", "limits", "priority", "x")), v),
).map(lambda v: json.dumps({"keys": v})))  # fmt: skip
def test_any_text_is_keys_or_an_error(text: str) -> None:
    try:
        keys = parse(text)
    except KeyFileError:
        return
    assert keys
    assert len({k.key for k in keys}) == len(keys)
    assert all(k.key and k.key.split() == [k.key] for k in keys)
