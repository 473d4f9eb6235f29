"""Tests that a worker's report is read whole or refused, and tells which requests it serves."""

from __future__ import annotations

from typing import Any

import pytest
from tests.router.workers.infos import INFO, worker

from disagg_router.workers.worker_info import Identity, Member, name_of, parse_info
from disagg_wire.room import Room

P, D = worker("p", "prefill"), worker("d", "decode")


def test_everything_that_a_worker_says_is_kept() -> None:
    room = {"free_tokens": 5, "total_tokens": 9, "free_seats": 1, "total_seats": 2, "step_s": 0.5}
    load = {"waiting_requests": 1, "waiting_tokens": 2, "running_requests": 3, "room": room}
    model = INFO["model"] | {"eos_token_ids": [0, 7], "bos_token_id": 3}
    said = parse_info(
        Member("w", "http://w", frozenset({"decode"})), INFO | {"load": load, "model": model, "state": "draining"}
    )
    assert said is not None
    assert (said.name, said.url, said.pod, said.incarnation, said.role, said.state, said.revision) == (
        "w",
        "http://w",
        "chat-decode-abc",
        "uid/1",
        "decode",
        "draining",
        "5d8f",
    )
    assert (said.compat, said.interface, said.transport, said.digest) == ("c", "net1", "tcp", "D")
    assert (said.max_model_len, said.vocab_size, said.eos_token_ids, said.bos_token_id) == (2048, 2048, (0, 7), 3)
    assert (said.block_size_tokens, said.blocks_total, said.blocks_free, said.max_running) == (16, 100, 100, 10)
    assert (said.waiting_requests, said.waiting_tokens, said.running_requests) == (1, 2, 3)
    assert (said.pools, said.room) == (frozenset({"decode"}), Room(5, 9, 1, 2, 0.5))


def test_what_is_wrong_with_a_workers_devices_is_passed_on() -> None:
    problem = {"reason": "MemlockTooLow", "message": "8 MiB"}
    field = {"usable": ["mlx5_0:1"], "ports": [{}], "problem": problem, "memlock_bytes": 8 << 20}
    said = parse_info(Member("w", "http://w"), INFO | {"fabric": field})
    assert said is not None
    assert said.fabric == {"usable": ["mlx5_0:1"], "problem": problem}
    strange: list[Any] = [None, 7, [], {"usable": 7}]
    for odd in strange:
        said = parse_info(Member("w", "http://w"), INFO | {"fabric": odd})
        assert said is not None
        assert said.fabric is None


def test_a_worker_outside_of_a_cluster_goes_by_its_name_and_a_model_may_lack_a_start_token() -> None:
    said = parse_info(Member("w", "http://w"), INFO | {"pod": ""})
    assert said is not None
    assert (said.pod, said.bos_token_id, said.room) == ("w", None, None)


@pytest.mark.parametrize(
    ("role", "state", "pools", "serves"),
    [
        ("prefill", "ready", (), ("prefill",)),
        ("decode", "ready", ("decode",), ("decode",)),
        ("decode", "ready", ("prefill",), ()),
        ("decode", "ready", ("prefill", "decode"), ("decode",)),
        ("both", "ready", (), ("prefill", "decode")),
        ("both", "ready", ("decode",), ("prefill", "decode")),
        ("prefill", "draining", (), ()),
        ("prefill", "starting", ("prefill",), ()),
    ],
)
def test_a_worker_serves_its_role_while_it_is_ready_and_at_home(
    role: str, state: str, pools: tuple[str, ...], serves: tuple[str, ...]
) -> None:
    found = worker("w", role, state=state, pools=frozenset(pools))
    assert tuple(r for r in ("prefill", "decode") if found.serves(r)) == serves


