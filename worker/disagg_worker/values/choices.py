"""PURE: The options that are fixed when a worker starts."""

from __future__ import annotations

from typing import Literal

Numerics = Literal["auto", "exact", "fast"]
Quantization = Literal["none", "int8", "int4", "fp8"]
