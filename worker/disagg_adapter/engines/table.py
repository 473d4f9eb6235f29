"""The engines that can run beside an adapter, one module for each."""

from __future__ import annotations

from collections.abc import Callable

from disagg_adapter.engines.contract import Engine, EngineOptions
from disagg_adapter.engines.http_client import EngineHttp
from disagg_adapter.engines.lmdeploy import Lmdeploy
from disagg_adapter.engines.sglang import Sglang
from disagg_wire import engines

ENGINES: dict[str, Callable[[EngineHttp, EngineOptions], Engine]] = {
    engines.SGLANG: Sglang,
    engines.LMDEPLOY: Lmdeploy,
}
