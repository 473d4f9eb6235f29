"""One step of computation: from sequences to tensors, through the network, to the sampler.

It has no queue, no lock and no policy, and runs on the engine's thread.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence as Many
from dataclasses import dataclass

import torch

from disagg_worker.backend.interface import Batch
from disagg_worker.engine.batching import DecodeBatches, prefill_batch
from disagg_worker.engine.block_pool import blocks_for
from disagg_worker.engine.kv_store import KvStore
from disagg_worker.engine.masks import QUICK_S
from disagg_worker.engine.prefill_pace import PaceMeter
from disagg_worker.engine.sampler import Row, Sampled, sample_rows
from disagg_worker.engine.sequence import Sequence
from disagg_worker.execution.cache_memory import CacheMemory
from disagg_worker.execution.executor import Executor, OnLayer, Step
from disagg_worker.values.kv_blocks import KvBlocks

Outcome = Sampled | Exception


@dataclass(slots=True)
class Work:
    """Totals of the work done and of the time that it took.

    A scaling policy learns a worker's speed from them.
    """

    prefill_batches: int = 0
    prefill_batch_tokens: int = 0
    """Prompt tokens in the batches."""
    prefill_batch_tokens_squared: int = 0
    """The sum of the squares of each prompt's tokens in a batch."""
    prefill_batch_seconds: float = 0.0
    decode_steps: int = 0
    decode_step_sequences: int = 0
    """Sequences, summed over the steps."""
    decode_step_kv_tokens: int = 0
    """Tokens in the KV cache of these sequences, summed over the steps."""
    decode_step_seconds: float = 0.0

    def prefilled(self, tokens: Many[int], seconds: float) -> None:
        self.prefill_batches += 1
        self.prefill_batch_tokens += sum(tokens)
        self.prefill_batch_tokens_squared += sum(n * n for n in tokens)
        self.prefill_batch_seconds += seconds

    def decoded(self, sequences: int, kv_tokens: int, seconds: float) -> None:
        self.decode_steps += 1
        self.decode_step_sequences += sequences
        self.decode_step_kv_tokens += kv_tokens
        self.decode_step_seconds += seconds


