"""A Kubernetes cluster for tests: the user's own, kind where a Docker engine answers, or one built
from Go modules.
"""
