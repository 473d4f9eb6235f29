"""The engines that the adapter knows, by name."""

from collections.abc import Callable

from disagg_adapter.engines.contract import Engine, EngineOptions
from disagg_adapter.engines.http_client import EngineHttp
from disagg_adapter.engines.lmdeploy import Lmdeploy
from disagg_adapter.engines.sglang import Sglang
from disagg_adapter.engines.vllm import Vllm
from disagg_wire.engines import LMDEPLOY, SGLANG, VLLM

ENGINES: dict[str, Callable[[EngineHttp, EngineOptions], Engine]] = {
    VLLM: lambda http, options: Vllm(http, options.model, options.lease_s),
    SGLANG: Sglang,
    LMDEPLOY: Lmdeploy,
}
