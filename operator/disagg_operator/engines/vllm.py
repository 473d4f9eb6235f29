"""PURE: vLLM, whose decode pulls the KV cache from prefill by NIXL.

The flags and variables are those of vLLM 0.32 and 0.33.
"""

from __future__ import annotations

import json

from disagg_operator.engines import surroundings
from disagg_operator.engines.contract import (
    ADAPTED_ABSENT,
    ADAPTED_VALUES,
    UCX_PORTS,
    Engine,
    EngineLimits,
    EngineMeter,
    EnginePool,
    EngineProcess,
    TensorRule,
)
from disagg_wire.engine_metrics.vllm import SERIES, pool_readings_of
from disagg_wire.engines import VLLM
from disagg_wire.ports import ENGINE_PORT, SIDE_CHANNEL_PORT
from disagg_wire.roles import PREFILL

_SIDE_CHANNEL_HOST = "VLLM_NIXL_SIDE_CHANNEL_HOST"
# Adapters beyond these are swapped: each slot takes GPU memory.
_MOST_LORA_SLOTS = 8
_TENSOR = "prefill.parallelism and decode.parallelism"
_OWNED = {
    "--host": "", "--port": "", "--uds": "", "--root-path": "", "--ssl-*": "", "--api-key": "",
    "--config": "engine.args",
    "--headless": "", "--api-server-count": "", "-asc": "", "--grpc": "", "--grpc-port": "",
    "--data-parallel-*": "prefill.replicas", "-dp": "",
    "-dpn": "", "-dpr": "", "-dpa": "", "-dpp": "", "-dpl": "", "-dpb": "", "-dph": "", "-dpe": "", "-dpm": "",
    "--nnodes": "", "-n": "", "--node-rank": "", "-r": "", "--master-addr": "", "--master-port": "",
    "--model": "model.uri", "--revision": "model.revision", "--tokenizer": "model.uri",
    "--tokenizer-revision": "model.revision", "--served-model-name": "model.name", "--download-dir": "",
    "--enable-lora": "model.adapters", "--lora-modules": "model.adapters",
    "--enable-scale-out": "", "--tokens-only": "", "--enable-prompt-tokens-details": "", "--shutdown-timeout": "",
    "--disable-uvicorn-access-log": "", "--disable-access-log-for-endpoints": "",
    "--disable-log-stats": "", "--kv-transfer-config": "", "--kv-offloading-size": "", "--kv-offloading-backend": "",
    "--tensor-parallel-size": _TENSOR, "-tp": _TENSOR, "--pipeline-parallel-size": _TENSOR, "-pp": _TENSOR,
    "--prefill-context-parallel-size": _TENSOR, "-pcp": _TENSOR, "--decode-context-parallel-size": _TENSOR,
    "-dcp": _TENSOR, "--dtype": "engine.dtype", "--quantization": "engine.quantization", "-q": "engine.quantization",
    "--block-size": "engine.blockSizeTokens", "--max-model-len": "engine.maxModelLen",
    "--enable-prefix-caching": "engine.prefixCaching", "--max-num-seqs": "maxRunningRequests",
    "--max-num-batched-tokens": "maxBatchTokens", "--kv-cache-memory-bytes": "kvCacheSize",
    "--num-gpu-blocks-override": "kvCacheSize",
}  # fmt: skip


def _process(pool: EnginePool) -> EngineProcess:
    environment = surroundings.common(pool) | surroundings.ucx(pool)
    environment |= {
        "UCX_TCP_PORT_RANGE": f"{UCX_PORTS[0]}-{UCX_PORTS[1]}",
        "VLLM_CACHE_ROOT": f"{surroundings.CACHE_MOUNT}/vllm",
        "VLLM_NIXL_SIDE_CHANNEL_PORT": str(SIDE_CHANNEL_PORT),
        "VLLM_NO_USAGE_STATS": "1",
    }
    if not pool.accelerators:  # the builds for CPUs; the threads are those of OMP_NUM_THREADS
        environment |= {"VLLM_TARGET_DEVICE": "cpu", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    return EngineProcess(
        command=("python3", "-m", "vllm.entrypoints.cli.main", "serve", pool.model, *_flags(pool), *pool.args),
        environment=environment,
        role=pool.role,
        address_variables=(_SIDE_CHANNEL_HOST,),
        pins_devices=True,
        ports={"side-channel": SIDE_CHANNEL_PORT},
        peer_ports=((SIDE_CHANNEL_PORT, SIDE_CHANNEL_PORT), UCX_PORTS),
    )


def _flags(pool: EnginePool) -> list[str]:
    out = [
        *("--served-model-name", pool.served_name),
        *("--host", "127.0.0.1"),
        *("--port", str(ENGINE_PORT)),
        "--enable-scale-out",
        "--enable-prompt-tokens-details",
        # The adapter's look at the metrics, twice a second, would push the cause of an end out of
        # the last lines of the log.
        "--disable-uvicorn-access-log",
        *("--shutdown-timeout", str(pool.drain_s)),
        *("--kv-transfer-config", _transfer(pool)),
        *("--dtype", pool.dtype),
        *("--block-size", str(pool.block_size)),
        *("--tensor-parallel-size", str(pool.tensor)),
        *("--max-num-seqs", str(pool.max_running)),
        *("--max-num-batched-tokens", str(pool.max_batch_tokens)),
        "--enable-prefix-caching" if pool.prefix_cache else "--no-enable-prefix-caching",
    ]
    if pool.revision is not None:
        out += ["--revision", pool.revision]
    if pool.quantization != "none":
        out += ["--quantization", pool.quantization]
    if pool.max_model_len is not None:
        out += ["--max-model-len", str(pool.max_model_len)]
    if pool.kv_cache_bytes is not None:  # the flag is for one rank
        out += ["--kv-cache-memory-bytes", str(pool.kv_cache_bytes // pool.tensor)]
    if pool.loras:
        modules = [json.dumps({"name": name, "path": path}) for name, path in pool.loras]
        out += ["--enable-lora", "--max-loras", str(min(len(modules), _MOST_LORA_SLOTS)), "--lora-modules", *modules]
    return out


def _transfer(pool: EnginePool) -> str:
    """Return the configuration of the connector.

    Decode must fail where it cannot read KV: it would otherwise compute the prompt itself without
    saying so.
    """
    config: dict[str, object] = {
        "kv_connector": "NixlConnector",
        "kv_role": "kv_producer" if pool.role == PREFILL else "kv_consumer",
        "kv_load_failure_policy": "fail",
        "kv_connector_extra_config": {"kv_lease_duration": pool.lease_s, "backends": ["UCX"]},
    }
    if not pool.accelerators:
        config["kv_buffer_device"] = "cpu"
    return json.dumps(config)


ENGINE = Engine(
    name=VLLM,
    image="vllm/vllm-openai:v0.33.0",
    limits=EngineLimits(
        values={"engine.quantization": ("none", "fp8"), **ADAPTED_VALUES},
        absent=ADAPTED_ABSENT,
        off=("scaling.roleFlip", "engine.experimental"),
        tensor=TensorRule.INTEGER_RATIO,
        batch_holds_running=True,
    ),
    owned=_OWNED,
    reserved=(
        *surroundings.RESERVED, "VLLM_API_KEY", "VLLM_CACHE_ROOT", _SIDE_CHANNEL_HOST, "VLLM_NIXL_SIDE_CHANNEL_PORT",
    ),
    process=_process,
    meter=EngineMeter(8000, SERIES, pool_readings_of),
    serves_every_model=True,
    fp8_cache=("--kv-cache-dtype", "fp8"),
)  # fmt: skip
