"""`disagg profile` measures a real vLLM pair, and what it writes is true and of use."""

from __future__ import annotations

import asyncio
import math
import sys
from dataclasses import asdict
from pathlib import Path
from statistics import median

import pytest
from benchmarks.engine.vllm_process import MODEL
from benchmarks.engine.vllm_stack import MAX_RUNNING
from tests.engines.served import Served, served

from disagg_operator.cli.measure import alone, decoding
from disagg_operator.cli.served_endpoint import ServedEndpoint
from disagg_operator.performance.profile import Profile
from disagg_operator.performance.profile_file import load
from disagg_wire.roles import DECODE, PREFILL

pytestmark = [pytest.mark.engines, pytest.mark.timeout(900)]
DISAGG = Path(sys.executable).with_name("disagg")
LONGEST, TIMES = 400, 9


async def disagg(*arguments: object) -> str:
    """Run the command and return what it printed."""
    process = await asyncio.create_subprocess_exec(
        str(DISAGG), *map(str, arguments), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    out, err = await process.communicate()
    assert process.returncode == 0, err.decode()
    return out.decode()


async def profiled(stack: Served, file: Path) -> Profile:
    options = ["--kv-tokens", await stack.kv_tokens("d0"), "--max-running", MAX_RUNNING, "--out", file]
    short = ["--max-prompt-tokens", LONGEST, "--max-batch", 4, "--seconds", 10, "--most-error", 10_000]
    out = await disagg("profile", f"{stack.url}/v1", *options, *short)
    assert f"{LONGEST} tokens alone" in out
    return load(str(file))


def predicted_s(profile: Profile, tokens: int) -> float:
    """Return the time to the first token of a prompt that has the prefill worker to itself."""
    wait_s = profile.batch_wait_s if tokens < profile.batch_full_tokens else 0.0
    return profile.overhead_s + wait_s + profile.isolated_s(tokens)


async def test_a_profile_of_a_pair_predicts_its_first_tokens_and_is_read_by_simulate_and_plan(tmp_path: Path) -> None:
    file = tmp_path / "profile.json"
    async with served(tmp_path, PREFILL, DECODE) as stack:
        profile = await profiled(stack, file)
        measured: dict[int, float] = {}
        # One stream is decoded, as while the profile is measured: the engines share processors.
        async with ServedEndpoint(f"{stack.url}/v1", None, None) as endpoint, decoding(endpoint, LONGEST - 16):
            for tokens in (50, 200, LONGEST):
                answers = [await alone(endpoint, tokens) for _ in range(TIMES)]
                measured[tokens] = median(a.ttft_s for a in answers)
        assert profile.kv_tokens == await stack.kv_tokens("d0")
    values = asdict(profile)
    assert all(math.isfinite(v) and v >= 0 for v in values.values()), values
    assert profile.d_s > 0
    assert 0 < profile.isolated_s(100) < profile.isolated_s(LONGEST) < 10
    assert 0 < profile.step_s(1, 100) <= profile.step_s(4, 1600) < 5
    ratios = {tokens: predicted_s(profile, tokens) / real_s for tokens, real_s in measured.items()}
    assert all(0.5 < ratio < 2 for ratio in ratios.values()), f"{ratios} {measured} {values}"

    trace = tmp_path / "trace.csv"
    trace.write_text("arrival_s,prompt_tokens,output_tokens\n" + "".join(f"{i},200,20\n" for i in range(60)))
    scored = await disagg("simulate", trace, "--profile", file, "--policy", "static:2,2", "--ttft-s", 20)
    assert "static:2,2" in scored
    lengths = ["--prompt-tokens", 200, "--output-tokens", 20, "--ttft", 20, "--tpot-ms", 5000]
    assert "H100" in await disagg("plan", MODEL, "--rate", 0.1, *lengths, "--profile", f"H100={file}", "--any-profile")
