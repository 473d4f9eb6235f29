"""PURE: The one definition of DisaggDeployment, DisaggPool and DisaggScaler.

`make generate` writes crds/ from it.
"""

from disagg_operator.api.disagg_scaler import DisaggScaler, parse_scaler
from disagg_operator.api.pool import DisaggPool
from disagg_operator.api.v1alpha1 import DisaggDeployment, InvalidResource, parse, parse_file

__all__ = [
    "DisaggDeployment", "DisaggPool", "DisaggScaler", "InvalidResource", "parse", "parse_file", "parse_scaler",
]  # fmt: skip
