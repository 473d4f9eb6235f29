"""PURE: The version, the features and the paths of the token-level protocol (docs/protocol.md).

Routers and workers speak it.
"""

# Peers with different versions refuse each other.
PROTOCOL_VERSION = 1
# The order of the bytes within a block of the KV cache. It is part of the compatibility hash.
LAYOUT_VERSION = 1

# A worker with this feature accepts the field `first_token_within_s` in the bodies of requests.
FEATURE_FIRST_TOKEN_WITHIN = "first_token_within_s"  # noqa: S105 - a field, no secret
# A worker with this feature accepts the field `adapter`, the name of a LoRA adapter.
FEATURE_ADAPTER = "adapter"
# A worker with this feature accepts the field `digest`, and refuses a request for other weights
# than its own.
FEATURE_DIGEST = "digest"
# A worker with this feature accepts the field `prefill_incarnation`, to which it binds the ticket,
# and sends and receives KV in frames of version 2.
FEATURE_PREFILL_INCARNATION = "prefill_incarnation"
# A worker with this feature accepts the field `local_up_to_tokens`: it prefills a prompt itself of
# which it holds the start, and lacks no more tokens than that.
FEATURE_LOCAL_UP_TO = "local_up_to_tokens"
# A worker with this feature writes KV, or has it written, by NIXL. It names in `kv.transports` the
# transports by which it reaches others, and accepts the field `prefill_transports`, the same of the
# prefill worker.
FEATURE_PREFILL_TRANSPORTS = "prefill_transports"
# The features of workers behind an adapter, which say what their engine cannot do. The first output
# token comes from decode; a ticket promises room that the engine itself does not hold; a request
# with a seed draws other tokens after a failover; an output that must match a format cannot go on
# elsewhere once it has begun.
FEATURE_FIRST_TOKEN_FROM_DECODE = "first_token_from_decode"  # noqa: S105 - a feature, no secret
FEATURE_SOFT_TICKET = "soft_ticket"
FEATURE_SEED_LOST = "seed_lost_by_failover"
FEATURE_STRUCTURED_NOT_RESUMED = "structured_not_resumed"
# Decode cannot compute prompts, so that it serves only together with a prefill worker.
FEATURE_NO_LOCAL_PREFILL = "no_local_prefill"
# The hand-over of KV is an experiment with this engine.
FEATURE_EXPERIMENTAL = "experimental_transfer"
# A worker with this feature sends beats to each router that asks for them.
FEATURE_PULSE = "pulse"
# A worker with this feature accepts the field `resume`, and keeps what it makes for such a request
# for a while, for any router that asks for it.
FEATURE_RESUME = "resume"
# What the bundled worker supports.
FEATURES = (FEATURE_FIRST_TOKEN_WITHIN, FEATURE_DIGEST, FEATURE_PREFILL_INCARNATION, FEATURE_LOCAL_UP_TO, FEATURE_PULSE)

HEALTH_PATH = "/healthz"
READY_PATH = "/readyz"
# Of adapters alone: whether the adapter itself lives, whatever its engine does; and a request that
# is answered once the adapter has drained, for which the kubelet waits before it stops the engine.
LIVE_PATH = "/livez"
DRAINED_PATH = "/drained"
METRICS_PATH = "/metrics"

_INTERNAL = "/internal/v1"
STATE_PATH = f"{_INTERNAL}/state"
DEMAND_PATH = f"{_INTERNAL}/demand"
INFO_PATH = f"{_INTERNAL}/info"
PULSE_PATH = f"{_INTERNAL}/pulse"
TOKENIZER_PATH = f"{_INTERNAL}/tokenizer"
ROLE_PATH = f"{_INTERNAL}/role"
DRAIN_PATH = f"{_INTERNAL}/drain"
DECODE_ROOM_PATH = f"{_INTERNAL}/decode-room"
PREFILL_PATH = f"{_INTERNAL}/prefill"
DECODE_PATH = f"{_INTERNAL}/decode"
# Between adapters, on the KV port: prefill's adapter posts the engine's hand-over to decode's.
HANDOVER_PATH = f"{_INTERNAL}/handover"
# The header of this call that names the transfer, by its random ID that is in the ticket alone.
TRANSFER_HEADER = "x-disagg-transfer"
# What is kept of requests with the field `resume`.
STREAMS_PATH = f"{_INTERNAL}/streams"
WORK_PATHS = {"prefill": PREFILL_PATH, "decode": DECODE_PATH}

# The header with which a router asks for `info`: whether the worker may have to take requests after
# SIGTERM, because the router ends as well or has no other worker.
ROUTER_HEADER = "x-disagg-router"
ROUTER_WATCHES = "watches"
ROUTER_NEEDS = "needs"
# The header of a request for a worker that is about to end, from a router that has nobody else; and
# the field of `info` in which a worker says that it takes them.
LAST_RESORT_HEADER = "x-disagg-last-resort"
LAST_RESORT = "last_resort"

# The states of a worker as `info` reports them.
STARTING = "starting"
READY = "ready"
DRAINING = "draining"

# The longest sequence that any field of the protocol can count, and the longest grammar that may be
# sent.
MAX_TOKENS = 1 << 20
MAX_GRAMMAR_CHARS = 65_536
# The most choices of an answer: 16 prompts with 16 choices each.
MAX_CHOICES = 256
# The least repetition penalty. It is a factor of the logits: with far less, they overflow.
MIN_REPETITION_PENALTY = 0.01
