"""What `disagg profile` writes of the endpoint, and refuses to write, without a server."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest

from disagg_operator.cli import measure
from disagg_operator.cli.entry import main
from disagg_operator.cli.served_endpoint import About, ServedEndpoint
from disagg_operator.performance.fit import DecodePoint, PrefillPoint
from disagg_operator.performance.fit_quality import Repeated
from disagg_operator.performance.profile import PROFILES
from disagg_operator.performance.profile_file import load_with_origin

P = PROFILES["8b-h100"]
SPEEDS = (16, 128, 512, 1024)


def measured(factor: float = 1.0) -> measure.Measured:
    """Return what a quiet machine shows; with a factor, times of a busy one."""
    noise = [1.0, factor, 1.0, factor]
    prefill = [
        PrefillPoint(n, k * P.isolated_s(n), P.isolated_s(n) if n > 500 else None, P.isolated_s(n))
        for n, k in zip(SPEEDS, noise, strict=True)
    ]
    decode = [DecodePoint(b, 200.0 * b, P.step_s(b, 200.0 * b)) for b in (1, 2, 4, 8)]
    times = [Repeated(f"{n} tokens alone", tuple(P.isolated_s(n) * k for k in (1.0, factor, factor))) for n in SPEEDS]
    return measure.Measured(tuple(prefill), tuple(decode), (), 0.0, tuple(times))


def profile(monkeypatch: pytest.MonkeyPatch, found: measure.Measured, *argv: str) -> Any:
    async def about(_: ServedEndpoint) -> About:
        return About("/models/Llama-3.1-8B", "some-engine", "0.3")

    async def answer(*_: Any) -> measure.Measured:
        return found

    monkeypatch.setattr(ServedEndpoint, "about", about)
    monkeypatch.setattr(measure, "measure", answer)
    with pytest.raises(SystemExit) as left:
        main(["profile", "http://127.0.0.1:9/v1", "--model", "chat", "--kv-tokens", "20000", *argv])
    return left.value.code


def test_a_good_measurement_is_written_with_its_origin(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "p.json"
    assert profile(monkeypatch, measured(), "--out", str(file), "--hardware", "H100") == 0
    found, origin = load_with_origin(str(file))
    assert found.b_s_per_token == pytest.approx(P.b_s_per_token)
    assert origin is not None
    assert (origin.model, origin.hardware, origin.engine) == ("/models/Llama-3.1-8B", "H100", "some-engine")
    assert (origin.engine_version, origin.worst_error) == ("0.3", 0.0)
    assert "/models/Llama-3.1-8B on H100 with some-engine 0.3" in " ".join(capsys.readouterr().out.split())
    assert profile(monkeypatch, measured(), "--out", str(file), "--weights", "llama-3.1-8b", "--engine", "e") == 0
    origin = load_with_origin(str(file))[1]
    assert origin is not None
    assert (origin.model, origin.engine) == ("llama-3.1-8b", "e")


def test_a_busy_machine_is_refused_and_nothing_is_written(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "p.json"
    told = str(profile(monkeypatch, measured(3.0), "--out", str(file)))
    assert told.startswith("disagg profile: the measurement is refused, and nothing was written:\n  - ")
    assert "the machine is busy" in told
    assert "are not fitted within 30 %" in told
    assert not file.exists()
    assert "residuals" in capsys.readouterr().out  # what was measured is shown all the same
    assert profile(monkeypatch, measured(3.0), "--out", str(file), "--most-error", "500") == 0
    assert file.exists()


@pytest.mark.parametrize(
    ("pages", "about"),
    [
        (
            {"/v1/models": {"data": [{"id": "x"}, {"id": "chat", "root": "org/m", "owned_by": "e"}]},
             "/version": {"version": "1"}},
            About("org/m", "e", "1"),
        ),
        ({"/v1/models": {"data": [{"id": "chat"}]}}, About("chat", "", "")),
        ({"/v1/models": ["odd"], "/version": ["odd"]}, About("chat", "", "")),
    ],
)  # fmt: skip
def test_what_an_endpoint_says_of_itself(pages: dict[str, Any], about: About) -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        found = pages.get(request.url.path)
        return httpx.Response(404) if found is None else httpx.Response(200, json=found)

    async def ask() -> About:
        async with ServedEndpoint("http://engine/v1", "chat", None) as endpoint:
            await endpoint._http.aclose()
            endpoint._http = httpx.AsyncClient(base_url="http://engine/v1/", transport=httpx.MockTransport(answer))
            return await endpoint.about()

    assert asyncio.run(ask()) == about
