"""PURE: The blocks with their content: the pool, the prefix cache in it, and the host tier behind
it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from disagg_protocol.errors import NoCapacity
from disagg_wire.eviction import Eviction
from disagg_worker.engine.block_pool import BlockPool, BlockRef, Holding, State
from disagg_worker.engine.host_tier import HostRef, HostTier


class BlockBytes(Protocol):
    """The bytes of whole blocks with all layers, which CacheMemory implements."""

    def read(self, block: int) -> bytes: ...
    def write(self, block: int, content: bytes) -> None: ...


class KvStore:
    """The pool of blocks and the host tier. With 0 `host_bytes`, evicted content is lost."""

    def __init__(self, total: int, eviction: Eviction, host_bytes: int, memory: BlockBytes) -> None:
        self.pool = BlockPool(total, eviction, self._save if host_bytes else None)
        self.host = HostTier(host_bytes)
        self._memory = memory

    def _save(self, name: bytes, ref: BlockRef) -> None:
        self.host.put(name, self._memory.read(self.pool.check(ref)))

    @property
    def free(self) -> int:
        return self.pool.count(State.FREE)

    def acquire(self, names: Sequence[bytes], n: int, keep_free: int = 0) -> tuple[Holding, int]:
        """Return n blocks to compute with, and the number of them that come from the cache.

        The first blocks have the content of `names`, as far as it is cached. Raises NoCapacity,
        taking none, if fewer than `keep_free` blocks would be left.
        """
        found = self._find(names[:n])
        shared = [ref for ref in found if isinstance(ref, BlockRef)]
        needed = n - sum(self.pool.state(ref.block) is not State.FREE for ref in shared)
        if needed + keep_free > self.free:
            raise NoCapacity(f"{needed} KV blocks are needed, {self.free} of {self.pool.total} are free")
        # The blocks that were found are secured before new ones evict anything.
        cached = Holding(State.USED, [], [])
        for ref in shared:
            self.pool.share(cached, ref)
        contents = {i: self.host.take(ref) for i, ref in enumerate(found) if isinstance(ref, HostRef)}
        fresh = self.pool.allocate(n - len(shared), State.USED)
        refs = {
            True: iter(zip(cached.blocks, cached.generations, strict=True)),
            False: iter(zip(fresh.blocks, fresh.generations, strict=True)),
        }
        order = [next(refs[i < len(found) and i not in contents]) for i in range(n)]
        holding = Holding(State.USED, [block for block, _ in order], [generation for _, generation in order])
        for i, content in contents.items():
            self._memory.write(holding.blocks[i], content)
            self.pool.register(self.pool.ref(holding, i), names[i])
        return holding, len(found)

    def lease(self, names: Sequence[bytes], n: int) -> tuple[Holding, int]:
        """Return n blocks for KV that is to arrive, and the number of the first of them that have
        the content of `names` already, as far as it is in the pool.

        Raises NoCapacity, taking none.
        """
        holding = Holding(State.LEASED, [], [])
        for ref in self._in_pool(names[:n]):
            self.pool.share(holding, ref)
        held = len(holding.blocks)
        try:
            self.pool.extend(holding, n - held)
        except NoCapacity:
            self.pool.free(holding)
            raise
        return holding, held

    def owned(self, names: Sequence[bytes]) -> int:
        """Return how many blocks `lease` would share that have an owner already, and so take no
        free block.
        """
        return sum(self.pool.state(ref.block) is not State.FREE for ref in self._in_pool(names))

    def leading(self, names: Sequence[bytes]) -> int:
        """Return how many of the first names are in the pool.

        What is in the host tier does not count: it would have to be copied back first.
        """
        return len(self._in_pool(names))

    def _in_pool(self, names: Sequence[bytes]) -> list[BlockRef]:
        found = []
        for name in names:
            if (ref := self.pool.find(name)) is None:
                break
            found.append(ref)
        return found

    def _find(self, names: Sequence[bytes]) -> list[BlockRef | HostRef]:
        found: list[BlockRef | HostRef] = []
        for name in names:
            ref = self.pool.find(name) or self.host.find(name)
            if ref is None:
                break
            found.append(ref)
        return found

    def register(self, holding: Holding, first: int, names: Sequence[bytes]) -> None:
        """Name the content of the holding's blocks from `first` on."""
        for i, name in enumerate(names, first):
            self.pool.register(self.pool.ref(holding, i), name)
            self.host.discard(name)
