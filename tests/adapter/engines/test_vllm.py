"""Tests of what vLLM is told and of what its answers mean.

`vllm-0.32.0-metrics.txt` is what a decode engine of that version answered to /metrics after it had
taken over a prompt of 69 tokens and generated eight, without most buckets. `vllm-0.32.0-stream.txt`
is the stream of that request. The answers in this file are those of the same version.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from disagg_adapter.engines.contract import Delta, EngineFault, Output, Work
from disagg_adapter.engines.http_client import EngineHttp
from disagg_adapter.engines.prometheus_text import parse_samples
from disagg_adapter.engines.vllm import _OPTIONAL, _REQUIRED, Vllm, delta_of, handover_of, sampling_params
from disagg_protocol.bodies import Sampling, StructuredOutput
from disagg_protocol.errors import InvalidInput
from disagg_wire import codes
from disagg_wire.engine_metrics.vllm import readings_of

HERE = Path(__file__).parent
PAGE = (HERE / "vllm-0.32.0-metrics.txt").read_text()
HAND_OVER: Mapping[str, Any] = {
    "do_remote_prefill": True,
    "do_remote_decode": False,
    "remote_block_ids": [[1, 2, 3]],
    "remote_engine_id": "e3c71f21-d025-43fd-9f73-829d3aa3dbe1",
    "remote_request_id": "generate-tokens-r1-ae5907fd",
    "remote_host": "127.0.0.1",
    "remote_port": 37265,
    "tp_size": 1,
    "dcp_size": 1,
    "pp_size": 1,
    "remote_num_tokens": 69,
    "remote_blocks_expiry_time": None,
    "transfer_mode": "pull",
    "remote_prefill_cached_tokens": 0,
}


def vllm() -> Vllm:
    return Vllm(EngineHttp("http://127.0.0.1:1"), "m", 20.0)


def work(tokens: int = 3, prompt: int = 3, **sampling: Any) -> Work:
    values = Sampling.model_validate({"seed": 1, "max_new_tokens": 8} | sampling)
    return Work("r", list(range(tokens)), prompt, values, "", None)


def test_every_sampling_parameter_reaches_vllm_under_its_name() -> None:
    found = sampling_params(
        work(
            seed=(1 << 63) + 5,
            temperature=0.5,
            top_p=0.9,
            top_k=40,
            min_p=0.1,
            presence_penalty=-1.0,
            frequency_penalty=1.0,
            repetition_penalty=1.1,
            logit_bias=[(50, -100.0)],
            logprobs=3,
            stop_token_ids=[0, 2],
            min_tokens=2,
        ),
        8,
    )
    assert found == {
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 40,
        "min_p": 0.1,
        "presence_penalty": -1.0,
        "frequency_penalty": 1.0,
        "repetition_penalty": 1.1,
        "max_tokens": 8,
        "min_tokens": 2,
        "stop_token_ids": [0, 2],
        "ignore_eos": True,
        "detokenize": False,
        "seed": 5,
        "logit_bias": {"50": -100.0},
        "logprobs": 3,
    }
    # A field that is added to the protocol must not be lost on the way.
    renamed = {"max_new_tokens": "max_tokens", "structured": "structured_outputs"}
    assert {renamed.get(name, name) for name in Sampling.model_fields} - {"structured_outputs"} <= set(found)


def test_a_greedy_request_has_no_seed_and_prefill_at_most_one_token() -> None:
    found = sampling_params(work(temperature=0.0, min_tokens=5), 1)
    assert "seed" not in found
    assert (found["max_tokens"], found["min_tokens"]) == (1, 1)
    assert not {"logit_bias", "logprobs", "structured_outputs"} & set(found)


@pytest.mark.parametrize(
    ("kind", "value", "expected"),
    [
        ("json_schema", '{"type": "object"}', {"json": '{"type": "object"}'}),
        ("regex", "a+", {"regex": "a+"}),
        ("choice", '["a", "b"]', {"choice": ["a", "b"]}),
    ],
)
def test_formats_have_vllms_names(kind: Any, value: str, expected: Any) -> None:
    structured = StructuredOutput(kind=kind, value=value)
    asked = work(structured=structured.model_dump())
    vllm().check(asked)
    assert sampling_params(asked, 8)["structured_outputs"] == expected


def test_what_vllm_cannot_do_is_refused_by_name() -> None:
    lark = {"kind": "grammar", "value": "start: /a/"}
    with pytest.raises(InvalidInput, match=r"sampling\.structured\.kind"):
        vllm().check(work(structured=lark))
    with pytest.raises(InvalidInput, match="in the middle"):
        vllm().check(work(tokens=4, structured={"kind": "regex", "value": "a"}))
    vllm().check(work(tokens=4))


# ---- Hand-overs ----


def test_a_hand_over_of_a_real_engine_is_accepted() -> None:
    vllm().check_handover(HAND_OVER)
    vllm().check_handover({name: HAND_OVER[name] for name in _REQUIRED})


def test_the_table_of_keys_is_that_of_a_real_hand_over() -> None:
    assert set(_REQUIRED) | set(_OPTIONAL) == set(HAND_OVER) | {"remote_registration_generation"}


@pytest.mark.parametrize("name", sorted(_REQUIRED))
def test_a_missing_key_is_named(name: str) -> None:
    with pytest.raises(InvalidInput, match=rf"parameters\.{name}"):
        vllm().check_handover({key: value for key, value in HAND_OVER.items() if key != name})


WRONG: list[Any] = [None, True, 1, 1.5, "text", ["x"], {"a": 1}]


def _fits(name: str, value: Any) -> bool:
    kind = (_REQUIRED | _OPTIONAL)[name]  # type: ignore[operator]
    return type(value) in (kind if isinstance(kind, tuple) else (kind,))


@pytest.mark.parametrize(
    ("name", "value"), [(n, v) for n in sorted([*_REQUIRED, *_OPTIONAL]) for v in WRONG if not _fits(n, v)]
)
def test_a_key_of_another_type_is_named(name: str, value: Any) -> None:
    with pytest.raises(InvalidInput, match=rf"parameters\.{name}"):
        vllm().check_handover({**HAND_OVER, name: value})


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"extra": 1}, "extra"),
        ({"remote_block_ids": []}, "remote_block_ids"),
        ({"remote_block_ids": [1, 2]}, "remote_block_ids"),
        ({"remote_block_ids": [[1, "2"]]}, "remote_block_ids"),
        ({"remote_block_ids": [[True]]}, "remote_block_ids"),
        ({"do_remote_prefill": False}, "do_remote_prefill"),
        ({"do_remote_decode": True}, "do_remote_decode"),
    ],
)
def test_values_that_would_end_the_engine_are_refused(change: dict[str, Any], named: str) -> None:
    with pytest.raises(InvalidInput, match=named):
        vllm().check_handover({**HAND_OVER, **change})


def test_prefills_answer_holds_the_hand_over() -> None:
    answer = {"choices": [{"token_ids": [75]}], "kv_transfer_params": dict(HAND_OVER)}
    found = handover_of(answer)
    assert (found.parameters, found.first_token, found.cached_tokens) == (HAND_OVER, 75, 0)


@pytest.mark.parametrize(
    "answer",
    [
        {"choices": [{"token_ids": [75]}]},
        {"choices": [{"token_ids": [75]}], "kv_transfer_params": None},
        {"choices": [{"token_ids": [75]}], "kv_transfer_params": {"remote_block_ids": []}},
        {"choices": [], "kv_transfer_params": dict(HAND_OVER)},
        {"kv_transfer_params": dict(HAND_OVER)},
        {},
        [],
        None,
    ],
)
def test_an_answer_without_a_hand_over_is_a_fault(answer: Any) -> None:
    """Decode would compute the prompt again and say nothing."""
    with pytest.raises(EngineFault) as found:
        handover_of(answer)
    assert found.value.retryable


# ---- Streams ----

NAMES = ["choices", "token_ids", "error", "code", "logprobs", "content"]


def event(**choice: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "token_ids": [], "finish_reason": None, "logprobs": None} | choice]}


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (event(token_ids=[5, 6]), Delta((Output(5), Output(6)))),
        (event(token_ids=[7], finish_reason="length"), Delta((Output(7),), "length")),
        (event(token_ids=[], finish_reason="stop"), Delta((), "stop")),
        (event(token_ids=None), None),
        (event(), None),
        ({"choices": [], "usage": {"prompt_tokens": 3}}, None),
        ({"usage": {}}, None),
    ],
)
def test_events_are_tokens_ends_or_nothing(said: Any, expected: Delta | None) -> None:
    assert delta_of(said) == expected


def test_a_real_stream_has_every_token_its_alternatives_and_its_end() -> None:
    lines = (HERE / "vllm-0.32.0-stream.txt").read_text().splitlines()
    said = [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: {")]
    deltas = [delta for one in said if (delta := delta_of(one, 1)) is not None]
    outputs = [output for delta in deltas for output in delta.outputs]
    assert [output.token for output in outputs] == [75, 75, 75, 75, 75, 75, 75, 380]
    assert outputs[0] == Output(75, -2.2504611015319824, ((75, -2.2504611015319824),))
    assert [delta.finish_reason for delta in deltas] == [*[None] * 7, "length"]


def test_logprobs_come_in_order_of_rank_without_what_was_not_asked_for() -> None:
    def entry(token: int, logprob: float, rank: int) -> dict[str, Any]:
        return {"token_id": token, "logprob": logprob, "rank": rank}

    # The sampled token comes first, though it is the third best.
    sampled = entry(9, -3.0, 3) | {"top_logprobs": [entry(9, -3.0, 3), entry(4, -0.5, 1), entry(5, -1.0, 2)]}
    said = event(token_ids=[9], logprobs={"content": [sampled]})
    assert delta_of(said, 2) == Delta((Output(9, -3.0, ((4, -0.5), (5, -1.0))),))
    assert delta_of(said, 0) == Delta((Output(9, -3.0),))
    bare = {"token_id": 9, "logprob": -9999.0, "rank": None, "top_logprobs": None}
    assert delta_of(event(token_ids=[9], logprobs={"content": [bare]}), 2) == Delta((Output(9, -9999.0),))


@pytest.mark.parametrize(
    ("error", "code", "retryable"),
    [
        ({"message": "Internal server error", "code": 500}, codes.INTERNAL, True),
        ({"message": "EngineCore encountered an issue.", "param": None, "code": 500}, codes.INTERNAL, True),
        ({"message": "no", "code": None}, codes.INTERNAL, True),
        ({"message": "temperature must be non-negative", "code": 400}, codes.INVALID_REQUEST, False),
        ({"message": "The model `x` does not exist.", "code": 404}, codes.INVALID_REQUEST, False),
    ],
)
def test_an_error_in_a_stream_of_status_200_is_a_fault(error: Any, code: str, retryable: bool) -> None:
    with pytest.raises(EngineFault) as found:
        delta_of({"error": error})
    assert (found.value.code, found.value.retryable, str(found.value)) == (code, retryable, error["message"])


@pytest.mark.parametrize(
    "said",
    [
        None,
        7,
        [],
        {"error": "text"},
        {"error": {"code": math.inf}},
        {"choices": [7]},
        event(token_ids=["x"]),
        event(token_ids=[1], logprobs={"content": []}),
        event(token_ids=[1], logprobs={"content": [{}]}),
        event(token_ids=[1], finish_reason="abort"),
        event(finish_reason="error"),
    ],
)
def test_a_garbled_stream_is_a_fault(said: Any) -> None:
    if isinstance(said, list):
        assert delta_of({"choices": said}) is None
        return
    with pytest.raises(EngineFault) as found:
        delta_of(said)
    assert (found.value.code, found.value.retryable) == (codes.INTERNAL, True)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=3),
        max_leaves=8,
    )
)
def test_nothing_that_a_stream_says_raises_anything_else(said: Any) -> None:
    with contextlib.suppress(EngineFault):
        delta_of(said, 3)


# ---- Metrics ----


def test_a_real_page_has_every_reading() -> None:
    read = readings_of(parse_samples(PAGE))
    assert read.started == "1796018252.74"
    assert (read.waiting, read.running, read.kv_usage) == (0, 0, 0)
    # Nothing of the prompt was computed here.
    assert (read.prompt_tokens_total, read.generated_tokens_total, read.cached_tokens_total) == (0, 8, 0)
    assert read.prompt_tokens_by_source == {"local_compute": 0, "local_cache_hit": 0, "external_kv_transfer": 69}
    assert (read.steps_total, read.preemptions_total) == (8, 0)
    assert read.itl_count == 7
    assert read.itl_s_sum == pytest.approx(0.5110, abs=0.0001)
    assert (read.transfers_total, read.transfer_bytes_total, read.transfer_s_total) == (1, 589824, 0.775676)
    assert (read.transfer_failures_total, read.expired_total, read.late_reads_total) == (0, 0, 0)


@pytest.mark.parametrize("name", ["kv_usage", "transfer_bytes_total", "steps_total", "itl_count", "late_reads_total"])
def test_what_an_engine_does_not_tell_is_unknown_and_never_0(name: str) -> None:
    assert math.isnan(getattr(readings_of(parse_samples("")), name))


def test_two_replicas_of_an_engine_are_one_worker() -> None:
    second = PAGE.replace('engine="0"', 'engine="1"').replace("process_start_time_seconds", "x")
    read = readings_of(parse_samples(PAGE + second))
    assert (read.generated_tokens_total, read.kv_usage) == (16, 0)
    assert read.prompt_tokens_by_source["external_kv_transfer"] == 138
