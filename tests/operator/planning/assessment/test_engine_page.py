"""Tests of the parser with the pages of engines, one of which a real vLLM wrote."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.operator.planning.assessment.pages import Page, metrics_of

from disagg_operator.planning.assessment import engine_page
from disagg_operator.planning.assessment.bucket_counts import Between
from disagg_operator.planning.assessment.engine_page import engine_of, parse
from disagg_operator.planning.assessment.readings import HISTOGRAMS, AssessError

RECORDED = (Path(__file__).parents[3] / "adapter" / "engines" / "vllm-0.32.0-metrics.txt").read_text()


def test_each_engine_is_known_by_its_series() -> None:
    assert list(engine_page.ASSESSED) == ["vllm", "sglang"]
    for engine in engine_page.ASSESSED:
        page = Page(engine)
        page.request(10, 2)
        assert engine_of(page.text()) == engine
    assert engine_of("prometheus_http_requests_total 7\n") is None


def test_both_engines_give_the_same_quantities() -> None:
    found = {}
    for name in ("vllm", "sglang"):
        page = Page(name)
        page.request(300, 5, cached=40)
        page.numbers["running"] = 3
        ((_, snapshot),) = parse(page.text(), metrics_of(name), 7.0).items()
        found[name] = snapshot
    assert found["vllm"] == found["sglang"]
    assert set(found["vllm"].histograms) == set(HISTOGRAMS)
    assert found["vllm"].numbers == {"prompt_tokens": 300, "cached_tokens": 40, "computed_tokens": 260, "running": 3}


def test_the_page_of_a_real_decode_engine() -> None:
    found = parse(RECORDED, metrics_of("vllm"), 0.0)["0"]
    assert found.model == "m"
    assert found.numbers == {"prompt_tokens": 69, "cached_tokens": 69, "computed_tokens": 0, "running": 0}
    # The recording has no buckets of these.
    assert found.histograms == {}


def test_the_page_of_a_real_engine_after_two_kinds_of_requests() -> None:
    """It has answered prompts of 180 tokens with 100, and prompts of 1,400 with one."""
    found = parse((Path(__file__).parent / "vllm-0.32.0-page.txt").read_text(), metrics_of("vllm"), 0.0)["0"]
    assert set(found.histograms) == set(HISTOGRAMS)
    assert found.numbers == {
        "prompt_tokens": 84_600, "cached_tokens": 7840, "computed_tokens": 76_760, "running": 2,
    }  # fmt: skip
    prompts, answers = found.histograms["prompt_lengths"], found.histograms["answer_lengths"]
    assert prompts.count == answers.count == 102
    assert prompts.percentile(0.9) == Between(1000.0, 2000.0)
    assert prompts.percentile(0.1) == Between(100.0, 200.0)
    assert answers.percentile(0.5) == Between(0.0, 1.0)
    assert answers.percentile(0.9) == Between(50.0, 100.0)
    assert found.histograms["computed_lengths"].total < prompts.total


def test_engines_of_one_page_and_copies_of_a_rank() -> None:
    pages = [Page("vllm", labels={"engine": str(i)}) for i in range(2)]
    for page in pages:
        page.request(10, 2)
    text = "".join(page.text() for page in pages)
    text = "\n".join(dict.fromkeys(text.splitlines())) + "\n"
    assert sorted(parse(text, metrics_of("vllm"), 0.0)) == ["0", "1"]
    ranks = [Page("sglang", labels={"tp_rank": str(i)}) for i in range(2)]
    for page in ranks:
        page.numbers["running"] = 5
    found = parse("".join(page.text() for page in ranks), metrics_of("sglang"), 0.0)
    assert [s.numbers["running"] for s in found.values()] == [5]


def test_series_of_one_engine_are_added_over_other_labels() -> None:
    text = "".join(
        f'sglang:prompt_tokens_total{{model_name="m",is_streaming="{stream}"}} {n}\n'
        for stream, n in (("true", 5), ("false", 7))
    )
    (found,) = parse(text, metrics_of("sglang"), 0.0).values()
    assert found.numbers == {"prompt_tokens": 12}


def test_earlier_names() -> None:
    text = 'vllm:prefix_cache_hits_total{model_name="m"} 9\n'
    (found,) = parse(text, metrics_of("vllm"), 0.0).values()
    assert found.numbers == {"cached_tokens": 9}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("vllm:num_requests_running{ 1\n", "cannot be parsed"),
        ("vllm:num_requests_running seven\n", "cannot be parsed"),
        ("vllm:num_requests_running 1\n" * 20_001, "20,001 lines"),
        ("vllm:num_requests_running{" + "a=1," * 3000 + "} 1\n", "more than 2,048"),
        ('vllm:request_prompt_tokens_bucket{le="x"} 1\n', "cannot be parsed: could not convert"),
        ('vllm:request_prompt_tokens_bucket{le="NaN"} 1\n', "a bucket of vllm:request_prompt_tokens holds no number"),
        ('vllm:request_prompt_tokens_bucket{le="1"} +Inf\n', "a bucket of vllm:request_prompt_tokens holds no number"),
    ],
    ids=["labels", "number", "lines", "long line", "no bound", "NaN as bound", "endless count"],
)
def test_pages_that_no_engine_writes_are_refused(text: str, words: str) -> None:
    with pytest.raises(AssessError, match=words):
        parse(text, metrics_of("vllm"), 0.0)
