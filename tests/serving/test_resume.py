"""Tests of streams whose router is killed: another router process gives exactly the rest."""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from benchmarks.processes import ROOT, process, wait_ready
from tests.ports import free_port

MODEL = "stdlib"
BODY: dict[str, Any] = {
    "model": MODEL, "prompt": "def ", "max_tokens": 300, "ignore_eos": True, "stream": True, "seed": 4,
    "stream_options": {"include_usage": True},
}  # fmt: skip
CHAT: dict[str, Any] = {k: v for k, v in BODY.items() if k != "prompt"} | {
    "messages": [{"role": "user", "content": "sort a list"}]
}
# More than workers make further without a reader.
SHAPES: list[tuple[str, dict[str, Any]]] = [
    ("completions", BODY),
    ("completions", BODY | {"temperature": 0}),
    ("completions", BODY | {"logprobs": 2, "seed": 9}),
    ("completions", BODY | {"presence_penalty": 1.0, "frequency_penalty": 0.5}),
    ("chat/completions", CHAT),
    ("chat/completions", CHAT | {"n": 2, "seed": 11}),
]


@pytest.fixture
def workers(tmp_path: Path) -> Iterator[Path]:
    """Run a prefill and a decode worker, and yield the folder with their list."""
    (tmp_path / "key").write_text(secrets.token_hex(32))
    with contextlib.ExitStack() as stack:
        members = []
        for role in ("prefill", "decode"):
            port = free_port()
            own = {"role": role, "port": port, "kv_port": 0, "pod_name": role, "kv_cache_bytes": 64 << 20}
            model = {"model_uri": f"file://{ROOT / 'models' / 'stdlib-llama'}", "model_name": MODEL}
            stack.enter_context(
                process("disagg_worker", tmp_path / f"{role}.log", cluster_key_file=tmp_path / "key", **own, **model)
            )
            members.append({"name": role, "url": f"http://127.0.0.1:{port}"})
        (tmp_path / "workers.json").write_text(json.dumps({"workers": members}))
        yield tmp_path


def contents(text: str, has: int) -> list[list[Any]]:
    """Return the events of each choice, and last the others, without what names the answer."""
    listed = [event.split("data: ", 1)[1] for event in text.split("\n\n")[:has] if event]
    out: dict[int, list[Any]] = {}
    for event in map(json.loads, filter(lambda e: e != "[DONE]", listed)):
        index = event["choices"][0]["index"] if event["choices"] else 99
        out.setdefault(index, []).append((event["choices"], event.get("usage")))
    return [out[index] for index in sorted(out)]


async def test_a_stream_whose_router_is_killed_goes_on_at_another_one(workers: Path) -> None:
    urls, routers = [], contextlib.ExitStack()
    with routers:
        children = []
        for i in range(2):
            port = free_port()
            own = {"port": port, "model_name": MODEL, "membership": f"file://{workers / 'workers.json'}"}
            log = workers / f"router-{i}.log"
            children.append(
                routers.enter_context(process("disagg_router", log, cluster_key_file=workers / "key", **own))
            )
            urls.append(f"http://127.0.0.1:{port}")
        async with httpx.AsyncClient(trust_env=False, timeout=120) as http:
            for member in json.loads((workers / "workers.json").read_text())["workers"]:
                await wait_ready(http, f"{member['url']}/readyz")
            for url in urls:
                await wait_ready(http, f"{url}/readyz")
                async with asyncio.timeout(60):
                    while (await http.post(f"{url}/v1/completions", json=BODY | {"max_tokens": 2})).status_code != 200:
                        await asyncio.sleep(0.1)
            wholes = [await http.post(f"{urls[1]}/v1/{path}", json=body) for path, body in SHAPES]
            begun = asyncio.Semaphore(0)

            async def begin(i: int, path: str, body: dict[str, Any]) -> str:
                text, told = "", False
                with contextlib.suppress(httpx.HTTPError):
                    async with http.stream(
                        "POST", f"{urls[0]}/v1/{path}", json=body, headers={"x-request-id": f"r{i}"}
                    ) as answer:
                        async for piece in answer.aiter_text():
                            text += piece
                            if not told and text.count("\n\n") > 6:
                                told = True
                                begun.release()
                return text[: text.rindex("\n\n") + 2]

            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(begin(i, *shape)) for i, shape in enumerate(SHAPES)]
                for _ in SHAPES:
                    await begun.acquire()
                children[0].kill()
            parts = [task.result() for task in tasks]
            assert sum(part.endswith("[DONE]\n\n") for part in parts) < len(parts)
            for i, ((path, body), part, whole) in enumerate(zip(SHAPES, parts, wholes, strict=True)):
                last = part.split("\n\n")[-2].split("\n")[0].removeprefix("id: ")
                if part.endswith("[DONE]\n\n"):
                    continue
                headers = {"x-request-id": f"r{i}", "last-event-id": last}
                rest = await http.post(f"{urls[1]}/v1/{path}", json=body, headers=headers)
                assert rest.status_code == 200, rest.text
                assert rest.text.endswith("data: [DONE]\n\n")
                both = contents(part + rest.text, 1 << 20)
                assert [[c for c, _ in events] for events in both] == [
                    [c for c, _ in events] for events in contents(whole.text, 1 << 20)
                ], (body, last)
                names = {json.loads(e.split("data: ")[1])["id"] for e in (part + rest.text).split("\n\n")[:-2]}
                assert len(names) == 1
            changed = BODY | {"seed": 5}
            headers = {"x-request-id": "r0", "last-event-id": "3"}
            assert (await http.post(f"{urls[1]}/v1/completions", json=changed, headers=headers)).status_code == 409
