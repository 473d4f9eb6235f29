"""PURE: The table of the engines, each of which is one module of this folder."""

from __future__ import annotations

from disagg_operator.engines import builtin, lmdeploy, sglang, vllm
from disagg_operator.engines.contract import Engine

BY_NAME: dict[str, Engine] = {m.ENGINE.name: m.ENGINE for m in (builtin, vllm, sglang, lmdeploy)}
# The engine of a resource that names none.
DEFAULT = builtin.ENGINE
