"""Tests that API keys can be rotated while the router runs."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.fakes.token_worker import TokenWorker
from tests.router.stack import Stack

from disagg_router.openai import api_keys


async def test_a_new_key_is_accepted_and_an_old_one_refused_without_a_restart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api_keys, "_LOOK_EVERY_S", 0.0)
    file = tmp_path / "api-keys"
    file.write_text("first\n")
    async with Stack(
        tmp_path, TokenWorker("p", "prefill"), TokenWorker("d", "decode"), api_keys_file=str(file)
    ) as stack:

        async def status(key: str) -> int:
            return (await stack.http.get("/v1/models", headers={"authorization": f"Bearer {key}"})).status_code

        def write(content: bytes) -> None:
            """Swap the file as a Secret is swapped: another file under the same name."""
            fresh = tmp_path / "fresh"
            fresh.write_bytes(content)
            fresh.replace(file)

        assert [await status(k) for k in ("first", "second")] == [200, 401]
        write(b"first second")
        assert [await status(k) for k in ("first", "second")] == [200, 200]
        write(b"second")
        assert [await status(k) for k in ("first", "second")] == [401, 200]
        for broken in (b"", b"\xff\xfe"):
            write(broken)
            assert [await status(k) for k in ("first", "second")] == [401, 200]
        file.unlink()
        assert [await status(k) for k in ("first", "second", "x")] == [401, 200, 401]