class Steps:
    """Computes batches over the KV cache.

    An exception that a method raises concerns the whole batch, and the same sequences may be
    computed again. An exception in an Outcome concerns one sequence.

    `forward_s` is the number of seconds spent in the network so far, `work` has the totals, and
    `pace` learns the speed of prefill.
    """

    def __init__(self, executor: Executor, memory: CacheMemory, store: KvStore) -> None:
        self.forward_s = 0.0
        self._executor = executor
        self.work = Work()
        self.pace = PaceMeter()
        self._memory = memory
        self._store = store
        self._size = memory.layout.block_size_tokens
        self._batches = DecodeBatches(self._size)
        self._arrived: deque[int] = deque()

    def prefill(self, work: Many[tuple[Sequence, int]]) -> list[tuple[Sequence, Outcome]]:
        """Compute n more tokens of each sequence.

        Returns the next token of each sequence that is computed to its end, and the failures.
        """
        began_s = time.perf_counter()
        for s, _ in work:
            s.begun_at_s = s.begun_at_s or time.monotonic()
        with torch.inference_mode():
            cleared = [b for s, n in work for b in self._partly_filled(s, n)]
            ready = [(s, _sent(s, end)) for s, n in work if (end := self._final_blocks(s, n)) > s.reported]
            exported = [s.blocks[i] for s, indices in ready if self._needs_views(s) for i in indices]
            failed: dict[Sequence, Exception] = {}

            def on_layer(layer: int) -> None:
                for s, indices in ready:
                    self._report(s, layer, indices, failed)

            logits = self._run(prefill_batch(work, self._size), cleared, exported, on_layer if ready else None)
            for s, indices in ready:
                s.reported, s.reported_layers = indices.stop, 0
            whole = []
            for s, n in work:
                s.computed += n
                if s.computed == len(s.tokens):
                    whole.append(s)
            outcomes = dict(zip(whole, self._sample(logits, whole), strict=True))
        took_s = time.perf_counter() - began_s
        self.work.prefilled([n for _, n in work], took_s)
        self.pace.note(sum(n for _, n in work), took_s)
        return list((outcomes | failed).items())

    def decode(self, running: Many[Sequence]) -> list[tuple[Sequence, Outcome]]:
        """Compute one more token of each sequence."""
        began_s = time.perf_counter()
        with torch.inference_mode():
            cleared = [s.blocks[s.computed // self._size] for s in running if s.computed % self._size == 0]
            logits = self._run(self._batches.build(running), cleared)
            in_time = _with_masks(running)
            # The others are computed again, once their masks are there.
            sampled = [running[i] for i in in_time]
            for s in sampled:
                s.computed += 1
            rows = logits if len(in_time) == len(running) else logits[in_time]
            outcomes = list(zip(sampled, self._sample(rows, sampled), strict=True))
        self.work.decoded(len(running), sum(s.computed for s in running), time.perf_counter() - began_s)
        return outcomes

    def arrived(self, blocks: Many[int]) -> None:
        """Load these blocks, whose KV came from another worker, before the next step.

        Any thread may call this.
        """
        self._arrived.extend(blocks)

    def _run(
        self, batch: Batch, cleared: list[int], exported: Many[int] = (), on_layer: OnLayer | None = None
    ) -> torch.Tensor:
        loaded = tuple(self._arrived.popleft() for _ in range(len(self._arrived)))
        started_s = time.perf_counter()
        try:
            return self._executor.run(Step(batch, loaded, tuple(cleared), tuple(exported)), on_layer)
        except Exception:
            self._arrived.extendleft(reversed(loaded))  # The next attempt needs them.
            raise
        finally:
            self.forward_s += time.perf_counter() - started_s

    def _sample(self, logits: torch.Tensor, sequences: Many[Sequence]) -> list[Outcome]:
        rows = [Row(s.sampling, s.tokens, s.prompt_tokens, s.grammar, s.counts) for s in sequences]
        return [_in_vocabulary(outcome, logits.shape[-1]) for outcome in sample_rows(logits, rows)]

    def _partly_filled(self, s: Sequence, n: int) -> list[int]:
        """Return the block, if any, that the next n tokens begin but do not fill.

        It is cleared first, so that content of another request is never sent to a peer and cannot
        poison a masked sum (0 * NaN is NaN).
        """
        stop = s.computed + n
        last = stop // self._size
        return [s.blocks[last]] if stop % self._size and s.computed <= last * self._size else []

    def _final_blocks(self, s: Sequence, n: int) -> int:
        """Return the number of the sequence's blocks that are final for its sender once the next n
        tokens are computed, including those from the cache.
        """
        if s.sender is None:
            return 0
        stop = s.computed + n
        return blocks_for(stop, self._size) if stop == len(s.tokens) else stop // self._size

    def _needs_views(self, s: Sequence) -> bool:
        """Return whether the views of a sequence's blocks must show what is computed."""
        return s.sender is not None and not (s.sender.reads_region and self._memory.region_is_cache)

    def _report(self, s: Sequence, layer: int, indices: range, failed: dict[Sequence, Exception]) -> None:
        if s.sender is None or s.holding is None or s in failed or layer < s.reported_layers:
            return
        try:
            blocks = [self._store.pool.ref(s.holding, i).block for i in indices]
            s.sender.layer_ready(layer, indices.start, KvBlocks(self._memory, blocks))
        except Exception as error:  # The failure of a sender concerns its own request only.
            failed[s] = error
        s.reported_layers = layer + 1


def _sent(s: Sequence, end: int) -> range:
    """Return the blocks up to `end` that are to be reported now: not those that the peer has."""
    held = 0 if s.sender is None else s.sender.held_blocks
    return range(max(s.reported, held), max(end, held))


def _in_vocabulary(outcome: Outcome, size: int) -> Outcome:
    """Return the outcome, or an error for a token that the network has no row for.

    In the next step, such a token would make the whole batch fail.
    """
    if isinstance(outcome, Exception) or 0 <= outcome.token < size:
        return outcome
    return ArithmeticError(f"the sampled token {outcome.token} is not below the vocabulary's {size}")


def _with_masks(sequences: Many[Sequence]) -> list[int]:
    """Return the indexes of those whose masks are there, or come soon."""
    until_s = time.monotonic() + QUICK_S
    waits = ((i, s.grammar) for i, s in enumerate(sequences))
    return [i for i, mask in waits if mask is None or mask.wait(until_s - time.monotonic())]
