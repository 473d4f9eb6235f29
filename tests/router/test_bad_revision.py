"""Tests that the files of a new revision cannot end a router that serves the old one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from tests.fakes.token_worker import TokenWorker
from tests.router.stack import Stack
from tests.router.text.test_tokenizer import PANICS_WHEN_READ, PANICS_WITH_A_TEXT


class BadFiles(TokenWorker):
    """A worker of a revision whose files are not what they should be."""

    files: dict[str, Any] = {}

    async def _tokenizer(self, request: Request) -> Response:
        answer = await super()._tokenizer(request)
        return JSONResponse(json.loads(bytes(answer.body)) | self.files)


async def test_a_router_outlives_a_tokenizer_that_panics_and_a_template_that_does_not_compile(tmp_path: Path) -> None:
    old, new = TokenWorker("w0", "both"), BadFiles("w1", "both", digest="other")
    async with Stack(tmp_path, old) as stack:
        await new.start()
        stack.workers.append(new)
        for tokenizer in (PANICS_WHEN_READ, PANICS_WITH_A_TEXT):
            new.files = {"tokenizer_json": tokenizer, "chat_template": "{{" + "(" * 5000}
            stack.publish(old, new)
            await stack.until(lambda: len(stack.router.table.workers()) == 2)
            for _ in range(3):
                await stack.router.table.refresh()
            assert not stack._background.done()
            assert (await stack.complete()).status_code == 200
