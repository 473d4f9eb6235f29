"""PURE: The performance of the workers of a resource according to what the resource declares."""

from __future__ import annotations

import re
from dataclasses import replace

from disagg_operator.api import DisaggDeployment
from disagg_operator.api.scaling import WorkerSpeed
from disagg_operator.api.v1alpha1 import PoolSpec
from disagg_operator.performance import hardware, model_shape
from disagg_operator.performance.profile import Profile
from disagg_operator.performance.roof_line import Efficiency, estimate

# The bundled model of 5 million parameters on one CPU thread. Only the order of magnitude is right;
# the rest is learned.
CPU = Profile(1, 4e-3, 0.15e-3, 0.0, 3e-3, 0.6e-3, 0.1e-6, 40_000, batch_tokens=2048, max_running=64)
# Sequences of a decode step, where nobody says how many an engine takes.
_RUNNING = 256

# The routers' environment contains the estimate, so other figures would restart the routers of
# every resource. They only matter until the first measurements.
STARTING = Efficiency(
    prefill_flops=0.55, decode_bandwidth=0.70, layer_overhead_s=4e-6, reduce_latency_s=8e-6, batch_overhead_s=5e-3,
    sequence_overhead_s=10e-6, norm_passes=0.0, overlap=False,
)  # fmt: skip


def profile_of(dd: DisaggDeployment) -> Profile:
    """Return the profile of the workers before anything has been measured.

    It is the declared profile if there is one, else an estimate from accelerator and model, else
    that of a small model on a CPU. Its prefill coefficients are those of a prefill worker, its
    decode coefficients those of a decode worker.
    """
    spec = dd.spec
    name = spec.model.uri.rstrip("/").rsplit("/", 1)[-1]
    devices = [
        (None if pool.accelerator is None else pool.accelerator.product, gpus_of(pool))
        for pool in (spec.prefill, spec.decode)
    ]
    running = (spec.prefill.max_running_requests, spec.decode.max_running_requests)
    found = declared_or_estimated(spec.scaling.profile, name, devices[0], devices[1], running)
    return replace(found, batch_tokens=spec.prefill.max_batch_tokens, max_running=spec.decode.max_running_requests)


def declared_or_estimated(
    declared: WorkerSpeed | None,
    model: str,
    prefill_gpus: tuple[str | None, int],
    decode_gpus: tuple[str | None, int],
    max_running: tuple[int, int] = (_RUNNING, _RUNNING),
) -> Profile:
    """Return the profile of a prefill worker and a decode worker, as `profile_of` says.

    The GPUs of a worker are given by product and number.
    """
    prefill, decode = (
        _estimate(model, *gpus, most) for gpus, most in zip((prefill_gpus, decode_gpus), max_running, strict=True)
    )
    found = Profile(
        gpus=decode_gpus[1] or 1,
        a_s=prefill.a_s, b_s_per_token=prefill.b_s_per_token, c_s_per_token2=prefill.c_s_per_token2,
        d_s=decode.d_s, e_s_per_sequence=decode.e_s_per_sequence, f_s_per_token=decode.f_s_per_token,
        kv_tokens=decode.kv_tokens,
    )  # fmt: skip
    if declared is None:
        return found
    p, d = declared.prefill, declared.decode
    return Profile(found.gpus, p.base, p.per_token, p.per_token2, d.base, d.per_sequence, d.per_kv_token, d.kv_tokens)


def gpus_of(pool: PoolSpec) -> int:
    """Return the number of accelerators of one worker of a pool; 0 if it has none."""
    return 0 if pool.accelerator is None else pool.accelerator.count


def _estimate(model: str, product: str | None, count: int, max_running: int) -> Profile:
    gpu = next((g for g in hardware.GPUS.values() if g.product == product), None)
    shape = _shape(model)
    if gpu is None or shape is None or not count:
        return CPU
    found = estimate(shape, gpu, count, STARTING)
    return CPU if found is None else found.around(min(max_running, found.max_running / 2))


def _shape(name: str) -> model_shape.ModelShape | None:
    """Return the known shape with which the name of a model begins, or None.

    For example, Llama-3.1-70B-Instruct has the shape llama-3.1-70b. The longest of several matches
    counts (glm-4.5-air). A size in the rest of the name means that it is another model
    (DeepSeek-R1-Distill-Qwen-7B).
    """
    words = re.sub(r"[^a-z0-9.]+", "-", name.lower()).removeprefix("meta-")
    known = max((k for k in model_shape.KNOWN if words == k or words.startswith(k + "-")), key=len, default="")
    if not known or re.search(r"-\d+(\.\d+)?b(-|$)", words.removeprefix(known)):
        return None
    shape = model_shape.KNOWN[known]
    return shape.at_bits(8, shape.kv_bits) if words.endswith("-fp8") else shape