@pytest.mark.parametrize(
    "garbled",
    [
        {"protocol": 2},
        {"protocol": None},
        {"kv": {}},
        {"limits": []},
        {"load": None},
        {"model": {"digest": "D"}},
        {"model": []},
        {"load": INFO["load"] | {"waiting_tokens": "many"}},
        {"load": INFO["load"] | {"waiting_tokens": float("inf")}},
        {"model": INFO["model"] | {"eos_token_ids": 0}},
        {"features": 5},
        {"features": ["adapter"], "model": INFO["model"] | {"adapters": 5}},
        {"features": ["adapter"], "model": INFO["model"] | {"adapters": "sql"}},
        {"features": ["adapter"], "model": INFO["model"] | {"adapters": [5]}},
        {"features": ["adapter"], "model": INFO["model"] | {"adapters": [""]}},
        {"features": None},
        {"model": INFO["model"] | {"adapter_digests": ["sql"]}},
        {"model": INFO["model"] | {"adapter_digests": {"sql": 5}}},
        {"kv": INFO["kv"] | {"transports": ["rdma"]}},
        {"kv": INFO["kv"] | {"transports": {"rdma": 5}}},
    ],
)
def test_a_peer_that_is_not_understood_is_a_value_error_whatever_is_wrong(garbled: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        parse_info(Member("w", "http://w"), INFO | garbled)


def test_what_a_worker_says_of_its_features_is_kept_and_an_older_one_has_none() -> None:
    parsed = parse_info(Member("w", "http://w"), INFO | {"features": ["first_token_within_s", "not known here"]})
    assert parsed is not None
    assert "first_token_within_s" in parsed.features
    assert P.features == frozenset()


@pytest.mark.parametrize(
    ("features", "said", "wanted"),
    [
        (["adapter"], ["sql", "chat"], {"sql", "chat"}),
        (["adapter"], [], set()),
        (["adapter"], None, set()),
        ([], ["sql"], set()),  # it would refuse the field
    ],
)
def test_the_lora_adapters_of_a_worker_count_if_it_takes_the_field(
    features: list[str], said: list[str] | None, wanted: set[str]
) -> None:
    model = INFO["model"] | {"adapters": said}
    parsed = parse_info(Member("w", "http://w"), INFO | {"features": features, "model": model})
    assert parsed is not None
    assert parsed.adapters == wanted
    assert P.adapters == frozenset()


@pytest.mark.parametrize(
    ("said", "wanted"),
    [("Proved", "Proved"), ("Configured", "Configured"), ("proved", ""), (None, ""), ([], "")],
)
def test_the_evidence_of_a_transport_is_one_of_two_words_or_not_known(said: Any, wanted: str) -> None:
    parsed = parse_info(Member("w", "http://w"), INFO | {"kv": INFO["kv"] | {"evidence": said}})
    assert parsed is not None
    assert parsed.evidence == wanted


def test_the_transports_of_a_worker_are_kept_with_their_domains() -> None:
    parsed = parse_info(Member("w", "http://w"), INFO | {"kv": INFO["kv"] | {"transports": {"shm": "here"}}})
    assert parsed is not None
    assert (dict(parsed.transports), dict(P.transports)) == ({"shm": "here"}, {})


def test_a_worker_that_still_loads_is_no_worker_yet() -> None:
    assert (
        parse_info(Member("w", "http://w"), {k: v for k, v in INFO.items() if k not in ("model", "kv", "load")}) is None
    )


@pytest.mark.parametrize(
    ("said", "wanted"),
    [
        ({}, "m"),
        ({"model_name": "n"}, "n"),
        ({"model": INFO["model"] | {"name": ""}}, "configured"),
        ({"model": {k: v for k, v in INFO["model"].items() if k != "name"}}, "configured"),
        ({"model": INFO["model"] | {"name": 5}}, "configured"),
    ],
)
def test_a_worker_serves_the_name_that_it_reports_and_else_the_configured_one(
    said: dict[str, Any], wanted: str
) -> None:
    parsed = parse_info(Member("w", "http://w"), INFO | said, "configured")
    assert parsed is not None
    assert (parsed.model, parsed.identity) == (wanted, Identity(wanted, "D"))


@pytest.mark.parametrize(
    ("said", "wanted"),
    [({"model_name": "n"}, "n"), ({}, ""), ({"model_name": None, "model": None}, ""), ({"model_name": 5}, "")],
)
def test_a_starting_worker_tells_what_it_will_serve(said: dict[str, Any], wanted: str) -> None:
    assert name_of(said) == wanted


def test_a_worker_offers_its_model_and_its_adapters_by_name() -> None:
    found = worker("w", "decode", adapters=frozenset({"sql", "chat", "m"}), adapter_digests={"sql": "1"})
    offered = [Identity("m", "D"), Identity("chat", "D", "chat"), Identity("sql", "D", "sql", "1")]
    assert found.identities() == offered
    assert [i.parent for i in found.identities()] == ["", "m", "m"]
    assert all(found.offers(identity) for identity in offered)
    others = [Identity("m", "E"), Identity("n", "D"), Identity("sql", "D", "sql"), Identity("chat", "E", "chat"),
              Identity("m", "D", "m"), Identity("x", "D", "x")]  # fmt: skip
    assert not any(found.offers(identity) for identity in others)


def test_fingerprints_tell_weights_apart() -> None:
    identities = [Identity("m", "D"), Identity("m", "E"), Identity("s", "D", "s"), Identity("s", "D", "s", "2"),
                  Identity("t", "D", "t")]  # fmt: skip
    assert len({i.fingerprint for i in identities}) == 5
    assert Identity("other", "D").fingerprint == Identity("m", "D").fingerprint == "fp_D"
