"""The memory of the KV cache: one tensor, block-major, and its bytes, which the KV transfer and the
host tier read and write.

If the cache is in ordinary memory and whole, these bytes are the cache itself (zero-copy). If it is
in the memory of a device, they are copied through a few buffers of host memory (`Staging`) by the
threads that send or receive them, beside the steps. If it holds only some of the KV heads (tensor
parallelism), the buffers are shared by the ranks, each of which copies its heads (`move`,
group_memory). Where other processes are to write KV by NIXL, they are a host copy of all blocks in
the whole layout instead, which the ranks share; `export` and `load` copy between the two. KV
crosses between device and host nowhere else.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from disagg_worker.execution.shared_staging import Move, SharedMemory
from disagg_worker.execution.staging import Staging
from disagg_worker.values.kv_blocks import Region
from disagg_worker.values.layouts import KvLayout

# torch has no types for these.
_Stream: Any = torch.cuda.Stream
_Event: Any = torch.cuda.Event


class HostCopy:
    """All heads of all blocks in host memory.

    `fd` is a file in memory that every rank maps. Pages that nobody has touched take no room.
    """

    def __init__(self, layout: KvLayout, blocks: int, dtype: torch.dtype, fd: int) -> None:
        self._map = mmap.mmap(fd, blocks * layout.layers * layout.layer_block_bytes)
        self.bytes = memoryview(self._map)
        shape = (blocks, layout.layers, 2, layout.kv_heads, layout.block_size_tokens, layout.head_dim)
        self.raw = torch.frombuffer(self._map, dtype=torch.uint8).view(*shape[:-1], layout.head_dim * dtype.itemsize)


class CacheMemory:
    """The cache as a tensor and as bytes.

    `tensor` is [block, layer, 2, kv_head, token in block, head_dim]; all layers of a block are
    contiguous. `heads` are the KV heads of the layout that are held here, None for all. If the
    tensor is whole and not on the CPU, its bytes need `staging`. If it is not whole, they are
    reached by `move`, or by a `host` copy.
    Implements kv_blocks.KvCache.
    """

    def __init__(
        self,
        layout: KvLayout,
        blocks: int,
        dtype: torch.dtype,
        device: torch.device | None = None,
        heads: slice | None = None,
        host: HostCopy | None = None,
        staging: Staging | None = None,
    ) -> None:
        self.layout = layout
        self._heads = heads or slice(0, layout.kv_heads)
        held = len(range(layout.kv_heads)[self._heads])
        shape = (blocks, layout.layers, 2, held, layout.block_size_tokens, layout.head_dim)
        self.tensor = torch.zeros(shape, dtype=dtype, device=device)
        self._raw = self.tensor.view(torch.uint8)  # Not every device assigns every dtype by index.
        self._cuda = self.tensor.is_cuda
        self._host = host
        self._staging = staging
        self.region_is_cache = held == layout.kv_heads
        """Whether the region is the cache itself, and not its host copy."""
        self._stream = _Stream(self.tensor.device) if self._cuda else None
        self._bytes: memoryview | None
        if host is not None:
            self._bytes = host.bytes
        else:
            in_place = self.region_is_cache and not self._cuda
            self._bytes = self.tensor.view(-1).view(torch.uint8).numpy().data if in_place else None

    @property
    def region(self) -> Region | None:
        """Implement kv_blocks.KvCache.region.

        It holds all heads, so it is that of the host copy where this process has some of them.
        """
        if not self.region_is_cache and self._host is None:
            return None
        memory = self._raw if self._host is None else self._host.raw
        size = self.layout.layers * self.layout.layer_block_bytes
        return Region(memory.data_ptr(), size, len(memory), memory.device.index if memory.is_cuda else None)

    # ---- bytes of the whole layout ----

    def view(self, layer: int, block: int) -> memoryview:
        """Return the contiguous bytes `[k, v][kv_head][token][head_dim]` of one layer of one block.

        Raises RuntimeError if a host copy is needed and there is none.
        """
        return self._views(layer, [block])[0]

    def _views(self, layer: int, ids: Sequence[int]) -> list[memoryview]:
        """Return `view` of several blocks; what is the same for all is computed once."""
        held = self._bytes
        if held is None:
            raise RuntimeError("this cache has no host copy, so its KV can't be moved")
        size = self.layout.layer_block_bytes
        first, step = layer * size, self.layout.layers * size
        starts = [first + block * step for block in ids]
        return [held[start : start + size] for start in starts]

    @contextmanager
    def reading(self, layer: int, ids: Sequence[int]) -> Iterator[Sequence[memoryview]]:
        """Implement KvCache.reading."""
        if self._staging is None:
            yield self._views(layer, ids)
            return
        with self._staging.take(len(ids) * self.layout.layer_block_bytes) as buffer:
            with self._aside():
                part = self._raw[self._index(ids), layer]
                buffer.view(part.shape).copy_(part, non_blocking=True)
            yield [buffer.numpy().data]

    @contextmanager
    def writing(self, layer: int, ids: Sequence[int]) -> Iterator[Sequence[memoryview]]:
        """Implement KvCache.writing."""
        if self._staging is None:
            yield self._views(layer, ids)
            return
        with self._staging.take(len(ids) * self.layout.layer_block_bytes) as buffer:
            yield [buffer.numpy().data]
            with self._aside():
                part = buffer.view(len(ids), *self._raw.shape[2:]).to(self._raw.device, non_blocking=True)
                self._raw[self._index(ids), layer] = part

    def move(self, memory: SharedMemory, move: Move) -> None:
        """Copy the heads that are held here between the cache and a buffer of all heads.

        Any thread may call this; the copy is done when it returns.
        """
        layout, n = self.layout, len(move.blocks)
        buffer = memory.at(move.offset, n * layout.layer_block_bytes)
        if self._cuda:
            memory.lock(buffer)
        whole = buffer.view(n, 2, layout.kv_heads, layout.block_size_tokens, self._raw.shape[-1])[:, :, self._heads]
        with self._aside():
            if move.arrives:
                self._raw[self._index(move.blocks), move.layer] = whole.to(self._raw.device, non_blocking=True)
            else:
                whole.copy_(self._raw[self._index(move.blocks), move.layer], non_blocking=True)

    def _index(self, ids: Sequence[int]) -> torch.Tensor:
        at = torch.tensor(list(ids))
        return at.pin_memory().to(self._raw.device, non_blocking=True) if self._cuda else at

    @contextmanager
    def _aside(self) -> Iterator[None]:
        """Run copies beside the computation, and wait for them at the end."""
        with torch.inference_mode():
            if self._stream is None:
                yield
                return
            done = _Event()
            with torch.cuda.stream(self._stream):
                yield
                done.record()
            done.synchronize()

    def export(self, layer: int, blocks: Sequence[int]) -> Callable[[], None] | None:
        """Make one layer of these blocks, as computed so far, readable by any thread.

        Returns None if it is already. Else it is when the returned function has been called, on any
        thread.
        """
        if self._host is None and self._cuda:
            ready = _Event()
            ready.record()
            wait: Callable[[], None] = ready.synchronize
            return wait
        if self._host is None or not blocks:
            return None
        at, into = torch.tensor(blocks), self._host.raw
        if self._stream is None:
            into[at, layer, :, self._heads] = self._raw[at, layer]
            return None
        # Blocks are small, so they are gathered on the device, moved by one copy while the
        # computation goes on, and scattered by whoever waits.
        computed, copied = _Event(), _Event()
        computed.record()
        with torch.cuda.stream(self._stream):
            self._stream.wait_event(computed)
            part = self._raw[at.pin_memory().to(self.tensor.device, non_blocking=True), layer]
            pinned = torch.empty(part.shape, dtype=part.dtype, pin_memory=True)
            pinned.copy_(part, non_blocking=True)
            copied.record()

        def finish() -> None:
            copied.synchronize()
            into[at, layer, :, self._heads] = pinned

        return finish

    def computed(self) -> Callable[[], None] | None:
        """Return a function that waits until all that was begun so far is in the region, or None
        if it is.
        """
        if not self._cuda:
            return None
        event = _Event()
        event.record()
        return lambda: event.synchronize()

    def load(self, blocks: Sequence[int]) -> None:
        """Copy all layers of these blocks from the views into the cache.

        Whatever is computed afterwards sees them.
        """
        if self._host is None or not blocks:
            return
        at = torch.tensor(blocks)
        part = self._host.raw[at, :, :, self._heads]
        self._raw[at.to(self.tensor.device)] = part.to(self.tensor.device)

    # ---- whole blocks, for the host tier ----

    def read(self, block: int) -> bytes:
        """Return a copy of all layers of a block.

        Any thread may call this: the block is free, so nothing writes to it.
        """
        part = self._raw[block]
        if self._stream is not None:
            computed = _Event()
            computed.record(torch.cuda.default_stream(part.device))
            with torch.cuda.stream(self._stream):
                self._stream.wait_event(computed)
                part = part.cpu()
        return part.numpy().tobytes()

    def write(self, block: int, content: bytes) -> None:
        """Write the bytes that `read` returned into a block."""
        part = self._raw[block]
        part.copy_(torch.frombuffer(bytearray(content), dtype=torch.uint8).view(part.shape))

    def clear(self, blocks: Sequence[int]) -> None:
        """Set all layers of these blocks to zero."""
        if blocks:
            self._raw[torch.tensor(blocks, device=self.tensor.device)] = 0
