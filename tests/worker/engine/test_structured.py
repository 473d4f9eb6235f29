"""Tests of structured output: it matches whatever the model prefers, and it is the same wherever it
is computed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.worker.collector import Collector
from tests.worker.in_process_kv import generate_remote

from disagg_protocol.errors import InvalidInput
from disagg_protocol.sampling_params import SamplingParams, Structured
from disagg_wire.roles import Role
from disagg_worker.engine.core import TorchEngine
from disagg_worker.engine.engine_config import EngineConfig
from disagg_worker.engine.structured import Grammars

tokenizers = pytest.importorskip("tokenizers")
MODEL = Path(__file__).parents[3] / "models/stdlib-llama"
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "maxItems": 2, "items": {"enum": ["a", "b"]}},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}
WANTED = {
    "json_schema": json.dumps(SCHEMA),
    "regex": r"[a-f]{3}-\d{2,4}(é|ü)",
    "choice": json.dumps(["yes", "no, not \"now\"", "määbe"]),
    "grammar": 'start: "x" ("+" "x")~2..5',
}  # fmt: skip
MATCHES = {
    "regex": lambda text: re.fullmatch(WANTED["regex"], text),
    "choice": lambda text: text in json.loads(WANTED["choice"]),
    "grammar": lambda text: re.fullmatch(r"x(\+x){2,5}", text),
}


def fits_schema(text: str) -> bool:
    found = json.loads(text)
    return (
        list(found) == ["name", "age", "tags"]
        and isinstance(found["age"], int)
        and len(found["name"]) <= 8
        and len(found["tags"]) <= 2
        and set(found["tags"]) <= {"a", "b"}
    )


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return tokenizers.Tokenizer.from_file(str(MODEL / "tokenizer.json"))


@pytest.fixture(scope="module")
def engines() -> Iterator[dict[Role, TorchEngine]]:
    roles: list[Role] = ["both", "prefill", "decode"]
    made = {role: TorchEngine(MODEL, EngineConfig("m", role, dtype="float32", prefill_wait_s=0.0)) for role in roles}
    yield made
    for engine in made.values():
        engine.stop(10)


def sampling(engine: TorchEngine, kind: str, seed: int, temperature: float = 1.0) -> SamplingParams:
    return SamplingParams(
        seed=seed,
        max_new_tokens=120,
        temperature=temperature,
        stop_token_ids=tuple(engine.model.eos_token_ids),
        structured=Structured(kind, WANTED[kind]),
    )


def text_of(tokenizer: Any, engine: TorchEngine, tokens: list[int]) -> str:
    assert tokens[-1] in engine.model.eos_token_ids
    text: str = tokenizer.decode(tokens[:-1], skip_special_tokens=False)
    return text


@pytest.mark.parametrize("kind", sorted(WANTED))
def test_what_comes_out_matches(engines: dict[Role, TorchEngine], tokenizer: Any, kind: str) -> None:
    engine, prompt = engines["both"], tokenizer.encode("def main(self, value):\n").ids
    sinks = []
    for seed in range(6):
        sinks.append(Collector())
        engine.generate("r", prompt, len(prompt), sampling(engine, kind, seed, 0.0 if seed == 0 else 1.0), sinks[-1])
    texts = [text_of(tokenizer, engine, sink.finished()) for sink in sinks]
    matches: Callable[[str], Any] = MATCHES.get(kind, fits_schema)
    assert all(matches(text) for text in texts), texts
    if kind in ("json_schema", "regex"):
        assert len(set(texts)) > 2


@pytest.mark.parametrize("cut", [0, 1, 5, 11])
def test_over_two_engines_and_after_a_failover_it_is_the_same_text(
    engines: dict[Role, TorchEngine], tokenizer: Any, cut: int
) -> None:
    prompt = tokenizer.encode("import os\n").ids
    wanted = sampling(engines["both"], "json_schema", 3)
    alone, continued = Collector(), Collector()
    engines["both"].generate("r", prompt, len(prompt), wanted, alone)
    whole = alone.finished()
    assert len(whole) > 12
    generate_remote(engines["prefill"], engines["decode"], "r", [*prompt, *whole[:cut]], len(prompt), wanted, continued)
    assert continued.finished() == whole[cut:]


@pytest.mark.parametrize(
    ("kind", "value", "says"),
    [
        ("json_schema", '{"type": "nonsense"}', "structured.json_schema"),
        ("json_schema", '{"type": 7}', "structured.json_schema"),
        ("regex", "(", "structured.regex"),
        ("grammar", "start: nowhere", "structured.grammar"),
    ],
)
def test_a_grammar_that_is_wrong_is_refused_by_name(
    engines: dict[Role, TorchEngine], kind: str, value: str, says: str
) -> None:
    engine = engines["both"]
    with pytest.raises(InvalidInput, match=says):
        engine.prepare(replace(sampling(engine, kind, 1), structured=Structured(kind, value)))


def test_a_model_without_tokenizer_or_end_token_refuses_structured_output(tmp_path: Path) -> None:
    for path, eos, says in (
        (tmp_path / "tokenizer.json", [1], "tokenizer.json"),
        (MODEL / "tokenizer.json", [], "eos_token_id"),
    ):
        with pytest.raises(InvalidInput, match=says):
            Grammars(path, 100, eos).compile(Structured("regex", "a+"))


def test_the_output_ends_where_nothing_can_follow() -> None:
    state = Grammars(MODEL / "tokenizer.json", 2048, [0]).start(Structured("choice", '["a"]'))
    letter = state.allowed([]).nonzero()[0].tolist()
    assert len(letter) == 1
    assert state.allowed(letter).nonzero()[0].tolist() == [0]
    assert state.allowed([*letter, 0]).nonzero()[0].tolist() == [0]
