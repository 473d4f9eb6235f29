"""PURE: The names of spans and attributes. docs/tracing.md describes each of them."""

from __future__ import annotations

from enum import StrEnum


class SpanName(StrEnum):
    """The spans within that of a request, which has the name of its endpoint."""

    ADMIT = "disagg.admit"
    TOKENIZE = "disagg.tokenize"
    HOLD = "disagg.hold"
    QUEUE = "disagg.queue"
    CHOOSE = "disagg.choose"
    RETRY = "disagg.retry"
    ATTEMPT = "disagg.attempt"
    RESERVE = "disagg.reserve"
    PREFILL = "disagg.prefill"
    KV_TRANSFER = "disagg.kv_transfer"
    DECODE = "disagg.decode"


class Attribute(StrEnum):
    """The attributes of spans: those of OpenTelemetry's conventions for HTTP and generative AI, and
    ours.

    None has a text of the client's but its request ID, which is short and plain, and the name of a
    model that is served here.
    """

    METHOD = "http.request.method"
    ROUTE = "http.route"
    URL_PATH = "url.path"
    URL_SCHEME = "url.scheme"
    STATUS_CODE = "http.response.status_code"
    ERROR_TYPE = "error.type"
    OPERATION = "gen_ai.operation.name"
    PROVIDER = "gen_ai.provider.name"
    REQUEST_MODEL = "gen_ai.request.model"
    RESPONSE_MODEL = "gen_ai.response.model"
    MAX_TOKENS = "gen_ai.request.max_tokens"
    CHOICE_COUNT = "gen_ai.request.choice.count"
    INPUT_TOKENS = "gen_ai.usage.input_tokens"
    OUTPUT_TOKENS = "gen_ai.usage.output_tokens"
    CACHED_INPUT_TOKENS = "gen_ai.usage.cache_read.input_tokens"
    FINISH_REASONS = "gen_ai.response.finish_reasons"
    REQUEST_ID = "disagg.request_id"
    KEPT = "disagg.kept"
    STREAM = "disagg.stream"
    TTFT_S = "disagg.ttft_s"
    TPOT_S = "disagg.tpot_s"
    ATTEMPTS = "disagg.attempts"
    CHOICE = "disagg.choice"
    PATH = "disagg.path"
    PATH_REASON = "disagg.path_reason"
    POOL = "disagg.pool"
    NUMBER = "disagg.attempt.number"
    POD = "disagg.pod"
    CACHED_TOKENS = "disagg.cached_tokens"
    WAIT_S = "disagg.prefill.wait_s"
    COMPUTE_S = "disagg.prefill.compute_s"
    KV_BYTES = "disagg.kv.bytes"
    KV_EXPOSED_S = "disagg.kv.exposed_s"
    KV_INTERFACE = "disagg.kv.interface"
    KV_TRANSPORT = "disagg.kv.transport"
    KV_EVIDENCE = "disagg.kv.evidence"
