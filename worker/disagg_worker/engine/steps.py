"""One step of computation: sequences to tensors, the network, the sampler. No queue, no lock, no policy; runs on the engine's thread."""

from __future__ import annotations

import logging
from collections.abc import Sequence as Many

import torch

from disagg_worker.engine.batching import decode_batch, prefill_batch
from disagg_worker.engine.block_pool import blocks_for
from disagg_worker.engine.cache_memory import CacheMemory
from disagg_worker.engine.sampler import Row, Sampled, sample_rows
from disagg_worker.engine.sequence import Sequence
from disagg_worker.model.decoder import Decoder

log = logging.getLogger(__name__)
Outcome = Sampled | Exception


class Steps:
    """Computes batches over the KV cache. An exception out of a method concerns the whole batch, one in an Outcome one sequence."""

    def __init__(self, network: Decoder, memory: CacheMemory) -> None:
        self.network = network
        self._memory = memory
        self._size = memory.layout.block_size_tokens
        self._decode = network.backend.decode_program(network, memory.tensor) or network.forward

    def prefill(self, work: Many[tuple[Sequence, int]]) -> list[tuple[Sequence, Outcome]]:
        """Compute n more tokens of each sequence. Returns the next token of those that are computed whole, and failures."""
        with torch.inference_mode():
            self._memory.clear([b for s, n in work for b in self._partly_filled(s, n)])
            ready = [r for s, n in work if (r := self._completed_blocks(s, n)) is not None]
            failed: dict[Sequence, Exception] = {}

            def on_layer(layer: int) -> None:
                for s, first, views in ready:
                    self._report(s, layer, first, views, failed)

            logits = self.network.forward(prefill_batch(work, self._size), self._memory.tensor, on_layer)
            whole = []
            for s, n in work:
                s.computed += n
                if s.computed == len(s.tokens):
                    whole.append(s)
            outcomes = dict(zip(whole, self._sample(logits, whole), strict=True))
        return list((outcomes | failed).items())

    def decode(self, running: Many[Sequence]) -> list[tuple[Sequence, Outcome]]:
        """One more token for each sequence."""
        with torch.inference_mode():
            self._memory.clear([s.blocks[s.computed // self._size] for s in running if s.computed % self._size == 0])
            logits = self._decode(decode_batch(running, self._size), self._memory.tensor)
            for s in running:
                s.computed += 1
            return list(zip(running, self._sample(logits, running), strict=True))

    @staticmethod
    def _sample(logits: torch.Tensor, sequences: Many[Sequence]) -> list[Outcome]:
        return sample_rows(logits, [Row(s.sampling, s.tokens, s.prompt_tokens) for s in sequences])

    def _partly_filled(self, s: Sequence, n: int) -> list[int]:
        """The block that the next n tokens enter and leave part empty. It is cleared before, so that what another request left there is
        never sent to a peer, and can't poison a masked sum (0 * NaN is NaN)."""
        stop = s.computed + n
        last = stop // self._size
        return [s.blocks[last]] if stop % self._size and s.computed <= last * self._size else []

    def _completed_blocks(self, s: Sequence, n: int) -> tuple[Sequence, int, range] | None:
        """Which of the sequence's blocks are final once the next n tokens are computed, for the sender."""
        stop = s.computed + n
        end = blocks_for(stop, self._size) if stop == len(s.tokens) else stop // self._size
        first = s.computed // self._size
        return (s, first, range(first, end)) if s.sender is not None and end > first else None

    def _report(self, s: Sequence, layer: int, first: int, indices: range, failed: dict[Sequence, Exception]) -> None:
        if s.sender is None or s in failed:
            return
        try:
            s.sender.layer_ready(layer, first, [self._memory.view(layer, s.blocks[i]) for i in indices])
        except Exception as error:  # a sender's fault is its own request's, not the batch's
            failed[s] = error
