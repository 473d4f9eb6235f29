"""Tests with OpenAI's own client against the real processes and the bundled model."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from tests.router.real_stack import API_KEY, BODY_LIMIT_BYTES, MODEL, Real, real

pytestmark = pytest.mark.slow
PROMPT = "import os\n\ndef main("
CHAT: list[Any] = [{"role": "user", "content": "def add(a, b):"}]


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Real]:
    with real(tmp_path_factory.mktemp("real")) as running:
        yield running


@pytest.fixture
def client(stack: Real) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{stack.split}/v1", api_key=API_KEY, max_retries=0, timeout=60) as c:
        yield c


@pytest.fixture
def whole(stack: Real) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{stack.whole}/v1", api_key=API_KEY, max_retries=0, timeout=60) as c:
        yield c


def disagg(answer: Any) -> dict[str, Any]:
    extra: dict[str, Any] = answer.model_extra["disagg"]
    return extra


def test_the_model_is_listed(client: openai.OpenAI) -> None:
    assert [m.id for m in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).owned_by == "disagg"


def test_a_chat_whole_and_streamed_is_the_same_text(client: openai.OpenAI) -> None:
    options: dict[str, Any] = {"model": MODEL, "messages": CHAT, "max_tokens": 24, "temperature": 0}
    answer = client.chat.completions.create(**options)
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert 0 < answer.usage.completion_tokens <= 24
    chunks = list(client.chat.completions.create(**options, stream=True, stream_options={"include_usage": True}))
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == answer.choices[0].message.content
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == answer.choices[0].finish_reason
    assert chunks[-1].usage == answer.usage
    assert {c.id for c in chunks} == {chunks[0].id}


def test_a_completion_whole_and_streamed_is_the_same_text(client: openai.OpenAI) -> None:
    options: dict[str, Any] = {"model": MODEL, "prompt": PROMPT, "max_tokens": 24, "temperature": 0}
    answer = client.completions.create(**options)
    chunks = list(client.completions.create(**options, stream=True))
    assert "".join(c.choices[0].text for c in chunks) == answer.choices[0].text != ""
    assert all(c.usage is None for c in chunks)


@pytest.mark.parametrize(
    "sampling", [{"temperature": 0}, {"temperature": 0.9, "top_p": 0.95, "seed": 7, "frequency_penalty": 0.5}]
)
@pytest.mark.parametrize("n_lines", [1, 15, 100])
def test_split_over_two_workers_it_is_what_one_worker_says(
    client: openai.OpenAI, whole: openai.OpenAI, sampling: dict[str, Any], n_lines: int
) -> None:
    options: dict[str, Any] = {
        "model": MODEL,
        "prompt": "self.assertEqual(x, 1)\n" * n_lines,
        "max_tokens": 32,
        "logprobs": 2,
    } | sampling
    answers = [c.completions.create(**options, extra_headers={"X-Disagg-Trace": "1"}) for c in (client, whole)]
    assert [disagg(a)["path"] for a in answers] == ["remote", "local"]
    first, second = (a.choices[0] for a in answers)
    assert (first.text, first.finish_reason) == (second.text, second.finish_reason)
    assert first.logprobs is not None
    assert second.logprobs is not None
    assert first.logprobs.tokens == second.logprobs.tokens
    assert first.logprobs.token_logprobs == pytest.approx(second.logprobs.token_logprobs, abs=0.05)


def test_a_trace_tells_who_did_what(client: openai.OpenAI) -> None:
    headers = {"X-Disagg-Trace": "1"}
    trace = disagg(
        client.completions.create(
            model=MODEL, prompt=PROMPT, max_tokens=8, extra_headers=headers, extra_body={"ignore_eos": True}
        )
    )
    assert (trace["prefill"]["pod"], trace["decode"]["pod"], trace["path"], trace["attempts"]) == (
        "prefill",
        "decode",
        "remote",
        1,
    )
    assert trace["kv_bytes"] > 0
    assert 0 < trace["transfer_s"] < 30
    assert 0 < trace["ttft_s"] < 60
    *_, last = client.completions.create(model=MODEL, prompt=PROMPT, max_tokens=1, stream=True, extra_headers=headers)
    assert last.usage is not None
    assert (disagg(last)["path"], disagg(last)["decode"], last.usage.completion_tokens) == ("prefill_only", None, 1)


def test_a_seed_gives_the_same_again_and_choices_differ(client: openai.OpenAI) -> None:
    options: dict[str, Any] = {"model": MODEL, "messages": CHAT, "max_tokens": 16, "temperature": 1.2, "n": 3}
    texts = [
        [c.message.content for c in client.chat.completions.create(**options, seed=seed).choices]
        for seed in (5, 5, 500)
    ]
    assert texts[0] == texts[1] != texts[2]
    assert len(set(texts[0])) > 1


def test_choices_share_the_computation_of_their_prompt(stack: Real, client: openai.OpenAI) -> None:
    url = json.loads((stack.folder / "split.json").read_text())["workers"][0]["url"]

    def computed() -> float:
        text = httpx.get(f"{url}/metrics", trust_env=False).text
        return next(
            float(x.rsplit(" ", 1)[1]) for x in text.splitlines() if x.startswith("disagg_worker_prompt_tokens_total ")
        )

    before = computed()
    answer = client.completions.create(
        model=MODEL, prompt="choices = shared(prompt)  # once\n" * 40, n=6, seed=1, max_tokens=3
    )
    assert answer.usage is not None
    assert answer.usage.prompt_tokens > 300
    assert len(answer.choices) == 6
    assert answer.usage.prompt_tokens <= computed() - before < answer.usage.prompt_tokens + 6 * 16 + 1


def test_a_bias_and_a_penalty_change_what_is_said(client: openai.OpenAI, whole: openai.OpenAI) -> None:
    options: dict[str, Any] = {"model": MODEL, "prompt": PROMPT, "max_tokens": 12, "temperature": 0, "logprobs": 0}

    def tokens(c: openai.OpenAI, **fields: Any) -> list[str]:
        logprobs = c.completions.create(**options, **fields).choices[0].logprobs
        assert logprobs is not None
        return logprobs.tokens or []

    forced = tokens(client, logit_bias={"300": 100})
    assert (len(forced), len(set(forced))) == (12, 1)
    # Each time a token is generated, it becomes less likely by two, so that the turn of the other
    # one comes.
    fields: dict[str, Any] = {"logit_bias": {"300": 100, "301": 96}, "presence_penalty": 2, "frequency_penalty": 2}
    penalised = [tokens(c, **fields) for c in (client, whole)]
    assert penalised[0] == penalised[1]
    assert len(set(penalised[0])) == 2


def test_a_stop_string_is_not_shown_nor_what_follows(client: openai.OpenAI) -> None:
    options: dict[str, Any] = {"model": MODEL, "prompt": PROMPT, "max_tokens": 40, "temperature": 0}
    text = client.completions.create(**options).choices[0].text
    stop = text[5:8]
    for stream in (False, True):
        answer: Any = client.completions.create(**options, stop=[stop], stream=stream)
        choices = [c.choices[0] for c in answer] if stream else [answer.choices[0]]
        assert "".join(c.text for c in choices) == text[: text.index(stop)]
        assert choices[-1].finish_reason == "stop"


def test_logprobs_are_of_the_tokens_of_the_text(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model=MODEL, messages=CHAT, max_tokens=8, temperature=0, logprobs=True, top_logprobs=3
    )
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    for entry in logprobs.content:
        assert entry.logprob <= 0
        assert [t.logprob for t in entry.top_logprobs] == sorted((t.logprob for t in entry.top_logprobs), reverse=True)
        assert entry.token == entry.top_logprobs[0].token


def test_prompts_of_several_kinds_are_taken(client: openai.OpenAI) -> None:
    assert len(client.completions.create(model=MODEL, prompt=["a", "b"], max_tokens=2, n=2).choices) == 4
    assert client.completions.create(model=MODEL, prompt=[5, 6, 7], max_tokens=2).usage.prompt_tokens == 3  # type: ignore[union-attr]


def test_the_output_has_the_form_that_was_asked_for(client: openai.OpenAI, whole: openai.OpenAI) -> None:
    schema = {
        "type": "object",
        "properties": {"n": {"type": "integer"}, "s": {"enum": ["x", "y"]}},
        "required": ["n", "s"],
        "additionalProperties": False,
    }
    form: Any = {"type": "json_schema", "json_schema": {"name": "pair", "schema": schema, "strict": True}}
    options: dict[str, Any] = {
        "model": MODEL,
        "messages": CHAT,
        "max_tokens": 80,
        "temperature": 1.0,
        "seed": 3,
        "response_format": form,
    }
    texts = [c.chat.completions.create(**options).choices[0].message.content for c in (client, whole)]
    assert texts[0] == texts[1]
    assert set(json.loads(texts[0] or "")) == {"n", "s"}
    streamed = "".join(c.choices[0].delta.content or "" for c in client.chat.completions.create(**options, stream=True))
    assert streamed == texts[0]
    plain = client.completions.create(
        model=MODEL,
        prompt=PROMPT,
        max_tokens=40,
        n=3,
        seed=1,
        extra_body={"structured_outputs": {"regex": r"[ab]{4}\d"}},
    )
    assert all(re.fullmatch(r"[ab]{4}\d", c.text) and c.finish_reason == "stop" for c in plain.choices)


def test_a_form_that_makes_no_sense_is_refused_before_anything_streams(client: openai.OpenAI) -> None:
    form: Any = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "nonsense"}}}
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError) as caught:
            client.chat.completions.create(model=MODEL, messages=CHAT, response_format=form, stream=stream)
        assert "nonsense" in str(caught.value)


def test_a_prompt_seen_before_is_counted_as_cached_and_other_keys_do_not_see_it(
    stack: Real, client: openai.OpenAI
) -> None:
    prompt = "x = compute(1, 2)  # cached\n" * 12

    def cached(c: openai.OpenAI, **extra: Any) -> int:
        usage = c.completions.create(model=MODEL, prompt=prompt, max_tokens=3, temperature=0, extra_body=extra).usage
        assert usage is not None
        assert usage.prompt_tokens_details is not None
        return usage.prompt_tokens_details.cached_tokens or 0

    assert cached(client) == 0
    assert cached(client) > 50
    assert cached(client, cache_salt="mine") == 0
    with openai.OpenAI(base_url=f"{stack.split}/v1", api_key="sk-other", max_retries=0, timeout=60) as stranger:
        assert cached(stranger) == 0


LIMIT = 2048
WRONG: list[tuple[dict[str, Any], int, str, str]] = [
    ({"model": "gpt-4"}, 404, "model_not_found", "gpt-4"),
    ({"prompt": ""}, 400, "empty_prompt", "empty"),
    ({"prompt": []}, 400, "invalid_value", "prompt"),
    ({"prompt": "a b " * 5000}, 400, "context_length_exceeded", str(LIMIT)),
    ({"prompt": [5] * LIMIT}, 400, "context_length_exceeded", str(LIMIT)),
    ({"prompt": [5], "max_tokens": LIMIT}, 400, "context_length_exceeded", "max_tokens"),
    ({"prompt": [LIMIT]}, 400, "invalid_value", str(LIMIT)),
    ({"prompt": 5}, 400, "invalid_value", "prompt"),
    ({"max_tokens": 10**12}, 400, "invalid_value", "max_tokens"),
    ({"max_tokens": "5"}, 400, "invalid_value", "max_tokens"),
    ({"n": 10**6}, 400, "invalid_value", "n"),
    ({"temperature": "hot"}, 400, "invalid_value", "temperature"),
    ({"kv_transfer_params": {"remote_host": "10.0.0.1"}}, 400, "unknown_parameter", "kv_transfer_params"),
    ({"logit_bias": {"99999": 1}}, 400, "invalid_value", "logit_bias"),
    ({"best_of": 3}, 400, "unsupported_parameter", "best_of"),
]


@pytest.mark.parametrize(
    ("change", "status", "code", "named"), WRONG, ids=[f"{i}-{row[2]}" for i, row in enumerate(WRONG)]
)
@pytest.mark.parametrize("stream", [False, True])
def test_a_wrong_request_is_refused_in_openais_form(
    stack: Real, change: dict[str, Any], status: int, code: str, named: str, stream: bool
) -> None:
    body = {"model": MODEL, "prompt": "x", "stream": stream} | change
    answer = httpx.post(
        f"{stack.split}/v1/completions", json=body, headers={"authorization": f"Bearer {API_KEY}"}, trust_env=False
    )
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (status, code)
    assert named in error["message"]
    assert set(error) == {"message", "type", "param", "code"}


@pytest.mark.parametrize(
    ("method", "path", "content", "status"),
    [
        ("POST", "/v1/completions", b"{", 400),
        ("POST", "/v1/completions", b"", 400),
        ("POST", "/v1/completions", b"\xff\xfe", 400),
        ("POST", "/v1/completions", b"[" * 50_000, 400),
        ("POST", "/v1/completions", b'{"model": "' + b"x" * BODY_LIMIT_BYTES, 413),
        ("GET", "/v1/completions", b"", 405),
        ("POST", "/v1/embeddings", b"{}", 404),
        ("GET", "/v1/models/gpt-4", b"", 404),
        ("POST", "/v1/models", b"{}", 405),
    ],
)
def test_broken_bodies_wrong_methods_and_paths_are_answered_in_the_same_form(
    stack: Real, method: str, path: str, content: bytes, status: int
) -> None:
    headers = {"authorization": f"Bearer {API_KEY}"}
    answer = httpx.request(method, stack.split + path, content=content, headers=headers, trust_env=False)
    assert answer.status_code == status
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
    if status == 405:
        assert set(answer.headers["allow"].replace(" ", "").split(",")) == (
            {"POST"} if method == "GET" else {"GET", "HEAD"}
        )


@pytest.mark.parametrize(
    "header", [None, "", "Bearer", "Bearer wrong", "Basic sk-test", "Bearer sk-tes", "Bearer sk-test2"]
)
def test_without_the_key_nothing_is_served(stack: Real, header: str | None) -> None:
    headers = {} if header is None else {"authorization": header}
    for method, path in (
        ("POST", "/v1/completions"),
        ("POST", "/v1/chat/completions"),
        ("GET", "/v1/models"),
        ("GET", f"/v1/models/{MODEL}"),
    ):
        answer = httpx.request(method, stack.split + path, headers=headers, trust_env=False)
        assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_api_key")
    assert httpx.get(f"{stack.split}/internal/v1/state", headers=headers, trust_env=False).status_code == 401


def test_the_client_raises_its_own_errors(stack: Real, client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError):
        client.completions.create(model="gpt-4", prompt="x")
    with pytest.raises(openai.BadRequestError, match="context"):
        client.completions.create(model=MODEL, prompt=[5] * 4000, stream=True)
    with (
        openai.OpenAI(base_url=f"{stack.split}/v1", api_key="wrong", max_retries=0) as stranger,
        pytest.raises(openai.AuthenticationError),
    ):
        stranger.models.list()


def test_after_all_that_it_serves_and_no_prompt_is_in_the_log(stack: Real, client: openai.OpenAI) -> None:
    secret = "the quick brown fox 9f3a"
    assert client.completions.create(model=MODEL, prompt=secret, max_tokens=4).choices[0].text
    logs = "".join((stack.folder / name).read_text() for name in ("router-split.log", "prefill.log", "decode.log"))
    assert secret not in logs
    assert "Traceback" not in logs
    assert json.loads((stack.folder / "split.json").read_text())["workers"]
