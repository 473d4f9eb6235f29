"""PURE: The roles of workers. A role is passed as one of these strings, and compared by value."""

from typing import Literal

Role = Literal["prefill", "decode", "both"]
PREFILL = "prefill"
DECODE = "decode"
# The two pools of a deployment, in the order in which a request passes them.
ROLES = (PREFILL, DECODE)
# The role of a worker that does both by itself, outside a cluster.
BOTH = "both"


def other_role(role: str) -> str:
    """Return the role of the other pool."""
    return DECODE if role == PREFILL else PREFILL
