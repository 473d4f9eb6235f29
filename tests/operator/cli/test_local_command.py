"""Tests of `disagg local`, which runs the quickstart as processes.

They cover a real answer and a real scale-up, and check that no process is left behind.
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
from pathlib import Path

import httpx
import pytest
from tests.ports import free_port

from disagg_operator.cli import chat, local_command

REPO = Path(__file__).parents[3]
EXAMPLE = REPO / "examples/quickstart.yaml"


async def start(*arguments: str) -> asyncio.subprocess.Process:
    environment = {**os.environ, "PYTHONPATH": f"{REPO}/operator:{REPO}/worker", "PYTHONUNBUFFERED": "1"}
    command = "from disagg_operator.cli.entry import main; main()"
    return await asyncio.create_subprocess_exec(
        sys.executable, "-c", command, "local", "-f", str(EXAMPLE), *arguments,
        env=environment, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip


async def wait_for_line(process: asyncio.subprocess.Process, pattern: str, timeout_s: float) -> re.Match[str]:
    """Return the first match in the output of a process. A failure shows what was printed."""
    seen = ""
    assert process.stdout is not None
    try:
        async with asyncio.timeout(timeout_s):
            while line := (await process.stdout.readline()).decode():
                seen += line
                if found := re.search(pattern, line):
                    return found
    except TimeoutError:
        pass
    raise AssertionError(f"no {pattern!r} in:\n{seen}")


def children_of(pid: int) -> list[int]:
    """Return the ids of the processes whose parent is `pid`."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        if int(fields[1]) == pid:
            found.append(int(stat.parent.name))
    return found


@pytest.mark.slow
async def test_one_question_is_answered_through_both_pools_and_then_all_is_gone() -> None:
    process = await start("--port", str(free_port()), "--ask", "What does os.path.join do?", "--once")
    async with asyncio.timeout(150):
        out, _ = await process.communicate()
    text = out.decode()
    assert process.returncode == 0, text
    for expected in (
        "prefill on   chat-prefill-0",
        "decode on    chat-decode-0",
        "KV transfer  ",
        "first token  ",
        "ms per token",
    ):
        assert expected in text


@pytest.mark.slow
async def test_a_full_decode_pool_grows_while_prefill_stays_and_no_request_fails() -> None:
    port = free_port()
    process = await start("--port", str(port))
    try:
        await wait_for_line(process, r"serving stdlib-llama", 120)
        body = {"model": "stdlib-llama", "prompt": [5, 6, 7], "max_tokens": 900, "ignore_eos": True}
        async with httpx.AsyncClient(timeout=180, trust_env=False) as http:
            posts = [
                asyncio.create_task(http.post(f"http://127.0.0.1:{port}/v1/completions", json=body)) for _ in range(20)
            ]
            scaled = await wait_for_line(process, r"(prefill|decode) (\d) -> (\d)", 60)
            answers = await asyncio.gather(*posts)
        assert scaled.group(1) == "decode"
        assert int(scaled.group(3)) > int(scaled.group(2))
        assert {a.status_code for a in answers} == {200}
        assert {a.json()["usage"]["completion_tokens"] for a in answers} == {900}
        workers = children_of(process.pid)
        assert len(workers) >= 3
    finally:
        process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(60):
            await process.communicate()
    assert process.returncode == 0
    assert not [pid for pid in workers if Path(f"/proc/{pid}").exists()]


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (("maxReplicas: 3", "maxReplicas: 0"), "maxReplicas"),
        (("file:///", "ftp://"), "uri"),
        (("router: {replicas: 1}", "rooter: {replicas: 1}"), "rooter"),
        (("kind: DisaggDeployment", "kind: ["), "quickstart"),
    ],
    ids=["a bound", "a scheme", "an unknown field", "broken YAML"],
)
def test_a_bad_file_is_refused_by_field(tmp_path: Path, edit: tuple[str, str], message: str) -> None:
    path = tmp_path / "quickstart.yaml"
    path.write_text(EXAMPLE.read_text().replace(*edit))
    with pytest.raises(local_command.LocalError, match=message):
        local_command.read_resource(path)


def test_an_engine_of_another_project_is_refused_by_its_field(tmp_path: Path) -> None:
    file = tmp_path / "cr.yaml"
    file.write_text(EXAMPLE.read_text().replace("spec:\n", "spec:\n  engine: {type: vllm}\n", 1))
    with pytest.raises(local_command.LocalError, match=r"spec.engine.type: .* vllm runs in a cluster"):
        local_command.read_resource(file)


def test_a_model_path_of_the_image_becomes_the_checkouts() -> None:
    assert local_command.read_resource(EXAMPLE).spec.model.uri == f"file://{REPO}/models/stdlib-llama"


def test_the_explanation_names_pods_bytes_interface_and_times() -> None:
    trace = {
        "prefill": {"pod": "p-1"}, "decode": {"pod": "d-1"}, "interface": "net1",
        "kv_bytes": 49152, "transfer_s": 0.0123, "exposed_s": 0.001, "ttft_s": 0.05, "tpot_s": 0.004,
    }  # fmt: skip
    text = "\n".join(chat.explain(trace))
    for part in ("p-1", "d-1", "49,152 bytes in 12.3 ms over net1", "50 ms", "4.0 ms per token"):
        assert part in text


@pytest.mark.parametrize(
    ("reason", "words"),
    [
        ("few_tokens_missing", "it lacked only a few tokens of the prompt"),
        ("no_prefill_worker", "no prefill worker was ready"),
        ("both_roles", "it does both"),
    ],
)
def test_the_explanation_says_why_decode_has_prefilled(reason: str, words: str) -> None:
    trace = {"prefill": None, "decode": {"pod": "d-1"}, "reason": reason, "ttft_s": 0.05, "tpot_s": None}
    assert chat.explain(trace)[0] == f"prefill and decode on d-1 ({words})"
