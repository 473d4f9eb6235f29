"""Tests that no sampling parameter is dropped: each reaches the engine or is refused by name."""

from __future__ import annotations

import dataclasses
import secrets
from typing import Any, NoReturn

import pytest
from tests.adapter.engines.player import OPTIONS
from tests.adapter.engines.works import structured, work

from disagg_adapter.engines.contract import EngineOptions, Work
from disagg_adapter.engines.http_client import EngineHttp
from disagg_adapter.engines.table import ENGINES
from disagg_protocol.errors import InvalidInput
from disagg_protocol.sampling_params import SamplingParams

# A value of each parameter that is not the one of `work()`.
VALUES: dict[str, Any] = {
    "seed": 8, "max_new_tokens": 9, "temperature": 0.5, "top_p": 0.9, "top_k": 40, "min_p": 0.1,
    "presence_penalty": -1.0, "frequency_penalty": 1.0, "repetition_penalty": 1.1, "logit_bias": [(50, -100.0)],
    "logprobs": 3, "stop_token_ids": [], "min_tokens": 2,
    "structured": structured("json_schema", "{}"),
}  # fmt: skip


class Sent(Exception):
    """Raised instead of a request."""


class Recorder(EngineHttp):
    """A client that sends nothing."""

    def events(self, path: str, body: Any) -> NoReturn:
        raise Sent(body)


async def body_of(name: str, asked: Work) -> Any:
    """Return what the engine would be sent."""
    engine = ENGINES[name](Recorder("http://127.0.0.1:1"), EngineOptions(**OPTIONS | {"role": "both"}))
    with pytest.raises(Sent) as sent:
        await anext(engine.generate(asked))
    return sent.value.args[0]


def refuses(name: str, parameter: str, asked: Work) -> bool:
    engine = ENGINES[name](Recorder("http://127.0.0.1:1"), EngineOptions(**OPTIONS))
    try:
        engine.check(asked)
    except InvalidInput as error:
        return str(error).startswith(f"sampling.{parameter}")
    return False


def test_there_is_a_value_of_each_parameter() -> None:
    assert set(VALUES) == {field.name for field in dataclasses.fields(SamplingParams)}


@pytest.mark.parametrize("parameter", VALUES)
@pytest.mark.parametrize("name", ENGINES)
async def test_each_parameter_reaches_the_engine_or_is_refused_by_name(
    name: str, parameter: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(secrets, "randbits", lambda _: 5)
    plain, changed = work(), work(**{parameter: VALUES[parameter]})
    assert refuses(name, parameter, changed) or await body_of(name, plain) != await body_of(name, changed)
