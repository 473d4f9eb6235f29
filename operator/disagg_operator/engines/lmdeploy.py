"""PURE: LMDeploy, each worker of which computes prompts and generates tokens by itself.

Its hand-over is an experiment, because nothing keeps the KV cache until decode has read it
(docs/engines.md). Its prefix cache stays off, whatever the spec says, because it knows no tenants:
one could tell from an early first token what another has asked. The flags are those of LMDeploy
0.18.0.
"""

from __future__ import annotations

from disagg_operator.engines import surroundings
from disagg_operator.engines.contract import (
    ADAPTED_ABSENT,
    ADAPTED_VALUES,
    EPHEMERAL_SYSCTL,
    UNPINNED_KV,
    Engine,
    EngineLimits,
    EnginePool,
    EngineProcess,
    Experiment,
    TensorRule,
)
from disagg_operator.engines.launch import KEY_PLACE
from disagg_wire.engines import LMDEPLOY
from disagg_wire.environment import AdapterVariable
from disagg_wire.ports import ENGINE_PORT
from disagg_wire.roles import BOTH, PREFILL
from disagg_wire.series import ENGINE_OTHER_FIRST_TOKENS

_TENSOR = "prefill.parallelism and decode.parallelism"
_MEMORY = "--cache-max-entry-count in args sets its share of the memory"
# Engines tell each other the ports of their hand-over, which ZMQ or the kernel has chosen.
_CHOSEN_PORTS = (32768, 65535)
_EXPERIMENT = Experiment(
    UNPINNED_KV,
    "LMDeploy does not keep the KV of a prompt until decode has read it: if its blocks are given away, the text is "
    "wrong and no error is told. A prefill worker therefore computes one prompt at a time. Watch "
    f"{ENGINE_OTHER_FIRST_TOKENS}, which must stay 0; it shows answers to another prompt, and not lost KV",
)
_OWNED = {
    "--server-name": "", "--server-port": "", "--api-keys": "", "--ssl": "", "--proxy-url": "",
    "--disable-fastapi-docs": "",
    "--backend": "", "--logprobs-mode": "", "--enable-abort-handling": "", "--disable-metrics": "",
    "--enable-metrics": "", "--tool-call-parser": "", "--reasoning-parser": "", "--role": "engine.experimental",
    "--migration-backend": "", "--migration-protocol": "", "--dummy-prefill": "", "--nnodes": "", "--node-rank": "",
    "--dist-init-addr": "", "--model-name": "model.name", "--revision": "model.revision", "--download-dir": "",
    "--adapters": "", "--device": "", "--tp": _TENSOR, "--dp": "prefill.replicas", "--dp-rank": "", "--cp": "",
    "--ep": "",
    "--dtype": "engine.dtype", "--session-len": "engine.maxModelLen", "--max-batch-size": "maxRunningRequests",
    "--max-prefill-token-num": "maxBatchTokens", "--cache-block-seq-len": "engine.blockSizeTokens",
    "--enable-prefix-caching": "",
}  # fmt: skip


def _process(pool: EnginePool) -> EngineProcess:
    command = ("python3", "-m", "lmdeploy", "serve", "api_server", pool.model, *_flags(pool), *pool.args)
    environment = surroundings.common(pool)
    if not pool.experimental:
        return EngineProcess(command, environment, BOTH)
    return EngineProcess(
        command,
        environment,
        pool.role,
        peer_ports=((ENGINE_PORT, ENGINE_PORT), _CHOSEN_PORTS),
        sysctls=(EPHEMERAL_SYSCTL,),
        guarded=_reached(pool),
    )


def _reached(pool: EnginePool) -> bool:
    """Return whether others reach the engine: decode's adapter connects it with prefill's."""
    return pool.experimental and pool.role == PREFILL


def _flags(pool: EnginePool) -> list[str]:
    out = [
        *("--model-name", pool.served_name),
        *("--server-name", f"$({AdapterVariable.HOST})" if _reached(pool) else "127.0.0.1"),
        *("--server-port", str(ENGINE_PORT)),
        *("--backend", "pytorch"),
        *("--logprobs-mode", "raw_logprobs"),
        "--enable-abort-handling",
        *("--dtype", pool.dtype),
        *("--tp", str(pool.tensor)),
        *("--cache-block-seq-len", str(pool.block_size)),
        *("--max-batch-size", str(pool.max_running)),
        *("--max-prefill-token-num", str(pool.max_batch_tokens)),
    ]
    if pool.experimental:
        out += ["--role", pool.role.capitalize(), "--migration-backend", "DLSlime"]
    if _reached(pool):
        out += ["--api-keys", KEY_PLACE]
    if pool.revision is not None:
        out += ["--revision", pool.revision]
    if pool.max_model_len is not None:
        out += ["--session-len", str(pool.max_model_len)]
    return out


ENGINE = Engine(
    name=LMDEPLOY,
    image="openmmlab/lmdeploy:v0.18.0",
    limits=EngineLimits(
        values={
            "engine.dtype": ("auto", "bfloat16"),
            "engine.quantization": ("none",),
            **ADAPTED_VALUES,
        },
        absent={
            **ADAPTED_ABSENT,
            "engine.leaseSeconds": "nothing keeps KV until decode has read it",
            "prefill.kvCacheSize": _MEMORY,
            "decode.kvCacheSize": _MEMORY,
            "model.adapters": "",
        },
        off=("scaling.roleFlip",),
        needs_accelerators=True,
        tensor=TensorRule.EQUAL_IF_EXPERIMENTAL,
        experimental_transport="rdma",
    ),
    owned=_OWNED,
    reserved=surroundings.RESERVED,
    process=_process,
    serves_every_model=True,
    experiment=_EXPERIMENT,
    plans_pairs=False,
)
