"""The OpenAI endpoint that `disagg profile` measures, and the timed answers that it streams.

Prompts are random token ids, so that no prefix cache helps, and every answer has exactly the
requested number of tokens.
"""

from __future__ import annotations

import contextlib
import json
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import httpx

TIMEOUT_S = 120.0
_IDS = (100, 1000)  # the ids of ordinary tokens in every known vocabulary


class MeasureError(Exception):
    """Raised when the endpoint can't be measured; the message explains why."""


@dataclass(slots=True)
class Answer:
    """A streamed answer with the monotonic times of its events."""

    sent_s: float
    """The time in seconds at which the request was sent."""
    prompt_tokens: int = 0
    output_tokens: int = 0
    events_s: list[float] = field(default_factory=list)
    """The time in seconds of each event that carried text."""

    @property
    def ttft_s(self) -> float:
        """The time in seconds to the first token."""
        return self.events_s[0] - self.sent_s

    @property
    def tpot_s(self) -> float:
        """The time in seconds per output token after the first one."""
        return (self.events_s[-1] - self.events_s[0]) / max(1, self.output_tokens - 1)


@dataclass(frozen=True, slots=True)
class About:
    """The answers of an endpoint about itself."""

    model: str
    """The name or the path of the weights, or else the name by which the model is served."""
    engine: str
    engine_version: str


class ServedEndpoint:
    """A client of `POST /completions` for one model, used by `async with`.

    Chunks only get a timestamp when they arrive; they are parsed after the end of the stream.
    """

    def __init__(self, url: str, model: str | None, api_key: str | None) -> None:
        headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=256)
        self._http = httpx.AsyncClient(
            base_url=url.rstrip("/") + "/", headers=headers, timeout=TIMEOUT_S, trust_env=False, limits=limits
        )
        self._random = random.Random()  # unseeded, because a prefix cache would answer a repeated prompt
        self.model = model or ""

    async def __aenter__(self) -> ServedEndpoint:
        try:
            self.model = self.model or await self._first_model()
        except BaseException:
            await self._http.aclose()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._http.aclose()

    async def _first_model(self) -> str:
        answer = await self._get("models")
        try:
            return str(answer["data"][0]["id"])
        except (KeyError, IndexError, TypeError):
            raise MeasureError(f"{self._http.base_url}models: lists no model; name one with --model") from None

    async def about(self) -> About:
        """Return what the endpoint says of its model and engine; empty where it says nothing."""
        listed: Any = {}
        with contextlib.suppress(MeasureError, AttributeError, TypeError):
            cards = (await self._get("models"))["data"]
            listed = next((card for card in cards if card.get("id") == self.model), {})
        version: Any = {}
        with contextlib.suppress(MeasureError):
            version = await self._get(str(self._http.base_url.copy_with(path="/version")))
        return About(
            str(listed.get("root") or self.model),
            str(listed.get("owned_by") or ""),
            str(version.get("version") or "") if isinstance(version, dict) else "",
        )

    async def _get(self, path: str) -> Any:
        try:
            answer = await self._http.get(path)
            answer.raise_for_status()
            return answer.json()
        except (httpx.HTTPError, ValueError) as error:
            raise MeasureError(f"{self._http.base_url}{path}: {error}") from None

    def prompt(self, tokens: int) -> list[int]:
        """Return a random prompt."""
        return [self._random.randrange(*_IDS) for _ in range(tokens)]

    async def ask(self, prompt: list[int], output_tokens: int, on_first: Callable[[], None] | None = None) -> Answer:
        """Stream one answer to its end. Raises MeasureError.

        `on_first` is called when the first chunk arrives.
        """
        body = {
            "model": self.model,
            "prompt": prompt,
            "max_tokens": output_tokens,
            "min_tokens": output_tokens,
            "ignore_eos": True,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        answer = Answer(time.monotonic())
        chunks: list[tuple[float, bytes]] = []
        try:
            async with self._http.stream("POST", "completions", json=body) as response:
                if response.status_code != 200:
                    raise MeasureError(
                        f"HTTP {response.status_code}: {(await response.aread())[:500].decode(errors='replace')}"
                    )
                async for chunk in response.aiter_raw():
                    if not chunks and on_first is not None:
                        on_first()
                    chunks.append((time.monotonic(), chunk))
        except httpx.HTTPError as error:
            raise MeasureError(f"{self._http.base_url}completions: {error or type(error).__name__}") from None
        _read(answer, chunks)
        return answer


def _read(answer: Answer, chunks: list[tuple[float, bytes]]) -> None:
    """Complete an answer from the chunks and their times. Raises MeasureError."""
    rest = b""
    for at_s, chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            if not line.startswith(b"data: {"):
                continue
            event = json.loads(line[6:])
            if "error" in event:
                raise MeasureError(f"the answer failed: {event['error']}")
            if usage := event.get("usage"):
                answer.prompt_tokens, answer.output_tokens = usage["prompt_tokens"], usage["completion_tokens"]
            if event.get("choices"):
                answer.events_s.append(at_s)
    if not answer.events_s or not answer.output_tokens:
        raise MeasureError(
            "an answer without tokens or without usage: the endpoint must support stream_options.include_usage"
        )
