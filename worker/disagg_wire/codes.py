"""PURE: The error codes of the token-level protocol, in answers and in streams.

docs/protocol.md specifies them.
"""

INVALID_REQUEST = "invalid_request"
UNAUTHORIZED = "unauthorized"
PROMPT_TOO_LONG = "prompt_too_long"
NO_CAPACITY = "no_capacity"
STARTING = "starting"
DRAINING = "draining"
OTHER_ROLE = "other_role"
OTHER_MODEL = "other_model"
ROLE_CHANGING = "role_changing"
TRANSFER_FAILED = "transfer_failed"
TICKET_EXPIRED = "ticket_expired"
# The ticket is wrong, used or of another request; the request itself may be right.
TICKET_REFUSED = "ticket_refused"
DEADLINE_EXCEEDED = "deadline_exceeded"
CANCELLED = "cancelled"
# Nothing is kept under the name.
UNKNOWN_STREAM = "unknown_stream"
INTERNAL = "internal"
# The engine failed on this request, and on none of those that were computed with it.
REQUEST_FAILED = "request_failed"
# With this code, prefill tells the transfer, and nobody else, that the first token ended the
# request.
FINISHED = "finished"
