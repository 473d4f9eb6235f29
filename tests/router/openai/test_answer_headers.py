"""Tests of the name of the request in every answer."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.fakes.token_worker import TokenWorker
from tests.router.stack import MODEL, Stack

BODY = {"model": MODEL, "prompt": "hello", "max_tokens": 9, "seed": 5}
# (what a client gives, whether that is the name)
NAMES = [("my-id.1", True), ("a" * 128, True), ("a" * 129, False), ("", False), ("a b", False), ("a\xe9", False)]


async def test_every_answer_has_the_name_of_its_request(tmp_path: Path) -> None:
    calls = [
        ("GET", "/v1/models", None), ("GET", "/none", None), ("PUT", "/v1/models", None), ("GET", "/metrics", None),
        ("POST", "/v1/completions", BODY), ("POST", "/v1/completions", BODY | {"stream": True}),
        ("POST", "/v1/completions", {}),
    ]  # fmt: skip
    async with Stack(tmp_path, TokenWorker("p0", "prefill"), TokenWorker("d0", "decode")) as stack:
        for given, kept in NAMES:
            headers = {b"x-request-id": given.encode("latin-1")}
            answers = [await stack.http.request(m, path, json=body, headers=headers) for m, path, body in calls]
            names = [answer.headers["x-request-id"] for answer in answers]
            assert (set(names) == {given}) == kept
            assert kept or (len(set(names)) == len(names) and all(len(name) == 24 for name in names))


async def test_the_log_tells_the_name_that_the_client_gave(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    async with Stack(tmp_path, TokenWorker("p0", "prefill"), TokenWorker("d0", "decode")) as stack:
        await stack.http.post("/v1/completions", json=BODY, headers={"x-request-id": "mine-7"})
        await stack.until(lambda: stack.router.active == 0)
    assert " id=mine-7" in caplog.text
