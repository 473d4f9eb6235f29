"""Streams that are cut and continued elsewhere, as a router does it after a failover, and the
comparison with what they would have been.

The first run decodes all streams on one engine. For each kill, the streams are dealt to other
batches, and a prefill and a decode engine continue them from prompt and emitted tokens.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tests.worker import checkpoints
from tests.worker.collector import Collector
from tests.worker.in_process_kv import generate_remote
from tests.worker.oracle import MODEL

from disagg_protocol.events import TokenEvent
from disagg_protocol.sampling_params import SamplingParams, Structured
from disagg_worker.engine.core import TorchEngine
from disagg_worker.engine.engine_config import EngineConfig

KILLS = (2, 17, 60, 200)
LARGEST_BATCH = 20
# One stream in each of these ways; the others are plain.
WAYS: tuple[dict[str, Any], ...] = (
    {},
    {"top_p": 0.9},
    {"top_k": 40},
    {"min_p": 0.05},
    {},
    {"presence_penalty": 0.6, "frequency_penalty": 0.3, "repetition_penalty": 1.1},
    {"logprobs": 3},
    {"temperature": 0.0},
    {"top_p": 0.95, "top_k": 200, "logprobs": 1, "logit_bias": ((5, 2.0),)},
    {"temperature": 0.0, "logprobs": 2},
)
STRUCTURED = Structured("regex", "([a-z]{3,9} ){120}")


@dataclass(frozen=True)
class Stream:
    """A request, and the tokens and log probabilities of its undisturbed run."""

    prompt: list[int]
    sampling: SamplingParams
    events: tuple[TokenEvent, ...] = ()

    @property
    def tokens(self) -> list[int]:
        return [e.token for e in self.events]


def random_model(folder: Path) -> Path:
    """Write a checkpoint with random weights in bfloat16, whose tokens are often nearly tied."""
    return checkpoints.make(
        folder,
        vocab_size=2048,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=4,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=512,
        dtype="bfloat16",
    )


def streams(number: int, new_tokens: int, seed: int, has_tokenizer: bool) -> list[Stream]:
    rng = random.Random(seed)
    made = []
    for i in range(number):
        prompt = [rng.randrange(1, 2048) for _ in range(rng.randrange(1, 120))]
        change = WAYS[i % len(WAYS)]
        if has_tokenizer and i % len(WAYS) == 4:
            change = {"structured": STRUCTURED, "stop_token_ids": (0,)}
        made.append(Stream(prompt, SamplingParams(seed=rng.getrandbits(63), max_new_tokens=new_tokens, **change)))
    return made


def engine(folder: Path, role: Any = "both", **changes: Any) -> TorchEngine:
    settings = {"kv_cache_bytes": 64 << 20, "max_model_len": 512, "prefix_cache": False} | changes
    return TorchEngine(folder, EngineConfig("m", role, max_running=LARGEST_BATCH, **settings))


def batches(items: Sequence[int], rng: random.Random) -> Iterator[list[int]]:
    """Deal the items to batches of 1 to LARGEST_BATCH, in random order."""
    left = rng.sample(items, len(items))
    while left:
        size = rng.randint(1, LARGEST_BATCH)
        yield left[:size]
        left = left[size:]


def undisturbed(on: TorchEngine, asked: Sequence[Stream], seed: int) -> list[Stream]:
    """Return the streams with what the engine says to them."""
    found = list(asked)
    for batch in batches(range(len(asked)), random.Random(seed)):
        sinks = {i: Collector() for i in batch}
        for i, sink in sinks.items():
            on.generate(str(i), asked[i].prompt, len(asked[i].prompt), asked[i].sampling, sink)
        for i, sink in sinks.items():
            sink.finished()
            found[i] = replace(asked[i], events=tuple(replace(e, cached_tokens=None) for e in sink.events))
    return found


def continued(
    prefill: TorchEngine, decode: TorchEngine, whole: Sequence[Stream], kill: int, seed: int
) -> tuple[int, list[int]]:
    """Continue all streams that are longer than `kill` from that token on.

    Returns how many they were, and those whose tokens or log probabilities are others.
    """
    long = [i for i, s in enumerate(whole) if len(s.events) > kill]
    others = []
    for batch in batches(long, random.Random(seed)):
        sinks = {i: Collector() for i in batch}
        for i, sink in sinks.items():
            s = whole[i]
            generate_remote(prefill, decode, str(i), [*s.prompt, *s.tokens[:kill]], len(s.prompt), s.sampling, sink)
        for i, sink in sinks.items():
            sink.finished()
            if tuple(replace(e, cached_tokens=None) for e in sink.events) != whole[i].events[kill:]:
                others.append(i)
    return len(long), others


def failovers(folder: Path, number: int, new_tokens: int, seed: int) -> tuple[int, int]:
    """Run streams, kill and continue each at every one of KILLS.

    Returns the number of continued streams, and the number of those that differ.
    """
    on = {role: engine(folder, role) for role in ("both", "prefill", "decode")}
    try:
        whole = undisturbed(on["both"], streams(number, new_tokens, seed, folder == MODEL), seed)
        found = [continued(on["prefill"], on["decode"], whole, kill, seed + kill) for kill in KILLS]
    finally:
        for one in on.values():
            one.stop(10)
    return sum(n for n, _ in found), sum(len(others) for _, others in found)


def prefix_hits(folder: Path, number: int, seed: int) -> tuple[int, int]:
    """Ask each prompt without a prefix cache, and again where one finds its start.

    Returns the number of prompts whose start was found, and that of different answers.
    """
    rng = random.Random(seed)
    fresh, caching = engine(folder), engine(folder, prefix_cache=True)
    hits = differ = 0
    try:
        for i in range(number):
            start = [rng.randrange(1, 2048) for _ in range(rng.randrange(17, 150))]
            # Every other prompt leaves a single token over.
            rest = [rng.randrange(1, 2048) for _ in range(1 if i % 2 else rng.randrange(2, 40))]
            prompt = [*(start[: len(start) // 16 * 16] if i % 2 else start), *rest]
            sampling = SamplingParams(seed=i, max_new_tokens=24, logprobs=2)
            caching.generate("s", start, len(start), replace(sampling, max_new_tokens=2), first := Collector())
            first.finished()
            answers = []
            for one in (fresh, caching):
                one.generate("r", prompt, len(prompt), sampling, sink := Collector())
                sink.finished()
                answers.append(sink)
            hits += (answers[1].events[0].cached_tokens or 0) > 0
            differ += [(e.token, e.top_logprobs) for e in answers[0].events] != [
                (e.token, e.top_logprobs) for e in answers[1].events
            ]
    finally:
        fresh.stop(10)
        caching.stop(10)
    return hits, differ
