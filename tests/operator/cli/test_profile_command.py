"""Tests of `disagg profile` against a real router, prefill worker and decode worker."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.router.real_stack import API_KEY, MODEL, Real, real

from disagg_operator.cli.entry import main
from disagg_operator.cli.served_endpoint import Answer, ServedEndpoint
from disagg_operator.performance.profile_file import load_with_origin
from disagg_wire.version import VERSION

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Real]:
    with real(tmp_path_factory.mktemp("stack")) as found:
        yield found


def test_a_profile_comes_out_that_simulate_and_plan_read(
    stack: Real,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    pytestconfig: pytest.Config,
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", API_KEY)
    file = tmp_path / "profile.json"
    arguments = [
        "--kv-tokens",
        "20000",
        "--max-prompt-tokens",
        "600",
        "--max-batch",
        "4",
        "--seconds",
        "2",
        "--out",
        str(file),
        "--most-error",
        "10000",  # other processes may have the processors
        "--hardware",
        "H100",
    ]
    with pytest.raises(SystemExit) as left:
        main(["profile", f"{stack.split}/v1", *arguments])
    assert left.value.code == 0
    out = capsys.readouterr().out
    assert "us a prompt token" in out and "600 tokens alone" in out  # noqa: PT018
    found, origin = load_with_origin(str(file))
    assert origin is not None
    assert (origin.model, origin.engine, origin.hardware) == (MODEL, "disagg", "H100")
    assert origin.disagg_version == VERSION
    assert found.kv_tokens == 20_000
    assert 0 < found.isolated_s(300) < found.isolated_s(600) < 5
    assert 0 < found.step_s(1, 100) <= found.step_s(4, 2000) < 1
    assert 0 < found.front_s < 0.2
    assert 0 <= found.take_in_s < 0.2
    # The bundled worker waits 50 ms for more prompts if fewer than 218 tokens wait.
    assert 0.02 < found.batch_wait_s < 0.2
    assert 96 < found.batch_full_tokens <= 324
    model = str(Path(pytestconfig.rootpath) / "models" / "stdlib-llama")
    lengths = ["--prompt-tokens", "200", "--output-tokens", "20", "--ttft", "20", "--tpot-ms", "1000"]
    with pytest.raises(SystemExit) as left:
        main(["plan", model, "--rate", "1", *lengths, "--profile", f"H100={file}"])
    assert f"is a profile of the model {MODEL}, not of stdlib-llama" in str(left.value.code)
    with pytest.raises(SystemExit) as left:
        main(["plan", model, "--rate", "1", *lengths, "--profile", f"H100={file}", "--any-profile"])
    assert left.value.code == 0


def test_an_answer_is_timed_and_has_the_tokens_that_were_asked_for(stack: Real) -> None:
    async def ask() -> Answer:
        async with ServedEndpoint(f"{stack.split}/v1", None, API_KEY) as endpoint:
            return await endpoint.ask(endpoint.prompt(40), 12)

    answer = asyncio.run(ask())
    assert (answer.prompt_tokens, answer.output_tokens) == (40, 12)
    assert 0 < answer.ttft_s < answer.events_s[-1] - answer.sent_s
    assert answer.tpot_s > 0


def test_prompts_are_never_the_same_again(stack: Real) -> None:
    """Otherwise a measurement would find the prompts of an earlier one in the prefix cache."""

    async def prompt() -> list[int]:
        async with ServedEndpoint(f"{stack.split}/v1", None, API_KEY) as endpoint:
            return endpoint.prompt(100)

    assert asyncio.run(prompt())[:16] != asyncio.run(prompt())[:16]


@pytest.mark.parametrize(
    ("url", "key", "words"),
    [("{}/v1", "wrong", "401"), ("{}/v2", API_KEY, "404"), ("http://127.0.0.1:9/v1", API_KEY, "127.0.0.1:9")],
)
def test_an_endpoint_that_does_not_answer_is_named(
    stack: Real, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, url: str, key: str, words: str
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", key)
    with pytest.raises(SystemExit) as left:
        main(["profile", url.format(stack.split), "--kv-tokens", "1", "--out", str(tmp_path / "p.json")])
    assert words in str(left.value.code)
    assert not (tmp_path / "p.json").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--seconds", "nan"), "--seconds"),
        (("--seconds", "0"), "--seconds"),
        (("--most-error", "0"), "--most-error"),
        (("--out", "none/p.json"), "no folder none"),
    ],
)
def test_what_would_be_lost_after_the_measurement_is_said_before(arguments: tuple[str, str], words: str) -> None:
    with pytest.raises(SystemExit) as left:
        main(["profile", "http://127.0.0.1:9/v1", "--kv-tokens", "5", *arguments])
    assert words in str(left.value.code)


@pytest.mark.parametrize("flag", ["--kv-tokens", "--max-batch", "--gpus", "--max-prompt-tokens"])
def test_a_bad_argument_is_named(flag: str, tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as left:
        main(["profile", "http://127.0.0.1:9/v1", "--kv-tokens", "5", "--out", str(tmp_path / "p.json"), flag, "0"])
    assert flag in str(left.value.code)
