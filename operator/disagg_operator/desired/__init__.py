"""PURE: a DisaggDeployment and the facts about its cluster -> the Kubernetes objects (or processes)
that it needs.
"""

from disagg_operator.desired.facts import Facts, Images
from disagg_operator.desired.render import render

__all__ = ["Facts", "Images", "render"]
