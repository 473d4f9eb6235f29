"""PURE: The desired state of a DisaggDeployment: the Kubernetes objects or processes that it needs.

They are rendered from the resource and from facts about its cluster.
"""

from disagg_operator.desired.facts import Facts, Images, NetworkAccess
from disagg_operator.desired.render import render

__all__ = ["Facts", "Images", "NetworkAccess", "render"]
