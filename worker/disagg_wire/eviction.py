"""PURE: The rules by which the prefix cache of the bundled engine gives up blocks."""

from typing import Literal

# The block that was used longest ago, or the one that was computed first.
Eviction = Literal["lru", "fifo"]
