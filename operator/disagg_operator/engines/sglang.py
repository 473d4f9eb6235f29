"""PURE: SGLang, whose prefill pushes the KV cache into pages that decode has reserved.

The flags and variables are those of SGLang 0.5.23.
"""

from __future__ import annotations

from disagg_operator.engines import surroundings
from disagg_operator.engines.contract import (
    ADAPTED_ABSENT,
    ADAPTED_VALUES,
    EPHEMERAL_PORTS,
    EPHEMERAL_SYSCTL,
    Engine,
    EngineLimits,
    EngineMeter,
    EnginePool,
    EngineProcess,
    TensorRule,
)
from disagg_operator.engines.launch import KEY_PLACE
from disagg_wire.engine_metrics.sglang import SERIES, pool_readings_of
from disagg_wire.engines import SGLANG
from disagg_wire.environment import AdapterVariable
from disagg_wire.ports import BOOTSTRAP_PORT, ENGINE_PORT
from disagg_wire.roles import PREFILL

_HOST_IP = "SGLANG_HOST_IP"
_BOOTSTRAP_TIMEOUT = "SGLANG_DISAGGREGATION_BOOTSTRAP_TIMEOUT"
_WAITING_TIMEOUT = "SGLANG_DISAGGREGATION_WAITING_TIMEOUT"
_MOST_LORA_SLOTS = 8
_TENSOR = "prefill.parallelism and decode.parallelism"
_MEMORY = "--mem-fraction-static or --max-total-tokens in args sets its size"
_OWNED = {
    "--host": "", "--port": "", "--fastapi-root-path": "", "--ssl-*": "", "--api-key": "", "--admin-api-key": "",
    "--config": "engine.args", "--grpc-*": "", "--smg-*": "", "--gated-launch-port": "",
    "--nnodes": "", "--node-rank": "", "--dist-init-addr": "", "--nccl-init-addr": "",
    "--model-path": "model.uri", "--tokenizer-path": "model.uri", "--revision": "model.revision",
    "--served-model-name": "model.name", "--download-dir": "",
    "--enable-lora": "model.adapters", "--lora-paths": "model.adapters", "--enable-metrics": "",
    "--incremental-streaming-output": "", "--log-level-http": "", "--stream-output": "", "--disaggregation-mode": "",
    "--disaggregation-bootstrap-port": "", "--disaggregation-transfer-backend": "",
    "--disaggregation-ib-device": "kvTransfer.network", "--disaggregation-decode-allocation-policy": "",
    "--disaggregation-decode-tp": _TENSOR, "--disaggregation-decode-dp": "", "--disaggregation-prefill-pp": "",
    "--optimistic-prefill-attempts": "", "--enable-pd-role-switch": "", "--tensor-parallel-size": _TENSOR,
    "--tp-size": _TENSOR, "--pipeline-parallel-size": _TENSOR, "--pp-size": _TENSOR,
    "--data-parallel-size": "prefill.replicas", "--dp-size": "prefill.replicas", "--enable-dp-attention": "",
    "--attn-dp-size": "prefill.replicas", "--attention-data-parallel-size": "prefill.replicas",
    "--dtype": "engine.dtype", "--quantization": "engine.quantization", "--page-size": "engine.blockSizeTokens",
    "--context-length": "engine.maxModelLen", "--disable-radix-cache": "engine.prefixCaching",
    "--enable-hierarchical-cache": "", "--max-running-requests": "maxRunningRequests",
    "--max-prefill-tokens": "maxBatchTokens", "--chunked-prefill-size": "maxBatchTokens",
}  # fmt: skip


def _process(pool: EnginePool) -> EngineProcess:
    """Return the process. Decode asks the bootstrap server of prefill, so that one is guarded."""
    prefills = pool.role == PREFILL
    environment = surroundings.common(pool) | surroundings.ucx(pool)
    environment |= {_BOOTSTRAP_TIMEOUT: str(pool.lease_s), _WAITING_TIMEOUT: str(pool.lease_s)}
    return EngineProcess(
        command=("python3", "-m", "sglang.launch_server", "--model-path", pool.model, *_flags(pool), *pool.args),
        environment=environment,
        role=pool.role,
        address_variables=(_HOST_IP,),
        pins_devices=True,
        ports={"bootstrap": BOOTSTRAP_PORT} if prefills else {},
        # Engines tell each other the ports on which they listen, and those are any free ones.
        peer_ports=((BOOTSTRAP_PORT, BOOTSTRAP_PORT), EPHEMERAL_PORTS),
        sysctls=(EPHEMERAL_SYSCTL,),
        guarded=prefills,
    )


def _flags(pool: EnginePool) -> list[str]:
    prefills = pool.role == PREFILL
    out = [
        *("--served-model-name", pool.served_name),
        *("--host", f"$({AdapterVariable.HOST})" if prefills else "127.0.0.1"),
        *("--port", str(ENGINE_PORT)),
        "--enable-metrics",
        "--incremental-streaming-output",
        # Otherwise, the adapter's calls fill the last lines of the log.
        *("--log-level-http", "warning"),
        *("--disaggregation-mode", pool.role),
        *("--disaggregation-transfer-backend", "nixl"),
        *("--dtype", pool.dtype),
        *("--page-size", str(pool.block_size)),
        *("--tp-size", str(pool.tensor)),
        *("--max-running-requests", str(pool.max_running)),
        *("--max-prefill-tokens", str(pool.max_batch_tokens)),
        *("--chunked-prefill-size", str(pool.max_batch_tokens)),
    ]
    if prefills:
        out += ["--disaggregation-bootstrap-port", str(BOOTSTRAP_PORT), "--api-key", KEY_PLACE]
    if not pool.prefix_cache:
        out.append("--disable-radix-cache")
    if pool.revision is not None:
        out += ["--revision", pool.revision]
    if pool.quantization != "none":
        out += ["--quantization", pool.quantization]
    if pool.max_model_len is not None:
        out += ["--context-length", str(pool.max_model_len)]
    if pool.loras:
        slots = str(min(len(pool.loras), _MOST_LORA_SLOTS))
        paths = [f"{name}={path}" for name, path in pool.loras]
        out += ["--enable-lora", "--max-loras-per-batch", slots, "--lora-paths", *paths]
    return out


ENGINE = Engine(
    name=SGLANG,
    image="lmsysorg/sglang:v0.5.23",
    limits=EngineLimits(
        values={"engine.quantization": ("none", "fp8"), **ADAPTED_VALUES},
        absent={**ADAPTED_ABSENT, "prefill.kvCacheSize": _MEMORY, "decode.kvCacheSize": _MEMORY},
        off=("scaling.roleFlip", "engine.experimental"),
        needs_accelerators=True,
        # Unequal sizes break down under load for models without latent attention (sglang#15674).
        tensor=TensorRule.EQUAL,
        batch_in_blocks=True,
    ),
    owned=_OWNED,
    reserved=(
        *surroundings.RESERVED, "SGLANG_GRPC_PORT", "SGLANG_LOCAL_IP_NIC", _HOST_IP, _BOOTSTRAP_TIMEOUT,
        _WAITING_TIMEOUT,
    ),
    process=_process,
    meter=EngineMeter(30000, SERIES, pool_readings_of),
    serves_every_model=True,
    fp8_cache=("--kv-cache-dtype", "fp8_e4m3"),
)  # fmt: skip
