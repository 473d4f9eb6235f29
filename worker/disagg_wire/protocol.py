"""PURE: The version, the features and the paths of the token-level protocol (docs/protocol.md).

Routers and workers speak it.
"""

# Peers with different versions refuse each other.
PROTOCOL_VERSION = 1
# The order of the bytes within a block of the KV cache. It is part of the compatibility hash.
LAYOUT_VERSION = 1

# A worker with this feature accepts the field `first_token_within_s` in the bodies of requests.
FEATURE_FIRST_TOKEN_WITHIN = "first_token_within_s"  # noqa: S105 - a field, no secret
FEATURES = (FEATURE_FIRST_TOKEN_WITHIN,)

HEALTH_PATH = "/healthz"
READY_PATH = "/readyz"
METRICS_PATH = "/metrics"

_INTERNAL = "/internal/v1"
STATE_PATH = f"{_INTERNAL}/state"
INFO_PATH = f"{_INTERNAL}/info"
TOKENIZER_PATH = f"{_INTERNAL}/tokenizer"
ROLE_PATH = f"{_INTERNAL}/role"
DECODE_ROOM_PATH = f"{_INTERNAL}/decode-room"
PREFILL_PATH = f"{_INTERNAL}/prefill"
DECODE_PATH = f"{_INTERNAL}/decode"
WORK_PATHS = {"prefill": PREFILL_PATH, "decode": DECODE_PATH}

# The states of a worker as `info` reports them.
STARTING = "starting"
READY = "ready"
DRAINING = "draining"

# The longest sequence that any field of the protocol can count, and the longest grammar that may be
# sent.
MAX_TOKENS = 1 << 20
MAX_GRAMMAR_CHARS = 65_536
