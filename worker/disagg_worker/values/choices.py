"""PURE: The choices that a worker is started with."""

from __future__ import annotations

from typing import Literal

Quantization = Literal["none", "int8", "int4", "fp8"]
Role = Literal["prefill", "decode", "both"]
