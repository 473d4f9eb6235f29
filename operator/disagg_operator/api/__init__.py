"""DisaggDeployment and DisaggPool: the one definition. crds/ is generated from it (`make generate`)."""

from disagg_operator.api.pool import DisaggPool
from disagg_operator.api.v1alpha1 import DisaggDeployment, InvalidResource, parse, parse_file

__all__ = ["DisaggDeployment", "DisaggPool", "InvalidResource", "parse", "parse_file"]
