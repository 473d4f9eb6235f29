"""A decode batch that stays in one place in memory, so that a graph can be recorded with it."""

from __future__ import annotations

import torch

from disagg_worker.backend.interface import Batch

BATCH_SIZES = (1, 2, 4, 8, *range(16, 64, 8), *range(64, 257, 16))


def bucket(rows: int) -> int | None:
    """Return the smallest batch size with room for `rows` sequences, or None if there is none."""
    return next((n for n in BATCH_SIZES if n >= rows), None)


class StaticBatch:
    """A batch of n sequences at fixed addresses.

    Unused rows compute the first sequence again and write what it writes.
    """

    def __init__(self, n: int, widest: int, device: torch.device) -> None:
        pinned = device.type == "cuda"
        # Columns: token, position, slot, length.
        self._host = torch.zeros(4, n, dtype=torch.long, pin_memory=pinned)
        self._host_tables = torch.zeros(n, widest, dtype=torch.long, pin_memory=pinned)
        self._device = self._host.to(device, copy=True)
        self._tables = self._host_tables.to(device, copy=True)
        ids, positions, slots, lengths = self._device.unbind(0)
        self.batch = Batch(ids, positions, slots, torch.arange(n, device=device), tables=self._tables, lengths=lengths)

    def fill(self, batch: Batch) -> None:
        """Copy a batch on the CPU into this one.

        The previous step must have ended, that is, its caller has read its logits.
        """
        if batch.tables is None or batch.lengths is None:
            raise ValueError("a decode batch has tables and lengths")
        rows, width = batch.tables.shape
        for column, values in zip(
            self._host, (batch.token_ids, batch.positions, batch.slots, batch.lengths), strict=True
        ):
            column[:rows] = values
            column[rows:] = values[0]
        # Only the columns in use are copied: lengths bound what is read, and most of the table of a
        # long context is empty.
        self._host_tables[:rows, :width] = batch.tables
        self._host_tables[rows:, :width] = batch.tables[0]
        self._device.copy_(self._host, non_blocking=True)
        self._tables[:, :width].copy_(self._host_tables[:, :width], non_blocking=True)
