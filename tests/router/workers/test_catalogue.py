"""Tests of what the router can serve under which name, and of how requests are shared out."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.router.workers.infos import worker

from disagg_router.workers.canary import Canary
from disagg_router.workers.catalogue import (
    DECODE_ALONE,
    NOTHING_WHOLE,
    PAIR,
    PROVEN_PAIR,
    Catalogue,
    KnownNames,
    catalogue_of,
)
from disagg_router.workers.worker_info import Identity, Worker
from disagg_wire.canary import CanaryWord

NO_LOCAL = frozenset({"no_local_prefill"})
P, D, B = worker("p", "prefill"), worker("d", "decode"), worker("b", "both")
OTHER: dict[str, Any] = {"digest": "E", "compat": "e"}


def made(workers: list[Worker], proven: tuple[str, ...] = ()) -> Catalogue:
    return catalogue_of(workers, proven, ("D", "E"))


def pools(prefills: int, decodes: int, **changes: Any) -> list[Worker]:
    tag = changes.get("digest", "D")
    return [worker(f"p{tag}{i}", "prefill", **changes) for i in range(prefills)] + [
        worker(f"d{tag}{i}", "decode", **changes) for i in range(decodes)
    ]


def shares(catalogue: Catalogue, name: str = "m") -> dict[str, float]:
    return {o.model.identity.digest: round(o.share, 3) for o in catalogue.current(name)}


@pytest.mark.parametrize(
    ("workers", "proven", "ability"),
    [
        ([P, D], (), PAIR),
        ([P, D], ("p/1",), PAIR),
        ([P, D], ("p/1", "d/1"), PROVEN_PAIR),
        ([P, replace(D, compat="x")], ("p/1", "d/1"), DECODE_ALONE),
        ([B], (), PROVEN_PAIR),
        ([D], (), DECODE_ALONE),
        ([replace(D, features=NO_LOCAL)], (), NOTHING_WHOLE),
        ([P], (), NOTHING_WHOLE),
        ([P, replace(D, pools=frozenset({"prefill"}))], (), NOTHING_WHOLE),
    ],
)
def test_what_the_workers_of_a_model_are_able_to_do(
    workers: list[Worker], proven: tuple[str, ...], ability: int
) -> None:
    catalogue = made(workers, proven)
    (offer,) = catalogue.offers["m"]
    assert offer.ability == ability
    assert ("m" in catalogue.live()) is (ability > NOTHING_WHOLE)
    assert catalogue.pick("m", 0.99) == offer.model
    assert "m = fp_D" in catalogue.lines()[0]


def test_workers_that_are_not_ready_and_models_without_a_tokenizer_are_not_offered() -> None:
    assert made([replace(D, state="draining"), replace(D, digest="unknown")]).offers == {}
    assert made([]).pick("m", 0.5) is None
    assert made([]).current("m") == ()


def test_a_name_leads_only_to_workers_that_report_it() -> None:
    catalogue = made([P, D, *pools(1, 1, model="n", **OTHER)])
    assert {name: i.digest for name, i in catalogue.live().items()} == {"m": "D", "n": "E"}
    assert catalogue.has(Identity("n", "E"))
    assert not catalogue.has(Identity("n", "D"))
    assert not catalogue.has(Identity("x", "D"))


def test_the_smallest_of_the_limits_applies() -> None:
    model = made([P, replace(D, max_model_len=1000)]).pick("m", 0.0)
    assert model is not None
    assert (model.identity, model.max_model_len, model.vocab_size, model.eos_token_ids) == (
        Identity("m", "D"),
        1000,
        2048,
        (0,),
    )


@pytest.mark.parametrize(
    ("old", "new", "wanted"),
    [
        ((4, 4), (1, 1), {"D": 0.8, "E": 0.2}),
        ((1, 4), (1, 1), {"D": 0.5, "E": 0.2}),
        ((2, 2), (2, 2), {"D": 0.5, "E": 0.5}),
        ((2, 2), (0, 2), {"D": 1.0}),  # what is half there gets nothing
        ((0, 2), (0, 6), {"D": 0.25, "E": 0.75}),
        ((2, 0), (1, 0), {"D": 0.5, "E": 0.5}),
    ],
)
def test_requests_for_one_name_are_shared_out_by_the_pairs_of_each_model(
    old: tuple[int, int], new: tuple[int, int], wanted: dict[str, float]
) -> None:
    assert shares(made([*pools(*old), *pools(*new, **OTHER)])) == wanted


def test_workers_without_a_partner_do_not_count() -> None:
    odd = [worker(f"x{i}", "decode", compat="x") for i in range(9)]
    assert shares(made([*pools(1, 1), *odd, *pools(1, 1, **OTHER)])) == {"D": 0.5, "E": 0.5}


def test_a_pair_that_has_not_moved_kv_yet_gets_nothing_while_another_has() -> None:
    workers = [P, D, *pools(3, 3, **OTHER)]
    catalogue = made(workers, ("p/1", "d/1"))
    assert shares(catalogue) == {"D": 1.0}
    assert catalogue.has(Identity("m", "E"))
    assert catalogue.goes_to(Identity("m", "D"))
    assert not catalogue.goes_to(Identity("m", "E"))


def test_adapters_are_names_of_their_own() -> None:
    sql = frozenset({"sql"})
    catalogue = made(
        [
            replace(P, adapters=sql, adapter_digests={"sql": "1"}),
            replace(D, adapters=sql, adapter_digests={"sql": "1"}),
            worker("e", "decode", adapters=sql, adapter_digests={"sql": "2"}),
        ]
    )
    assert catalogue.live()["sql"] == Identity("sql", "D", "sql", "1")
    assert catalogue.live()["sql"].parent == "m"
    assert [o.ability for o in catalogue.offers["sql"]] == [PAIR, DECODE_ALONE]


@given(
    st.lists(st.tuples(st.sampled_from("DE"), st.sampled_from("ce"), st.sampled_from(["prefill", "decode", "both"]))),
    st.floats(0, 1, exclude_max=True),
)
def test_a_pick_is_one_of_the_most_able(parts: list[tuple[str, str, str]], roll: float) -> None:
    workers = [worker(f"w{i}", role, digest=d, compat=c) for i, (d, c, role) in enumerate(parts)]
    catalogue = made(workers)
    picked = catalogue.pick("m", roll)
    assert (picked is None) is (not workers)
    if picked is not None:
        assert catalogue.goes_to(picked.identity)
        most = max(o.ability for o in catalogue.offers["m"])
        assert picked in [o.model for o in catalogue.offers["m"] if o.ability == most]
        assert all(0 < o.share <= 1 for o in catalogue.offers["m"])


def test_names_are_known_while_they_are_configured_coming_served_or_just_served() -> None:
    names = KnownNames("m", 10.0)
    assert names.known("m", 0.0)
    assert not names.known("n", 0.0)
    assert not names.any_served
    names.update(Catalogue(), {"n"}, 0.0)
    assert names.known("n", 0.0)
    served = made(pools(1, 1, model="n"))
    names.update(served, (), 5.0)
    assert names.any_served
    assert names.last("n") == served.pick("n", 0.0)
    assert (names.last("m"), names.digests()) == (None, {"D"})
    names.update(Catalogue(), (), 14.0)
    assert names.known("n", 14.0)
    assert not names.known("n", 15.0)
    names.update(Catalogue(), (), 15.0)
    assert (names.last("n"), names.digests(), names.known("n", 6.0)) == (None, set(), False)
    assert names.any_served


def test_the_configured_name_is_listed_first_and_its_adapters_while_it_is_away() -> None:
    names, sql = KnownNames("m", 10.0), frozenset({"sql"})
    assert names.listed() == {"m": ""}
    both = [
        *(replace(w, adapters=sql) for w in pools(1, 1)),
        *(replace(w, adapters=frozenset({"x"})) for w in pools(1, 1, model="a", **OTHER)),
    ]
    names.update(made(both), (), 0.0)
    assert list(names.listed().items()) == [("m", ""), ("a", ""), ("sql", "m"), ("x", "a")]
    names.update(Catalogue(), (), 100.0)
    assert list(names.listed().items()) == [("m", ""), ("sql", "m")]
    assert names.known("sql", 1000.0)
    names.update(made([P, D]), (), 101.0)  # it has come back without the adapter
    assert names.listed() == {"m": ""}
    assert not names.known("sql", 101.0)


def test_adapters_that_are_configured_are_known_from_the_start_and_while_the_model_is_away() -> None:
    names = KnownNames("m", 10.0, ["sql"])
    assert names.listed() == {"m": "", "sql": "m"}
    assert names.known("sql", 0.0)
    names.update(made([P, D]), (), 0.0)  # the workers do not have it
    assert (names.listed(), names.known("sql", 0.0)) == ({"m": ""}, False)
    names.update(Catalogue(), (), 1000.0)
    assert (names.listed(), names.known("sql", 1000.0)) == ({"m": "", "sql": "m"}, True)


def test_a_name_is_served_when_whole_requests_can_be() -> None:
    assert made([P, D]).serves("m")
    assert not made([P]).serves("m")
    assert not made([P, D]).serves("n")


def test_while_a_revision_is_tried_its_weights_get_its_part_of_the_requests() -> None:
    word = CanaryWord(10, "new")
    canary = Canary({"prefill": word, "decode": word})
    workers = [*pools(1, 1), *pools(3, 3, revision="new", **OTHER)]
    assert shares(catalogue_of(workers, (), ("D", "E"), canary)) == {"D": 0.9, "E": 0.1}


@pytest.mark.parametrize(
    ("workers", "coming", "all_told", "known"),
    [
        (pools(1, 1, model="n"), (), True, False),  # another model has replaced it
        (pools(1, 1, model="n"), (), False, True),  # a worker has not said yet what it will serve
        (pools(1, 1, model="n"), {"m"}, True, True),
        ([*pools(1, 1, model="n"), P], (), True, True),  # one of its workers is left
        ([P], (), True, True),
        ([], (), True, True),  # all are away
    ],
)
def test_a_model_that_another_one_has_replaced_need_not_be_waited_for(
    workers: list[Worker], coming: set[str], all_told: bool, known: bool
) -> None:
    names = KnownNames("m", 10.0)
    names.update(made([replace(w, adapters=frozenset({"sql"})) for w in pools(1, 1)]), (), 0.0)
    names.update(made(workers), coming, 1.0, all_told=all_told)
    assert names.known("m", 2.0) is known
    assert names.known("sql", 2.0) is known
    assert ("m" in names.listed()) is known


def test_any_name_may_be_that_of_a_model_that_comes_while_none_is_served() -> None:
    names = KnownNames("m", 10.0)
    names.update(Catalogue(), (), 0.0, all_told=False)
    assert not names.known("n", 0.0)
    names.update(made(pools(1, 1)), (), 1.0, all_told=False)
    assert not names.known("n", 1.0)
    names.update(Catalogue(), (), 2.0, all_told=False)
    assert names.known("n", 2.0)
    names.update(Catalogue(), (), 3.0, all_told=True)
    assert not names.known("n", 3.0)


def test_a_configured_model_that_was_never_there_is_to_come_whoever_serves_meanwhile() -> None:
    """It was renamed, and the workers of the old name are still there, or there again."""
    names = KnownNames("n", 10.0, ["sql"])
    names.update(made(pools(1, 1)), (), 0.0)
    assert names.known("n", 1.0)
    assert names.expected("n", 1.0)
    assert names.known("sql", 1.0)
    assert list(names.listed()) == ["n", "m", "sql"]
    names.update(made(pools(1, 1, model="n")), (), 2.0)
    names.update(made(pools(1, 1)), (), 3.0)
    assert not names.known("n", 4.0)  # it was there, and is replaced


def test_a_name_that_may_be_none_may_wait_but_asks_for_nobody() -> None:
    names = KnownNames("m", 10.0)
    names.update(made(pools(1, 1)), (), 0.0)
    names.update(Catalogue(), (), 1.0, all_told=False)
    assert (names.known("x", 2.0), names.expected("x", 2.0)) == (True, False)
    assert (names.known("m", 2.0), names.expected("m", 2.0)) == (True, True)
    names.update(Catalogue(), {"x"}, 3.0, all_told=False)
    assert names.expected("x", 4.0)
