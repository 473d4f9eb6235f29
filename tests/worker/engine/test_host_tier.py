"""The host tier keeps what is newest and fits, and gives each block out once."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from disagg_worker.engine.block_pool import StaleReference
from disagg_worker.engine.host_tier import HostTier


@given(st.lists(st.tuples(st.integers(0, 8), st.integers(1, 6), st.booleans()), max_size=60), st.integers(0, 15))
def test_the_host_tier_keeps_the_newest_that_fit_and_a_stale_entry_is_refused(
    ops: list[tuple[int, int, bool]], capacity: int
) -> None:
    tier, model = HostTier(capacity), dict[bytes, bytes]()
    for number, size, put in ops:
        name = bytes([number])
        if put:
            stale = tier.find(name)
            tier.put(name, name * size)
            model.pop(name, None)
            if size <= capacity:
                model[name] = name * size
                while sum(map(len, model.values())) > capacity:
                    del model[next(iter(model))]
            if stale is not None:
                with pytest.raises(StaleReference):
                    tier.take(stale)
        elif (ref := tier.find(name)) is not None:
            assert tier.take(ref) == model.pop(name)
            with pytest.raises(StaleReference):
                tier.take(ref)
        else:
            assert name not in model
        assert tier.held_bytes == sum(map(len, model.values())) <= capacity
        assert len(tier) == len(model)


def test_what_is_asked_for_counts_as_used_and_what_was_not_goes_first() -> None:
    tier = HostTier(3)
    for name in (b"a", b"b", b"c"):
        tier.put(name, name)
    assert tier.find(b"a") is not None
    tier.put(b"d", b"d")
    assert tier.find(b"b") is None
    assert [tier.find(name) is not None for name in (b"a", b"c", b"d")] == [True, True, True]


def test_what_is_larger_than_the_tier_is_not_kept_and_drives_nothing_out() -> None:
    tier = HostTier(3)
    tier.put(b"a", b"12")
    tier.put(b"b", b"1234")
    assert tier.find(b"b") is None
    assert tier.find(b"a") is not None
    tier.put(b"a", b"1234")
    assert (len(tier), tier.held_bytes) == (0, 0)


def test_to_discard_what_is_not_there_changes_nothing() -> None:
    tier = HostTier(3)
    tier.put(b"a", b"12")
    tier.discard(b"b")
    assert tier.held_bytes == 2
    tier.discard(b"a")
    assert (len(tier), tier.held_bytes) == (0, 0)
