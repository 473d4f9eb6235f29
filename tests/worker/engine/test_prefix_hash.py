"""Two blocks have one name where all tokens before them and their tenant are the same."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from disagg_worker.engine.prefix_hash import PrefixNames

tokens = st.lists(st.integers(0, 3), max_size=12)


@given(tokens, tokens, st.sampled_from(["", "a", "b"]), st.sampled_from(["", "a", "b"]))
def test_names_are_equal_where_all_tokens_before_and_the_tenant_are(
    a: list[int], b: list[int], of_a: str, of_b: str
) -> None:
    names = PrefixNames(b"k" * 32, 2)
    first, second = list[bytes](), list[bytes]()
    names.extend(first, a, of_a)
    names.extend(second, b, of_b)
    assert (len(first), len(second)) == (len(a) // 2, len(b) // 2)
    for i, (x, y) in enumerate(zip(first, second, strict=False)):
        assert (x == y) == (of_a == of_b and a[: 2 * i + 2] == b[: 2 * i + 2])
    step = list[bytes]()
    for end in range(len(a) + 1):
        names.extend(step, a[:end], of_a)
    assert step == first


def test_another_key_gives_other_names() -> None:
    found = []
    for key in (b"k" * 32, b"l" * 32):
        names: list[bytes] = []
        PrefixNames(key, 2).extend(names, [1, 2], "")
        found += names
    assert len(set(found)) == 2
