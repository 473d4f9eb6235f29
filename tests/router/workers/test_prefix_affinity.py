"""Tests of the router's memory of where the start of a prompt was computed.

It is bounded and never shared between tenants.
"""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from disagg_router.workers.prefix_affinity import STRIDE_TOKENS, PrefixMap, prefix_names

LONG = list(range(5 * STRIDE_TOKENS + 7))


def found(prefixes: PrefixMap, tokens: list[int], tenant: str = "") -> dict[str, int]:
    return prefixes.cached_tokens(prefix_names(tokens, tenant))


def test_what_is_shared_from_the_start_on_is_found_in_whole_strides() -> None:
    prefixes = PrefixMap()
    prefixes.sent(prefix_names(LONG, "t"), "a")
    assert found(prefixes, LONG, "t") == {"a": 5 * STRIDE_TOKENS}
    assert found(prefixes, [*LONG[:200], 9, *LONG[201:]], "t") == {"a": 3 * STRIDE_TOKENS}
    assert found(prefixes, [9, *LONG[1:]], "t") == {}
    assert found(prefixes, LONG[: STRIDE_TOKENS - 1], "t") == {}
    assert found(prefixes, LONG, "other") == {}
    prefixes.sent(prefix_names(LONG[:130], "t"), "b")
    assert found(prefixes, LONG, "t") == {"a": 5 * STRIDE_TOKENS, "b": 2 * STRIDE_TOKENS}


def test_lora_adapters_and_the_model_itself_never_share_a_prefix() -> None:
    prefixes = PrefixMap()
    prefixes.sent(prefix_names(LONG, "t", "sql"), "a")
    assert prefixes.cached_tokens(prefix_names(LONG, "t", "sql")) == {"a": 5 * STRIDE_TOKENS}
    for tenant, adapter in (("t", ""), ("t", "chat"), ("", "sql"), ("", "tsql"), ("tsql", ""), ("sql", "t")):
        assert prefixes.cached_tokens(prefix_names(LONG, tenant, adapter)) == {}


def test_it_is_bounded_and_forgets_the_oldest_holders_and_names() -> None:
    prefixes = PrefixMap(max_names=4)
    names = prefix_names(LONG, "")
    for worker in "abcdef":
        prefixes.sent(names[:1], worker)
    assert set(prefixes.cached_tokens(names)) == set("cdef")
    for i in range(10):
        prefixes.sent(prefix_names([i] * STRIDE_TOKENS, "x"), "a")
    assert len(prefixes) == 4
    assert prefixes.cached_tokens(names) == {}


@given(
    st.lists(
        st.tuples(st.lists(st.integers(0, 2), max_size=4), st.sampled_from("ab"), st.sampled_from(["", "t"])),
        max_size=12,
    )
)
def test_nobody_is_said_to_have_what_was_not_sent_there(sends: list[tuple[list[int], str, str]]) -> None:
    """Each prompt consists of strides of one repeated token."""
    prefixes = PrefixMap()
    sent: dict[tuple[str, str], list[list[int]]] = {}
    for strides, worker, tenant in sends:
        tokens = [t for s in strides for t in [s] * STRIDE_TOKENS]
        common = {
            w: max((_common(strides, before) for before in sent.get((w, tenant), [])), default=0) * STRIDE_TOKENS
            for w in "ab"
        }
        assert found(prefixes, tokens, tenant) == {w: n for w, n in common.items() if n}
        prefixes.sent(prefix_names(tokens, tenant), worker)
        sent.setdefault((worker, tenant), []).append(strides)


def _common(a: list[int], b: list[int]) -> int:
    n = 0
    while n < min(len(a), len(b)) and a[n] == b[n]:
        n += 1
    return n


def test_what_was_not_sent_after_all_is_forgotten_for_this_worker_alone() -> None:
    prefixes = PrefixMap()
    names = prefix_names(LONG, "")
    prefixes.sent(names, "a")
    prefixes.sent(names[:3], "b")
    prefixes.not_sent(names[2:], "a")
    assert prefixes.cached_tokens(names) == {"a": 2 * STRIDE_TOKENS, "b": 3 * STRIDE_TOKENS}
    prefixes.not_sent(names, "b")
    assert (prefixes.cached_tokens(names), len(prefixes)) == ({"a": 2 * STRIDE_TOKENS}, 2)
    prefixes.not_sent(prefix_names(LONG, "x"), "a")
    assert len(prefixes) == 2
