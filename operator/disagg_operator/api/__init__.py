"""PURE: The one definition of DisaggDeployment and DisaggPool.

`make generate` writes crds/ from it.
"""

from disagg_operator.api.pool import DisaggPool
from disagg_operator.api.v1alpha1 import DisaggDeployment, InvalidResource, parse, parse_file

__all__ = ["DisaggDeployment", "DisaggPool", "InvalidResource", "parse", "parse_file"]
